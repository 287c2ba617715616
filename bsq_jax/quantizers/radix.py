"""Digits of mixed radix and bits of the same number, exact for numbers of any length.

A number of, say, 144 bits is held in limbs of 16 bits, one array for each, so that products of a
limb and a digit's radix fit into 32 bits. Neighbouring digits are first joined to one of at most
16 bits, which makes the work for usual numbers a few operations.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.quantizers.bits import from_group_indices, to_group_indices

LIMB = 16
MAX_RADIX = 2**LIMB


def length(radices: tuple[int, ...]) -> int:
    """Bits of the largest number, ceil(log2(product))."""
    return (math.prod(radices) - 1).bit_length()


def to_bits(digits: jax.Array, radices: tuple[int, ...]) -> jax.Array:
    """Reads digits as a number.

    Args:
      digits: integers ``[..., digit]``, the most significant one first, each in [0, its radix).
      radices: of the digits, 2 to 2^16.

    Returns:
      uint8 0/1 ``[..., L]``, L of `length`, the most significant bit first. With radices that are
      powers of two these are the bits of one digit behind those of the other.
    """
    digits = digits.astype(jnp.uint32)
    count = length(radices)
    # The least significant limb first.
    limbs = [jnp.zeros(digits.shape[:-1], jnp.uint32)] * -(-count // LIMB)
    for group in _groups(radices):
        carry = jnp.zeros_like(limbs[0])
        for place in group:
            carry = carry * np.uint32(radices[place]) + digits[..., place]
        radix = np.uint32(math.prod(radices[place] for place in group))
        for k, limb in enumerate(limbs):
            total = limb * radix + carry  # at most (2^16 - 1) radix + radix - 1 < 2^32
            limbs[k], carry = total & np.uint32(MAX_RADIX - 1), total >> np.uint32(LIMB)
    words = jnp.stack(limbs[::-1], axis=-1).astype(jnp.int32)
    return from_group_indices(words, len(limbs) * LIMB, LIMB)[..., len(limbs) * LIMB - count :]


def to_digits(bits: jax.Array, radices: tuple[int, ...]) -> jax.Array:
    """Inverse of `to_bits`: 0/1 ``[..., L]`` to int32 ``[..., digit]``.

    The highest digit of a number that is too large wraps around.
    """
    pad = -bits.shape[-1] % LIMB
    bits = jnp.pad(bits, ((0, 0),) * (bits.ndim - 1) + ((pad, 0),))
    words = to_group_indices(bits, LIMB).astype(jnp.uint32)
    limbs = [words[..., k] for k in range(words.shape[-1])]  # most significant first
    digits: list[jax.Array] = []
    for group in reversed(_groups(radices)):
        radix = np.uint32(math.prod(radices[place] for place in group))
        rest = jnp.zeros_like(limbs[0])
        for k, limb in enumerate(limbs):
            total = (rest << np.uint32(LIMB)) | limb  # less than radix 2^16
            limbs[k], rest = total // radix, total % radix
        for place in reversed(group):
            rest, digit = rest // np.uint32(radices[place]), rest % np.uint32(radices[place])
            digits.append(digit)
    return jnp.stack(digits[::-1], axis=-1).astype(jnp.int32)


def _groups(radices: tuple[int, ...]) -> list[list[int]]:
    """Neighbouring digits whose radices have a product of at most 2^16."""
    groups: list[list[int]] = [[]]
    product = 1
    for place, radix in enumerate(radices):
        if product * radix > MAX_RADIX:
            groups.append([])
            product = 1
        groups[-1].append(place)
        product *= radix
    return [group for group in groups if group]
