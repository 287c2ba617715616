"""How close a reconstruction is to its original.

Each metric is a pure function of two arrays of pixels ``[batch, time, height, width, channel]`` in
0..255 (uint8 or float) and can be jitted. It scores every frame by itself, ``[batch, time]`` in
float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from bsq_jax.core.clips import real_frames
from bsq_jax.core.errors import UserError

Pixels = jax.Array | np.ndarray

PSNR_CAP = 100.0
"""PSNR in dB of two identical frames (truly infinite), and the most that any frame gets."""

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales, finest first (Wang et al. 2003, section 3.2)."""

MS_SSIM_MIN_SIDE = 161
"""Least height and width for MS-SSIM: after four halvings an 11x11 window must still fit."""

SSIM_MIN_SIDE = 11
"""Least height and width for SSIM: the side of its window."""

_SIGMA = 1.5
_MOST_WINDOWS = 1024  # along a side in one matrix product
_PEAK = 255.0
_C1 = (0.01 * _PEAK) ** 2
_C2 = (0.03 * _PEAK) ** 2
_CENTRE = 127.5


def psnr(reference: Pixels, distorted: Pixels) -> jax.Array:
    """Peak signal-to-noise ratio, ``10 log10(255^2 / mse)`` of each frame, over all channels.

    Frames that agree better than ``PSNR_CAP`` count as ``PSNR_CAP``, so that means stay finite.

    Args:
      reference: ``[batch, time, height, width, channel]`` in 0..255.
      distorted: the same shape and range.

    Returns:
      ``[batch, time]`` float32, in dB.

    Raises:
      UserError: if the shapes differ or are not those of videos.
    """
    reference, distorted = _as_float(reference, distorted)
    mse = jnp.mean(jnp.square(reference - distorted), axis=(2, 3, 4))  # [batch, time]
    floor = _PEAK**2 * 10 ** (-PSNR_CAP / 10)
    return 10 * jnp.log10(_PEAK**2 / jnp.maximum(mse, floor))


def clip_psnr(frames_psnr: npt.ArrayLike, frames: npt.ArrayLike) -> np.ndarray:
    """PSNR of whole clips, from the mean squared error over all pixels of a clip's frames.

    It is at most the mean of the frames' PSNR, because the logarithm weighs bad frames less.

    Args:
      frames_psnr: ``[batch, time]`` as `psnr` gives it, in dB.
      frames: ``[batch]``, real frames of each clip, 1 or more. What padding holds does not count.

    Returns:
      ``[batch]`` float64, in dB.
    """
    values = np.asarray(frames_psnr, np.float64)
    real = real_frames(np.asarray(frames), values.shape[1])
    errors = np.where(real, 10 ** (-values / 10), 0.0)  # over the squared peak
    return -10 * np.log10(errors.sum(axis=1) / real.sum(axis=1))


def ssim(reference: Pixels, distorted: Pixels) -> jax.Array:
    """Structural similarity (Wang et al. 2004): 11x11 Gaussian window, K1 0.01, K2 0.03.

    Only windows that lie wholly inside the frame count. Variances are those of the population.
    Channels are scored by themselves, then averaged.

    Args:
      reference: ``[batch, time, height, width, channel]`` in 0..255, sides of at least 11.
      distorted: the same shape and range.

    Returns:
      ``[batch, time]`` float32, at most 1: the mean over windows and channels.

    Raises:
      UserError: if the shapes differ, are not those of videos, or are smaller than the window.
    """
    reference, distorted = _as_float(reference, distorted, min_side=SSIM_MIN_SIDE, metric="SSIM")
    luminance, contrast = _ssim_terms(reference - _CENTRE, distorted - _CENTRE)
    return jnp.mean(luminance * contrast, axis=(2, 3, 4))


def ms_ssim(reference: Pixels, distorted: Pixels) -> jax.Array:
    """Multi-scale structural similarity over five scales (Wang, Simoncelli and Bovik 2003).

    The contrast-structure term counts at every scale, luminance at the coarsest only. Between
    scales each 2x2 block becomes its mean; an odd side first repeats its last row or column, as the
    authors' code does. A scale whose mean term is negative counts as 0, since a fractional power
    of it has no real value; the product, and so the score of that channel, is then 0. Channels are
    scored by themselves, then averaged.

    Args:
      reference: ``[batch, time, height, width, channel]`` in 0..255, sides of at least
        ``MS_SSIM_MIN_SIDE``.
      distorted: the same shape and range.

    Returns:
      ``[batch, time]`` float32 in [0, 1]: the mean over channels.

    Raises:
      UserError: if the shapes differ, are not those of videos, or are too small for five scales.
    """
    reference, distorted = _as_float(
        reference, distorted, min_side=MS_SSIM_MIN_SIDE, metric="MS-SSIM"
    )
    x, y = reference - _CENTRE, distorted - _CENTRE
    score = jnp.ones((), jnp.float32)
    last = len(MS_SSIM_WEIGHTS) - 1
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        luminance, contrast = _ssim_terms(x, y)
        term = luminance * contrast if scale == last else contrast
        term = jnp.mean(term, axis=(2, 3))  # [batch, time, channel]
        score = score * jnp.maximum(term, 0.0) ** weight
        if scale < last:
            x, y = _halve(x), _halve(y)
    return jnp.mean(score, axis=2)


