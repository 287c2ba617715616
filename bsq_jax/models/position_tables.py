"""Learned positions of one size for another: tables interpolated or continued."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def fitted(table: jax.Array, grid: tuple[int, int], sizes: jax.Array | None = None) -> jax.Array:
    """Learned spatial embeddings for frames of another grid, by cubic interpolation.

    A place is taken as a fraction of the picture's height and width.

    Args:
      table: ``[row, column, width]``.
      grid: (rows, columns) of the frames.
      sizes: int32 ``[batch, 2]``, (rows, columns) that are of each picture; None: all.

    Returns:
      ``[batch or 1, rows, columns, width]``; what is outside of a picture is undefined.
    """
    if sizes is None:
        if table.shape[:2] == grid:
            return table[None]
        sizes = jnp.asarray([grid], jnp.int32)

    def resized(size: jax.Array) -> jax.Array:
        scale = size.astype(jnp.float32) / np.array(table.shape[:2], np.float32)
        shape = (*grid, table.shape[-1])
        return jax.image.scale_and_translate(
            table, shape, (0, 1), scale, jnp.zeros(2), "cubic", antialias=True
        )

    return jax.vmap(resized)(sizes)


def interpolate_spatial(
    table: np.ndarray, grid: tuple[int, int], wanted: tuple[int, int]
) -> np.ndarray:
    """Learned spatial embeddings for another grid, by cubic interpolation over rows and columns.

    Args:
      table: ``[rows * columns, width]``.
      grid: its (rows, columns).
      wanted: (rows, columns) of the result; the same grid gives the same table.

    Returns:
      ``[wanted rows * wanted columns, width]`` float32.
    """
    if grid == wanted:
        return np.asarray(table, np.float32)
    picture = jnp.asarray(table, jnp.float32).reshape(*grid, -1)
    resized = jax.image.resize(picture, (*wanted, picture.shape[-1]), "cubic", antialias=True)
    return np.asarray(resized).reshape(wanted[0] * wanted[1], -1)


def fit_temporal(table: np.ndarray | None, frames: int, width: int) -> np.ndarray:
    """Learned temporal embeddings for another number of frames.

    Args:
      table: ``[frames before, width]``, or None of an image model.
      frames: how many are wanted.
      width: channels of a token.

    Returns:
      ``[frames, width]`` float32: zeros after an image model; otherwise the first rows of the
      table, and its last row for frames beyond it.
    """
    if table is None:
        return np.zeros((frames, width), np.float32)
    rows = np.minimum(np.arange(frames), len(table) - 1)
    return np.asarray(table, np.float32)[rows]
