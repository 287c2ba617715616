"""Tokens are bits. Integers exist per group of at most 30 bits, or of short tokens.

A token of L bits is an array of zeros and ones whose last axis is the channel; the first channel is
the most significant bit. L = 36 does not fit the 32-bit integers that JAX computes with, and the
floating-point indices of other code are wrong there, so integers of whole tokens exist only where a
codebook has few codes (`to_index`).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from bsq_jax.core.errors import UserError

MAX_GROUP = 16
MAX_INDEX = 30  # bits of a whole token that may be read as an integer


def pack_bytes(bits: np.ndarray) -> np.ndarray:
    """Packs tokens into bytes, first channel in the highest bit, zero-padded to whole bytes.

    Args:
      bits: integers or booleans 0/1, ``[..., L]``, any L >= 1.

    Returns:
      uint8 ``[..., ceil(L / 8)]``.
    """
    return np.packbits(np.asarray(bits).astype(np.uint8), axis=-1)


def group_sizes(bits: int, group_size: int, *, most: int = MAX_GROUP) -> tuple[int, ...]:
    """Sizes of the groups that `bits` channels are split into: equal, the last one may be smaller.

    Args:
      bits: to split.
      group_size: of all groups but the last.
      most: the largest group size; by default that of a group whose distribution is counted.

    Raises:
      UserError: the group size is not in 1..min(bits, most).
    """
    if not 1 <= group_size <= min(bits, most):
        raise UserError(f"group size {group_size} for {bits} bits: choose 1 to {min(bits, most)}")
    full, rest = divmod(bits, group_size)
    return (group_size,) * full + ((rest,) if rest else ())


def to_group_indices(bits: jax.Array, group_size: int) -> jax.Array:
    """Reads each group of channels as an integer.

    Args:
      bits: 0/1, ``[..., L]``.
      group_size: channels a group, 1 to 30.

    Returns:
      int32 ``[..., ceil(L / group_size)]``, each in ``[0, 2^size of its group)``.
    """
    bits = jnp.asarray(bits).astype(jnp.int32)
    count = bits.shape[-1]
    sizes = group_sizes(count, group_size, most=MAX_INDEX)
    # Zero channels in front of the last group pad it without changing its value.
    pad = len(sizes) * group_size - count
    head, tail = bits[..., : count - sizes[-1]], bits[..., count - sizes[-1] :]
    zeros = jnp.zeros((*bits.shape[:-1], pad), jnp.int32)
    grouped = rearrange(
        jnp.concatenate([head, zeros, tail], axis=-1), "... (group bit) -> ... group bit",
        bit=group_size,
    )  # fmt: skip
    weights = jnp.asarray(2 ** np.arange(group_size)[::-1], jnp.int32)
    return jnp.einsum("...gb,b->...g", grouped, weights)


def from_group_indices(indices: jax.Array, bits: int, group_size: int) -> jax.Array:
    """Inverse of `to_group_indices`: ``[..., groups]`` to uint8 0/1 ``[..., bits]``."""
    sizes = group_sizes(bits, group_size, most=MAX_INDEX)
    shifts = jnp.asarray(np.arange(group_size)[::-1], jnp.int32)
    shifts = shifts.reshape((1,) * indices.ndim + (group_size,))
    grouped = (indices[..., None].astype(jnp.int32) >> shifts) & 1
    flat = rearrange(grouped, "... group bit -> ... (group bit)").astype(jnp.uint8)
    last = len(sizes) * group_size - sizes[-1]
    return jnp.concatenate([flat[..., : bits - sizes[-1]], flat[..., last:]], axis=-1)


def to_index(bits: jax.Array) -> jax.Array:
    """Reads tokens of at most 30 bits as numbers: 0/1 ``[..., L]`` to int32 ``[...]``."""
    length = bits.shape[-1]
    check_index(length)
    weights = jnp.asarray(2 ** np.arange(length)[::-1], jnp.int32)
    return jnp.einsum("...b,b->...", bits.astype(jnp.int32), weights)


def from_index(index: jax.Array, length: int) -> jax.Array:
    """Inverse of `to_index`: integers ``[...]`` to uint8 0/1 ``[..., L]``."""
    check_index(length)
    shifts = jnp.asarray(np.arange(length)[::-1], jnp.int32)
    shifts = shifts.reshape((1,) * index.ndim + (length,))
    return ((index[..., None].astype(jnp.int32) >> shifts) & 1).astype(jnp.uint8)


def check_index(length: int) -> None:
    """Refuses tokens that are too long to be read as int32.

    Raises:
      ValueError: more than 30 bits.
    """
    if length > MAX_INDEX:
        raise ValueError(f"tokens of {length} bits are no int32: at most {MAX_INDEX} bits are")


def below(bits: Any, bound: int) -> Any:
    """Which tokens, read as numbers of any length, are less than a bound.

    Args:
      bits: 0/1 ``[..., L]``; in numpy or JAX, which is then what computes.
      bound: 1 to 2^L.

    Returns:
      Booleans ``[...]`` of the same kind.
    """
    xp: Any = np if isinstance(bits, np.ndarray) else jnp
    length = bits.shape[-1]
    if bound == 2**length:
        return xp.ones(bits.shape[:-1], bool)
    # A number is at most `bound - 1` if, at the first bit that differs, it has the zero.
    last = np.array([bound - 1 >> place & 1 for place in reversed(range(length))], np.uint8)
    last = last.reshape((1,) * (bits.ndim - 1) + (length,))
    bits = bits.astype(np.uint8)
    equal = xp.cumprod((bits == last).astype(np.uint8), axis=-1)
    before = xp.concatenate([xp.ones_like(equal[..., :1]), equal[..., :-1]], axis=-1)
    return ~xp.any((before == 1) & (bits > last), axis=-1)
