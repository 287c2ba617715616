"""Layers of the frozen networks: convolutions with folded batch normalization, pools, resizing.

Everything is channels-last and in float32, at the highest precision: accelerators otherwise round
the factors of a product, and metrics would depend on the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

EPSILON = 1e-3  # of batch normalization, in both Inception networks


def fold(
    kernel: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    bias: np.ndarray,
    scale: np.ndarray | float = 1.0,
) -> dict[str, np.ndarray]:
    """A convolution with the batch normalization after it folded in.

    ``(conv(x) - mean) / sqrt(variance + 1e-3) * scale + bias`` is a convolution with a bias again.
    It is computed in float64 and rounded once.

    Args:
      kernel: [..., in, out], without a bias of its own.
      mean: running mean [out].
      variance: running variance [out].
      bias: offset after normalization [out].
      scale: factor after normalization [out].

    Returns:
      ``{"kernel": float32 [..., in, out], "bias": float32 [out]}``.
    """
    factor = np.asarray(scale, np.float64) / np.sqrt(variance.astype(np.float64) + EPSILON)
    shift = bias.astype(np.float64) - mean.astype(np.float64) * factor
    return {
        "kernel": (kernel.astype(np.float64) * factor).astype(np.float32),
        "bias": shift.astype(np.float32),
    }


def conv(
    params: Mapping[str, Any], net: jax.Array, stride: int = 1, padding: str = "SAME"
) -> jax.Array:
    """Convolution and bias, without an activation.

    Args:
      params: ``kernel`` [height, width, in, out] and ``bias`` [out].
      net: [batch, height, width, in].
      stride: along both axes of space.
      padding: "SAME", as TensorFlow places it, or "VALID".
    """
    return _convolve(params["kernel"], net, stride, padding) + _along(params["bias"], net)


def conv_video(params: Mapping[str, Any], net: jax.Array, stride: int = 1) -> jax.Array:
    """Convolution over time, height and width with TensorFlow's SAME padding, and bias.

    It is the sum of one convolution in space for each place of the kernel in time, which a CPU
    computes two to seven times as fast as the compiler's own three-dimensional convolution.

    Args:
      params: ``kernel`` [time, height, width, in, out] and ``bias`` [out].
      net: [batch, time, height, width, in].
      stride: along time and both axes of space.
    """
    batch, time = net.shape[:2]
    kernel = jnp.asarray(params["kernel"])
    steps = -(-time // stride)
    missing = max((steps - 1) * stride + kernel.shape[0] - time, 0)
    before = missing // 2
    padded = jnp.pad(net, ((0, 0), (before, missing - before), (0, 0), (0, 0), (0, 0)))
    parts = []
    for place, weights in enumerate(kernel):
        last = place + (steps - 1) * stride
        frames = lax.slice_in_dim(padded, place, last + 1, stride, axis=1)
        flat = frames.reshape(batch * steps, *net.shape[2:])
        parts.append(_convolve(weights, flat, stride, "SAME"))
    total = sum(parts[1:], parts[0])
    return total.reshape(batch, steps, *total.shape[1:]) + _along(params["bias"], net)


def _convolve(kernel: Any, net: jax.Array, stride: int, padding: str) -> jax.Array:
    return lax.conv_general_dilated(
        net,
        jnp.asarray(kernel),
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )


def _along(bias: Any, net: jax.Array) -> jax.Array:
    """The bias, reshaped to broadcast over the features."""
    return jnp.reshape(bias, (1,) * (net.ndim - 1) + (-1,))


def max_pool(
    net: jax.Array, window: Sequence[int], stride: Sequence[int], padding: str
) -> jax.Array:
    """Maximum over windows of [batch, *space, channel]; padding is -inf.

    One axis after the other: the same maximum, for a tenth of the time or less on a CPU.
    """
    for axis, (size, step) in enumerate(zip(window, stride, strict=True), start=1):
        net = _reduce(net, -jnp.inf, lax.max, axis, size, step, padding)
    return net


def average_unpadded(net: jax.Array) -> jax.Array:
    """Mean over 3x3 windows of [batch, height, width, channel], padding not counted."""
    for axis in (1, 2):
        net = _reduce(net, 0.0, lax.add, axis, 3, 1, "SAME")
    rows, columns = (_neighbours(size) for size in net.shape[1:3])
    counts = np.outer(rows, columns).astype(np.float32)
    return net / counts[None, :, :, None]


def _reduce(
    net: jax.Array, start: float, function: Any, axis: int, size: int, step: int, padding: str
) -> jax.Array:
    """Reduces windows along one axis."""
    sizes, steps = [1] * net.ndim, [1] * net.ndim
    sizes[axis], steps[axis] = size, step
    return lax.reduce_window(net, start, function, sizes, steps, padding)


def _neighbours(size: int) -> np.ndarray:
    """How many of the places i - 1, i, i + 1 exist, for every i."""
    places = np.arange(size)
    return np.minimum(places + 1, size - 1) - np.maximum(places - 1, 0) + 1


def resize(net: jax.Array, side: int) -> jax.Array:
    """Bilinear resize of [batch, height, width, channel] to a square, without antialiasing.

    Pixel centers are at half pixels and coordinates are clamped at the edge, as in PyTorch's
    ``interpolate(mode="bilinear", align_corners=False)``.
    """
    if net.shape[1:3] == (side, side):
        return net
    shape = (net.shape[0], side, side, net.shape[3])
    return jax.image.resize(net, shape, "bilinear", antialias=False)
