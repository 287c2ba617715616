"""Blur and average pooling of the discriminators, as shifted sums and means of slices.

A grouped convolution would do the same, on a CPU tens of times slower.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax


def blur(x: jax.Array, padding: int) -> jax.Array:
    """Filters rows and columns with [1, 3, 3, 1] / 8, as shifted sums.

    Args:
      x: ``[batch, row, column, channel]``.
      padding: zeros put on both ends of rows and columns.

    Returns:
      ``[batch, row, column, channel]``, both sides 2 * padding - 3 longer.
    """
    return _blur_axis(_blur_axis(x, 1, padding), 2, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _blur_axis(x: jax.Array, axis: int, padding: int) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (padding, padding)
    x = jnp.pad(x, widths)
    count = x.shape[axis] - 3
    a, b, c, d = (lax.slice_in_dim(x, i, i + count, axis=axis) for i in range(4))
    return (a + d) * 0.125 + (b + c) * 0.375


# The filter is symmetric: its transpose is itself, with what is left of the padding.
_blur_axis.defvjp(
    lambda x, axis, padding: (_blur_axis(x, axis, padding), None),
    lambda axis, padding, _, gradient: (_blur_axis(gradient, axis, 3 - padding),),
)


def blur_half(x: jax.Array) -> jax.Array:
    """`blur` with one zero around, of which every second row and column is kept.

    Args:
      x: ``[batch, row, column, channel]``, sides of at least 2.

    Returns:
      ``[batch, row // 2, column // 2, channel]``.
    """
    for axis in (1, 2):
        even, odd = _phases(x, axis)
        size = even.shape[axis]
        zero = jnp.zeros_like(lax.slice_in_dim(even, 0, 1, axis=axis))
        last = zero  # what follows the pairs: of an odd side its last place
        if x.shape[axis] % 2:
            last = lax.slice_in_dim(x, 2 * size, 2 * size + 1, axis=axis)
        before = lax.concatenate([zero, lax.slice_in_dim(odd, 0, size - 1, axis=axis)], axis)
        after = lax.concatenate([lax.slice_in_dim(even, 1, size, axis=axis), last], axis)
        x = (before + after) * 0.125 + (even + odd) * 0.375
    return x


def average_pool(x: jax.Array, factors: Sequence[int]) -> jax.Array:
    """Means of neighbours; what is left over at the end of an axis is dropped.

    Args:
      x: ``[batch, *space, channel]``.
      factors: 1 or 2 for each axis of space.

    Returns:
      The pooled array in the dtype of `x`.
    """
    for axis, factor in enumerate(factors, 1):
        if factor == 2:
            even, odd = _phases(x, axis)
            x = (even + odd) * 0.5
    return x


def pool_to(x: jax.Array, side: int) -> jax.Array:
    """Means over a square of `side` by `side` regions of the last two axes of space.

    Region i of an axis of n places is from ``floor(i n / side)`` to ``ceil((i + 1) n / side)``, as
    in PyTorch's adaptive average pooling: all regions have a place also where n is less than
    `side`, and where it is equal nothing changes, to the bit.

    Args:
      x: ``[batch, ..., row, column, channel]``.
      side: regions of each axis.

    Returns:
      ``[batch, ..., side, side, channel]`` in the dtype of `x`.
    """
    for axis in (x.ndim - 3, x.ndim - 2):
        size = x.shape[axis]
        if size == side:
            continue
        ends = [(i * size // side, -(-(i + 1) * size // side)) for i in range(side)]
        means = [
            jnp.mean(lax.slice_in_dim(x, first, last, axis=axis), axis=axis, keepdims=True)
            for first, last in ends
        ]
        x = lax.concatenate(means, axis)
    return x


def _phases(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Even and odd places along an axis."""
    half = x.shape[axis] // 2
    x = lax.slice_in_dim(x, 0, 2 * half, axis=axis)
    pairs = x.reshape(*x.shape[:axis], half, 2, *x.shape[axis + 1 :])
    return (
        lax.index_in_dim(pairs, 0, axis + 1, keepdims=False),
        lax.index_in_dim(pairs, 1, axis + 1, keepdims=False),
    )