def patch_mean(x: Pixels, patch: int | tuple[int, int]) -> jax.Array:
    """The best picture with one color per patch: each patch becomes its mean, per channel.

    No other choice of one color per patch has a smaller squared error: a tokenizer that spends no
    more bits on a patch than a color takes is compared with it. Patches at the bottom and on the
    right are cut off where the frame ends.

    Args:
      x: ``[batch, time, height, width, channel]`` in any range.
      patch: height and width of a patch in pixels; a number is both.

    Returns:
      An array of the same shape, float32, in the range of ``x`` (not rounded).

    Raises:
      UserError: if ``x`` is not of rank 5.
    """
    if x.ndim != 5:
        raise UserError(_rank_message(x.shape))
    high, wide = (patch, patch) if isinstance(patch, int) else patch
    batch, time, height, width, channel = x.shape
    rows, columns = -(-height // high), -(-width // wide)
    split = (batch, time, rows, high, columns, wide, channel)
    padding = ((0, 0), (0, 0), (0, rows * high - height), (0, columns * wide - width), (0, 0))
    blocks = jnp.pad(jnp.asarray(x, jnp.float32), padding).reshape(split)
    inside = np.outer(_filled(height, high), _filled(width, wide))  # how much of each patch is
    inside = inside.astype(np.float32).reshape(1, 1, rows, 1, columns, 1, 1)
    means = jnp.mean(blocks, axis=(3, 5), keepdims=True) / inside
    whole = jnp.broadcast_to(means, split).reshape(batch, time, rows * high, columns * wide, -1)
    return whole[:, :, :height, :width]


def _filled(side: int, patch: int) -> np.ndarray:
    """The share of each patch along a side that is inside of it."""
    return np.minimum(side - np.arange(0, side, patch), patch) / patch


def _rank_message(shape: tuple[int, ...]) -> str:
    return (
        f"expected pixels [batch, time, height, width, channel], got shape {shape}: "
        "give an image a time axis of 1"
    )


def _as_float(
    reference: Pixels, distorted: Pixels, *, min_side: int = 1, metric: str = "this metric"
) -> tuple[jax.Array, jax.Array]:
    """Checks shapes and types of a pair and converts it to float32."""
    if reference.shape != distorted.shape:
        raise UserError(
            f"cannot compare pixels of shapes {reference.shape} and {distorted.shape}: "
            "they must be the same"
        )
    if reference.ndim != 5:
        raise UserError(_rank_message(reference.shape))
    for dtype in (reference.dtype, distorted.dtype):
        if dtype != jnp.uint8 and not jnp.issubdtype(dtype, jnp.floating):
            raise UserError(f"pixels are uint8 or float in 0..255, not {dtype}: convert them")
    height, width = reference.shape[2:4]
    if min(height, width) < min_side:
        raise UserError(
            f"{metric} needs frames of at least {min_side}x{min_side} pixels, got "
            f"{height}x{width}: use larger frames or leave this metric out"
        )
    return jnp.asarray(reference, jnp.float32), jnp.asarray(distorted, jnp.float32)


def _gaussian_band(size: int) -> np.ndarray:
    """Matrix ``[size, size - 10]`` whose columns are the Gaussian window at each whole position."""
    offsets = np.arange(SSIM_MIN_SIDE) - SSIM_MIN_SIDE // 2
    taps = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    band = np.zeros((size, size - SSIM_MIN_SIDE + 1))
    for column in range(band.shape[1]):
        band[column : column + SSIM_MIN_SIDE, column] = taps / taps.sum()
    return band.astype(np.float32)


def _blur(x: jax.Array) -> jax.Array:
    """Gaussian mean over every whole window of ``[batch, time, height, width, channel]``.

    Two banded matrix products, which at 256 and at 1024 pixels a side beat a depthwise convolution
    and a sum of shifted slices on a CPU. HIGHEST keeps them in float32 on a TPU's matrix unit.
    Longer sides are cut into parts, so that the cost of a pixel does not grow with them.
    """
    for axis, product in ((2, "bthwc,hr->btrwc"), (3, "btrwc,ws->btrsc")):
        windows = x.shape[axis] - SSIM_MIN_SIDE + 1
        parts = []
        for first in range(0, windows, _MOST_WINDOWS):
            last = min(first + _MOST_WINDOWS, windows) + SSIM_MIN_SIDE - 1
            part = jax.lax.slice_in_dim(x, first, last, axis=axis)
            band = _gaussian_band(last - first)
            parts.append(jnp.einsum(product, part, band, precision=jax.lax.Precision.HIGHEST))
        x = parts[0] if len(parts) == 1 else jax.lax.concatenate(parts, axis)
    return x


def _ssim_terms(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Luminance and contrast-structure maps of pixels that were shifted by -127.5.

    The shift leaves variances as they are and halves the largest value, which quarters the
    rounding error of ``E[x^2] - E[x]^2`` in float32.
    """
    mean_x, mean_y = _blur(x), _blur(y)
    covariance = _blur(x * y) - mean_x * mean_y
    variances = _blur(x * x + y * y) - mean_x**2 - mean_y**2  # only their sum is needed
    contrast = (2 * covariance + _C2) / (variances + _C2)
    mean_x, mean_y = mean_x + _CENTRE, mean_y + _CENTRE
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    return luminance, contrast


def _halve(x: jax.Array) -> jax.Array:
    """Means of 2x2 blocks of ``[..., height, width, channel]``; odd sides repeat the last line."""
    for axis in (x.ndim - 3, x.ndim - 2):
        if x.shape[axis] % 2:
            pad = [(0, 0)] * x.ndim
            pad[axis] = (0, 1)
            x = jnp.pad(x, pad, mode="edge")
        even = jax.lax.slice_in_dim(x, 0, None, stride=2, axis=axis)
        odd = jax.lax.slice_in_dim(x, 1, None, stride=2, axis=axis)
        x = (even + odd) / 2
    return x
