"""Frames of any size to tokens and back: cut into tiles, each of which a tokenizer takes.

Tokens of several frames have one layout in all of `bsq_jax.coding`, that of files:
``[time, tile, token, bit]`` in uint8, of each token the first bits that are kept.
"""

from __future__ import annotations

import numpy as np
from einops import rearrange

from bsq_jax.coding.tiles import Tiles
from bsq_jax.core.errors import UserError
from bsq_jax.core.pixels import pixels_to_bytes
from bsq_jax.inference.tokenizer import Tokenizer

MOST_PIXELS = 2**26
"""Of a frame; larger ones are refused."""

_FRAMES_AT_ONCE = 8  # of an image model


class TileTokenizer:
    """Encodes and decodes groups of frames tile by tile.

    Attributes:
      shape: of the tokenizer's model.
      layout: of its tokens.
      tile: (height, width) of a tile, pixels.
      group: frames that are encoded together.
    """

    def __init__(self, tokenizer: Tokenizer):
        """Wraps a tokenizer."""
        self._tokenizer, self.shape = tokenizer, tokenizer.shape
        self.layout = tokenizer.model.quantizer.layout
        self.tile = (self.shape.image_height, self.shape.image_width)
        self.group = self.shape.frames if self.shape.frames > 1 else _FRAMES_AT_ONCE

    def tiles(self, height: int, width: int, overlap: int) -> Tiles:
        """How frames of this size are cut; `overlap` is in pixels."""
        return Tiles(height, width, self.tile, overlap)

    def encode(self, frames: np.ndarray, tiles: Tiles, bits: int) -> np.ndarray:
        """Tokens of one group of frames.

        Args:
          frames: uint8 ``[time, height, width, 3]``.
          tiles: how they are cut.
          bits: how many of a token's bits are kept, the first ones.

        Returns:
          uint8 ``[time, tile, token, bit]``.
        """
        cut = tiles.cut(frames)
        time = cut.shape[1]
        if self.shape.frames == 1:
            cut = cut.reshape(-1, 1, *cut.shape[2:])
        tokens = self._tokenizer.encode(cut).reshape(len(tiles), time, self.shape.tokens, -1)
        return np.ascontiguousarray(np.swapaxes(tokens, 0, 1)[..., :bits])

    def decode(self, tokens: np.ndarray, tiles: Tiles) -> np.ndarray:
        """Frames of one group of tokens, see `encode`; uint8 ``[time, height, width, 3]``."""
        time, count, _, bits = tokens.shape
        grids = np.swapaxes(tokens, 0, 1).reshape(count, time, *self.shape.grid, bits)
        if self.shape.frames == 1:
            grids = grids.reshape(-1, 1, *grids.shape[2:])
        pixels = self._tokenizer.decode(grids)
        return pixels_to_bytes(tiles.join(pixels.reshape(count, time, *pixels.shape[2:])))

    def grid(self, tiles: Tiles) -> tuple[int, int]:
        """(Rows, columns) of `side_by_side`."""
        return tiles.grid[0] * self.shape.grid[0], tiles.grid[1] * self.shape.grid[1]

    def side_by_side(self, frame: np.ndarray, tiles: Tiles) -> np.ndarray:
        """One grid ``[row, column, bit]`` of the tokens ``[tile, token, bit]`` of a frame."""
        axes = {"down": tiles.grid[0], "row": self.shape.grid[0]}
        joined = "(down across) (row column) bit -> (down row) (across column) bit"
        return rearrange(frame, joined, **axes)

    def in_tiles(self, grid: np.ndarray, tiles: Tiles) -> np.ndarray:
        """The inverse of `side_by_side`."""
        axes = {"down": tiles.grid[0], "across": tiles.grid[1], "row": self.shape.grid[0]}
        cut = "(down row) (across column) bit -> (down across) (row column) bit"
        return rearrange(grid, cut, **axes)


def checked_frames(frames: np.ndarray) -> np.ndarray:
    """Frames as an array.

    Raises:
      UserError: they are not uint8 ``[time, height, width, 3]``, or too large.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise UserError(
            f"frames must be uint8 [time, height, width, 3], not {frames.dtype} "
            f"{list(frames.shape)}"
        )
    if frames.shape[1] * frames.shape[2] > MOST_PIXELS:
        raise UserError(
            f"frames of {frames.shape[1]}x{frames.shape[2]}: over {MOST_PIXELS:,d} pixels, "
            "make them smaller or cut them"
        )
    return frames
