"""Clips of several lengths in one batch: which frames are real, and means over these alone.

A batch ``[batch, time, ...]`` holds clips that are padded at the end to one length; ``frames``
``[batch]`` says how many frames of each are real, from 1 to ``time``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def real_frames(frames: Any, time: int) -> Any:
    """Which frames are real, of numpy arrays on the host and of JAX arrays alike.

    Args:
      frames: integers ``[batch]``, the number of real frames of each clip.
      time: length of the padded clips.

    Returns:
      Booleans ``[batch, time]``.
    """
    return np.arange(time, dtype=np.int32)[None, :] < frames[:, None]


def with_axes(array: Any, count: int) -> Any:
    """The array with axes of size 1 behind its own, `count` axes in all."""
    return array.reshape(*array.shape, *(1,) * (count - array.ndim))


def hold_last(pixels: jax.Array, frames: jax.Array) -> jax.Array:
    """Clips whose padding repeats their last real frame, whatever it held before.

    Args:
      pixels: ``[batch, time, height, width, channel]``.
      frames: integers ``[batch]``.
    """
    real = with_axes(real_frames(frames, pixels.shape[1]), pixels.ndim)
    # A sum with one term that is not zero: exact, and local to each device, unlike a gather.
    is_last = with_axes(real_frames(frames - 1, pixels.shape[1]), pixels.ndim) != real
    last = jnp.sum(jnp.where(is_last, pixels, 0), axis=1, keepdims=True, dtype=pixels.dtype)
    return jnp.where(real, pixels, last)


def weighted_mean(values: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """The mean of all values, or their weighted mean, a scalar.

    Inside one jitted program over a sharded batch it is that of the GLOBAL batch.

    Args:
      values: of any shape.
      weights: not negative, not all zero; their axes are the first axes of `values`. None: every
        value counts alike.
    """
    if weights is None:
        return jnp.mean(values)
    weights = with_axes(weights.astype(values.dtype), values.ndim)
    return jnp.sum(values * weights) / (jnp.sum(weights) * (values.size // weights.size))
