"""The extended binary Golay code: 4,096 words of 24 bits, any two of which differ in 8 or more."""

from __future__ import annotations

import functools

import numpy as np

LENGTH, DIMENSION = 24, 12
_GENERATOR = (1, 1, 0, 0, 0, 1, 1, 1, 0, 1, 0, 1)  # x^11 + x^10 + x^6 + x^5 + x^4 + x^2 + 1


@functools.cache
def words() -> np.ndarray:
    """All words, uint8 0/1 ``[4096, 24]``, in the order of the numbers that their bits are.

    The first 23 bits of a word are a multiple of the generator polynomial of the cyclic Golay code,
    highest power first; the last bit makes the sum of all even. (Conway and Sloane, Sphere
    Packings, Lattices and Groups, chapter 3.) The first 12 bits take all values, so a word's place
    is the number that they are, and the word at 4,095 minus the place is the complement.
    """
    basis = np.zeros((DIMENSION, LENGTH), np.uint8)
    for shift, row in enumerate(basis):
        row[shift : shift + len(_GENERATOR)] = _GENERATOR
        row[-1] = np.sum(row) % 2
    chosen = np.arange(2**DIMENSION)[:, None] >> np.arange(DIMENSION)[None] & 1
    made = (chosen @ basis % 2).astype(np.uint8)
    made = made[np.lexsort(made.T[::-1])]
    made.flags.writeable = False  # all callers share it
    return made


@functools.cache
def octads() -> np.ndarray:
    """The places of the ones of the 759 words of weight 8, int32 ``[759, 8]``, in their order."""
    found = words()[np.sum(words(), axis=1) == 8]
    places = np.nonzero(found)[1].reshape(len(found), 8).astype(np.int32)
    places.flags.writeable = False
    return places
