"""Tokens as integers, exact for any number of bits; the first bit is the most significant.

numpy's int64 holds 62 bits and more, unlike the int32 of JAX, see `bsq_jax.quantizers.bits`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.core.text import listed
from bsq_jax.inference.checked_arrays import zeros_and_ones
from bsq_jax.inference.given import as_array
from bsq_jax.quantizers.layout import TokenLayout

MOST_BITS = 62
"""Of an integer: all of them and sums of two fit into int64."""


def word_sizes(length: int, group_size: int | None) -> tuple[int, ...] | None:
    """The bits of each integer of a token; None where one integer has them all.

    Args:
      length: bits of a token.
      group_size: bits of an integer, the last has what is left; None: all of a token that has
        `MOST_BITS` or fewer, else the fewest integers of about equal size.

    Raises:
      UserError: the group size is not in 1..`MOST_BITS`.
    """
    if group_size is None:
        if length <= MOST_BITS:
            return None
        group_size = -(-length // -(-length // MOST_BITS))
    most = min(length, MOST_BITS)
    if isinstance(group_size, bool) or not isinstance(group_size, int | np.integer):
        raise UserError(f"group_size={group_size!r}: give a whole number from 1 to {most}")
    if not 1 <= group_size <= most:
        raise UserError(f"group_size={group_size}: give 1 to {most} for tokens of {length} bits")
    full, rest = divmod(length, group_size)
    return (group_size,) * full + (rest,) * (rest > 0)


def to_ids(
    bits: Any, layout: TokenLayout, prefixes: tuple[int, ...], group_size: int | None
) -> np.ndarray:
    """See `Tokenizer.ids`."""
    array = as_array(bits, "bits")
    if not array.ndim or array.shape[-1] not in prefixes:
        raise UserError(
            f"bits have shape {array.shape}: the last axis must be the {listed(prefixes)} "
            "bits of a token"
        )
    array = zeros_and_ones(array, layout)
    sizes = word_sizes(array.shape[-1], group_size)
    words, first = [], 0
    for size in sizes or (array.shape[-1],):
        word = np.zeros(array.shape[:-1], np.int64)
        for place in range(first, first + size):
            word = word << 1 | array[..., place]
        words.append(word)
        first += size
    return words[0] if sizes is None else np.stack(words, axis=-1)


def from_ids(ids: Any, layout: TokenLayout, length: int, group_size: int | None) -> np.ndarray:
    """See `Tokenizer.bits`."""
    array = as_array(ids, "ids")
    sizes = word_sizes(length, group_size)
    if array.dtype.kind not in "iu":
        raise UserError(f"ids are {array.dtype}: give integers")
    if sizes is not None and (not array.ndim or array.shape[-1] != len(sizes)):
        raise UserError(
            f"ids have shape {array.shape}: the last axis must be {len(sizes)}, the integers of a "
            f"token of {length} bits"
        )
    words = array[..., None] if sizes is None else array
    places = []
    for place, size in enumerate(sizes or (length,)):
        word = words[..., place]
        if word.size and not (int(word.min()) >= 0 and int(word.max()) < 2**size):
            raise UserError(
                f"ids reach from {word.min()} to {word.max()}: integers of {size} bits are in "
                f"[0, {2**size:,d})"
            )
        word = word.astype(np.int64)
        places += [(word >> shift & 1).astype(np.uint8) for shift in reversed(range(size))]
    return zeros_and_ones(np.stack(places, axis=-1), layout)
