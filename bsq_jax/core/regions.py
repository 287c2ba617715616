"""Pictures of several sizes in one batch: which places are real, and means over these alone.

A batch of grids ``[batch, time, row, column, ...]`` holds pictures that are padded at the bottom
and on the right to one size; ``sizes`` ``[batch, 2]`` says how many rows and columns of each are
real. The places are tokens, or pixels where a token has a patch of them. For padding in time see
`bsq_jax.core.clips`, whose `weighted_mean` takes the weights that `place_weights` gives.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.core.clips import with_axes


def real_tokens(sizes: Any, rows: int, columns: int) -> Any:
    """Which tokens are real, of numpy arrays on the host and of JAX arrays alike.

    Args:
      sizes: integers ``[batch, 2]``, real rows and columns of each grid.
      rows: of the padded grids.
      columns: likewise.

    Returns:
      Booleans ``[batch, row, column]``.
    """
    row = np.arange(rows, dtype=np.int32)[None, :, None] < sizes[:, 0, None, None]
    column = np.arange(columns, dtype=np.int32)[None, None, :] < sizes[:, 1, None, None]
    return row & column


def real_pixels(sizes: Any, height: int, width: int, patch: int | tuple[int, int]) -> Any:
    """Which pixels belong to real tokens; as `real_tokens`.

    Args:
      sizes: integers ``[batch, 2]``, real rows and columns of tokens of each picture.
      height: of the padded pictures in pixels.
      width: likewise.
      patch: height and width of a patch in pixels; a number is both.

    Returns:
      Booleans ``[batch, row, column]`` of pixels.
    """
    sides = np.broadcast_to(np.asarray(patch, np.int32), 2)
    return real_tokens(sizes * sides[None], height, width)


def place_weights(real: jax.Array, frames: jax.Array | None = None) -> jax.Array:
    """Weights of the places for `bsq_jax.core.clips.weighted_mean`: 1 for real ones, else 0.

    Args:
      real: booleans ``[batch, row, column]``, of `real_tokens` or `real_pixels`.
      frames: weights of the frames, float ``[batch, time]``; None: a time axis of 1, for images.

    Returns:
      Float32 ``[batch, time, row, column]``. Values of weight 0 must be finite there, see
      `picture_means`.
    """
    weights = jnp.asarray(real, jnp.float32)[:, None]
    return weights if frames is None else weights * with_axes(jnp.asarray(frames, jnp.float32), 4)


def picture_means(values: jax.Array, real: jax.Array) -> jax.Array:
    """The mean of each frame over its real places, whatever padding holds, NaN included.

    Args:
      values: float ``[batch, time, row, column, ...]``.
      real: booleans ``[batch, row, column]``, at least one a picture.

    Returns:
      ``[batch, time]`` in the dtype of `values`.
    """
    there = with_axes(jnp.asarray(real)[:, None], values.ndim)
    axes = tuple(range(2, values.ndim))
    places = jnp.sum(there, axis=axes, dtype=jnp.int32)  # exact, and one a picture
    each = values[0, 0].size // (values.shape[2] * values.shape[3])
    total = jnp.sum(jnp.where(there, values, 0), axis=axes)
    return total / (places.astype(values.dtype) * each)
