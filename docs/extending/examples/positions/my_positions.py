"""Positions that are not learned."""

import numpy as np

from bsq_jax.models.own_positions import position_embedding


@position_embedding
def fourier(frames, grid, width, scale=1.0):
    """Random Fourier features of frame, row and column (Tancik et al. 2020).

    Args:
      frames: places of the frames in their clip, integers ``[frame]``, from 0.
      grid: rows and columns of tokens in a frame.
      width: channels of a token, an even number.
      scale: standard deviation of the frequencies, in radians a token.

    Returns:
      float32 ``[frame, row, column, width]``, which is added to the tokens.
    """
    places = np.stack(np.meshgrid(frames, *map(np.arange, grid), indexing="ij"), axis=-1)
    frequencies = np.random.default_rng(0).normal(0, scale, (3, width // 2))
    phases = places @ frequencies
    return 0.02 * np.concatenate([np.sin(phases), np.cos(phases)], axis=-1)
