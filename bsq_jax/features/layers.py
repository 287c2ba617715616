"""What the frozen networks are made of: convolutions with folded normalisation, pools, resizing.

Everything is channels-last with any number of spatial axes, and in float32: the arithmetic asks for
the highest precision because accelerators otherwise round the factors of a product, and measures
would depend on the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

EPSILON = 1e-3  # of batch normalisation, in both Inception networks


def fold(
    kernel: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    bias: np.ndarray,
    scale: np.ndarray | float = 1.0,
) -> dict[str, np.ndarray]:
    """A convolution that contains the batch normalisation after it.

    ``(conv(x) - mean) / sqrt(variance + 1e-3) * scale + bias`` is a convolution with a bias again.
    It is computed in float64 and rounded once.

    Args:
      kernel: [..., in, out], without a bias of its own.
      mean: running mean [out].
      variance: running variance [out].
      bias: offset after normalisation [out].
      scale: factor after normalisation [out].

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
      params: ``kernel`` [*window, in, out] and ``bias`` [out].
      net: [batch, *space, in].
      stride: along every axis of space.
      padding: "SAME", as TensorFlow places it, or "VALID".
    """
    space = "DHW"[5 - net.ndim :]
    out = lax.conv_general_dilated(
        net,
        jnp.asarray(params["kernel"]),
        (stride,) * len(space),
        padding,
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        precision=lax.Precision.HIGHEST,
    )
    return out + jnp.reshape(params["bias"], (1,) * (net.ndim - 1) + (-1,))


def max_pool(
    net: jax.Array, window: Sequence[int], stride: Sequence[int], padding: str
) -> jax.Array:
    """Maximum over windows of [batch, *space, channel]; padding never wins."""
    sizes, steps = (1, *window, 1), (1, *stride, 1)
    return lax.reduce_window(net, -jnp.inf, lax.max, sizes, steps, padding)


def average_unpadded(net: jax.Array) -> jax.Array:
    """Mean over the 3x3 neighbours of [batch, height, width, channel] that lie in the picture."""
    total = lax.reduce_window(net, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    rows, columns = (_neighbours(size) for size in net.shape[1:3])
    counts = np.outer(rows, columns).astype(np.float32)
    return total / counts[None, :, :, None]


def _neighbours(size: int) -> np.ndarray:
    """How many of the places i - 1, i, i + 1 exist, for every i."""
    places = np.arange(size)
    return np.minimum(places + 1, size - 1) - np.maximum(places - 1, 0) + 1


def resize(net: jax.Array, side: int) -> jax.Array:
    """Bilinear resize of [batch, height, width, channel] to a square, without antialiasing.

    Centres of pixels are half-pixel centres, and beyond the edge lies the edge: what PyTorch's
    ``interpolate(mode="bilinear", align_corners=False)`` computes.
    """
    if net.shape[1:3] == (side, side):
        return net
    shape = (net.shape[0], side, side, net.shape[3])
    return jax.image.resize(net, shape, "bilinear", antialias=False)
