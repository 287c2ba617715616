"""Convolutions that are fast on a CPU, any number of times differentiable.

GPUs and TPUs have convolutions for everything. XLA for CPUs has a good one, of stride 1; strided
ones, the gradients of kernels and second derivatives run at a fraction of its speed
(docs/benchmarks.md). There a strided convolution is a sum of convolutions of stride 1, and the
gradient of a kernel is a convolution along one axis whose channels are all other pixels. Three
functions are one another's gradients: the convolution, and its transposes in input and kernel.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from bsq_jax.core.target import platform


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0) -> jax.Array:
    """A convolution over all axes between the first and the last.

    Args:
      x: ``[batch, *space, channel]``.
      kernel: ``[*window, channel, output]``, in the dtype of `x`.
      stride: of every axis.
      padding: zeros put on both ends of every axis; less than the window.

    Returns:
      ``[batch, *space, output]`` in the dtype of `x`.
    """
    if math.prod(kernel.shape[:-2]) == stride == 1 and padding == 0:
        return jnp.einsum("...c,co->...o", x, kernel.reshape(kernel.shape[-2:]))
    if platform() == "cpu":
        return _convolve(x, kernel, stride, padding)
    return _xla(x, kernel, stride, padding)


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
