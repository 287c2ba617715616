"""Pictures of several sizes in one array: which places of it are of which picture.

A batch of grids ``[batch, ..., row, column, ...]`` holds pictures that are padded at the bottom and
on the right to one size; ``sizes`` ``[batch, 2]`` says how many rows and columns of each are real.
The places are tokens, or pixels where a token has a patch of them. For padding in time see
`bsq_jax.core.clips`, whose `weighted_mean` takes these as weights.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np


def real_tokens(sizes: Any, row: np.ndarray, column: np.ndarray) -> Any:
    """Which tokens of padded grids are of the pictures.

    Args:
      sizes: integers ``[batch, 2]``, real (rows, columns) of each picture, of numpy on the host or
        of JAX.
      row: numbers of the rows to ask for, ``[row]``, in any order.
      column: likewise ``[column]``.

    Returns:
      Booleans ``[batch, row, column]``, of numpy or of JAX as the sizes are.
    """
    return (row[None, :, None] < sizes[:, 0, None, None]) & (
        column[None, None, :] < sizes[:, 1, None, None]
    )


def counted(places: Any) -> Any:
    """The numbers 0 to `places` - 1 as int32, of numpy; of JAX where `places` is symbolic.

    A program that `jax.export` writes for pictures of any size has sides that are expressions.
    """
    if isinstance(places, int):
        return np.arange(places, dtype=np.int32)
    return jnp.arange(places, dtype=jnp.int32)


def real_pixels(sizes: Any, height: int, width: int, patch: tuple[int, int]) -> Any:
    """Which pixels of padded pictures belong to real tokens; as `real_tokens`.

    Args:
      sizes: integers ``[batch, 2]``, real (rows, columns) of tokens of each picture.
      height: of the padded pictures in pixels.
      width: likewise.
      patch: (height, width) of a patch in pixels.

    Returns:
      Booleans ``[batch, row, column]`` of pixels.
    """
    return real_tokens(sizes * np.array([patch], np.int32), counted(height), counted(width))
