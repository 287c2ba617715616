"""Convolutions and blurs of the discriminators, any number of times differentiable, quick anywhere.

GPUs and TPUs have convolutions for everything. XLA on a CPU has a good one, of stride 1; strided
ones, the gradients of kernels and second derivatives run at a fraction of its speed
(docs/benchmarks.md). There, a strided convolution is a sum of convolutions of
stride 1, and the gradient of a kernel is a convolution along one axis whose channels are all other
pixels.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from bsq_jax.core.target import platform

IMPLEMENTATIONS = ("auto", "lax", "matmul")


def choose_implementation(implementation: str) -> str:
    """What ``auto`` stands for on this backend: ``matmul`` on a CPU, ``lax`` elsewhere."""
    if implementation != "auto":
        return implementation
    return "matmul" if platform() == "cpu" else "lax"


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    stride: int = 1,
    padding: int = 0,
    implementation: str = "auto",
) -> jax.Array:
    """A convolution over all axes between the first and the last.

    Args:
      x: ``[batch, *space, channel]``.
      kernel: ``[*window, channel, output]``, in the dtype of `x`.
      stride: of every axis.
      padding: zeros put on both ends of every axis; less than the window.
      implementation: ``lax``: XLA's convolution. ``matmul``: see the module. ``auto``: see
        `choose_implementation`.

    Returns:
      ``[batch, *space, output]`` in the dtype of `x`.
    """
    window = kernel.shape[:-2]
    if math.prod(window) == stride == 1 and padding == 0:
        return jnp.einsum("...c,co->...o", x, kernel.reshape(kernel.shape[-2:]))
    if choose_implementation(implementation) == "lax":
        return _xla(x, kernel, stride, padding)
    return _convolve(x, kernel, stride, padding)


def _xla(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    space = "DHW"[-(x.ndim - 2) :]
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride,) * len(space),
        ((padding, padding),) * len(space),
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
    )


def _pad(x: jax.Array, padding: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), *((padding, padding),) * (x.ndim - 2), (0, 0)))


# --- three functions that are one another's gradients ---

_Pair = tuple[jax.Array, jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    if stride == 1:
        return _xla(x, kernel, 1, padding)
    window, x, parts = kernel.shape[:-2], _pad(x, padding), []
    counts = [(size - taps) // stride + 1 for size, taps in zip(x.shape[1:-1], window, strict=True)]
    # The pixels under the taps at one place modulo the stride are a dense picture.
    for offsets in itertools.product(range(stride), repeat=len(window)):
        taps = kernel[tuple(slice(offset, None, stride) for offset in offsets)]
        cut = (
            slice(offset, offset + stride * (count + size - 2) + 1, stride)
            for offset, count, size in zip(offsets, counts, taps.shape[:-2], strict=True)
        )
        parts.append(_xla(x[:, *cut], taps, 1, 0))
    return sum(parts[1:], parts[0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _input_gradient(
    gradient: jax.Array, kernel: jax.Array, stride: int, padding: int, space: tuple[int, ...]
) -> jax.Array:
    """The transpose of `_convolve` in its input, whose axes of space are `space`."""
    turned = jnp.swapaxes(jnp.flip(kernel, tuple(range(kernel.ndim - 2))), -1, -2)
    left = [taps - 1 - padding for taps in kernel.shape[:-2]]
    right = [
        size + 2 * padding - taps - stride * (count - 1) + low
        for size, taps, count, low in zip(
            space, kernel.shape, gradient.shape[1:-1], left, strict=False
        )
    ]
    names = "DHW"[-len(space) :]
    return lax.conv_general_dilated(
        gradient,
        turned,
        (1,) * len(space),
        list(zip(left, right, strict=True)),
        lhs_dilation=(stride,) * len(space),
        dimension_numbers=(f"N{names}C", f"{names}IO", f"N{names}C"),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _kernel_gradient(
    x: jax.Array, gradient: jax.Array, stride: int, padding: int, window: tuple[int, ...]
) -> jax.Array:
    """The transpose of `_convolve` in its kernel, whose axes of space are `window`.

    The first axis of space is convolved; the others, with the batch, are the channels that are
    summed over; the channels of `x` are the batch.
    """
    _, *space, outputs = gradient.shape
    rows = jnp.moveaxis(gradient, 1, 0).reshape(space[0], -1, outputs)
    turned = jnp.moveaxis(_pad(x, padding), (-1, 1), (0, 1))  # [channel, space 0, batch, space 1..]
    parts = []
    for offsets in itertools.product(*map(range, window[1:])):
        cut = (
            slice(o, o + stride * (size - 1) + 1, stride)
            for o, size in zip(offsets, space[1:], strict=True)
        )
        flat = turned[:, :, :, *cut].reshape(*turned.shape[:2], -1)
        by_phase = [
            lax.conv_general_dilated(
                flat[:, phase::stride][:, : space[0] + (window[0] - 1 - phase) // stride],
                rows,
                (1,),
                "VALID",
                dimension_numbers=("NHC", "HIO", "NHC"),
            )
            for phase in range(min(stride, window[0]))
        ]  # [channel, tap / stride, output]
        taps = [by_phase[tap % stride][:, tap // stride] for tap in range(window[0])]
        parts.append(jnp.stack(taps))
    return jnp.stack(parts, axis=1).reshape(*window, x.shape[-1], outputs)


def _convolve_backward(stride: int, padding: int, residuals: _Pair, gradient: jax.Array) -> _Pair:
    x, kernel = residuals
    return (
        _input_gradient(gradient, kernel, stride, padding, x.shape[1:-1]),
        _kernel_gradient(x, gradient, stride, padding, kernel.shape[:-2]),
    )


def _input_gradient_backward(
    stride: int, padding: int, space: tuple[int, ...], residuals: _Pair, x: jax.Array
) -> _Pair:
    del space
    gradient, kernel = residuals
    return (
        _convolve(x, kernel, stride, padding),
        _kernel_gradient(x, gradient, stride, padding, kernel.shape[:-2]),
    )


def _kernel_gradient_backward(
    stride: int, padding: int, window: tuple[int, ...], residuals: _Pair, kernel: jax.Array
) -> _Pair:
    del window
    x, gradient = residuals
    return (
        _input_gradient(gradient, kernel, stride, padding, x.shape[1:-1]),
        _convolve(x, kernel, stride, padding),
    )


def _keep(function: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, _Pair]]:
    """The forward pass of a custom gradient that needs both arguments again."""
    return lambda a, b, *static: (function(a, b, *static), (a, b))


_convolve.defvjp(_keep(_convolve), _convolve_backward)
_input_gradient.defvjp(_keep(_input_gradient), _input_gradient_backward)
_kernel_gradient.defvjp(_keep(_kernel_gradient), _kernel_gradient_backward)


# --- blur and pools ---


def blur(x: jax.Array, padding: int) -> jax.Array:
    """Filters rows and columns with [1, 3, 3, 1] / 8, as shifted sums.

    A grouped convolution would do the same, on a CPU tens of times slower.

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
      x: ``[batch, row, column, channel]``, both sides even.

    Returns:
      ``[batch, row / 2, column / 2, channel]``.
    """
    for axis in (1, 2):
        even, odd = _phases(x, axis)
        size = even.shape[axis]
        zero = jnp.zeros_like(lax.slice_in_dim(even, 0, 1, axis=axis))
        before = lax.concatenate([zero, lax.slice_in_dim(odd, 0, size - 1, axis=axis)], axis)
        after = lax.concatenate([lax.slice_in_dim(even, 1, size, axis=axis), zero], axis)
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


def _phases(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Even and odd places along an axis."""
    half = x.shape[axis] // 2
    x = lax.slice_in_dim(x, 0, 2 * half, axis=axis)
    pairs = x.reshape(*x.shape[:axis], half, 2, *x.shape[axis + 1 :])
    return (
        lax.index_in_dim(pairs, 0, axis + 1, keepdims=False),
        lax.index_in_dim(pairs, 1, axis + 1, keepdims=False),
    )
