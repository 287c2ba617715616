"""Frames of any size to tokens and back: cut into tiles, each of which a tokenizer takes.

Tokens of several frames have one layout in all of `bsq_jax.coding`, that of files:
``[time, tile, token, bit]`` in uint8, of each token the first bits that are kept.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from einops import rearrange

from bsq_jax.coding.header import NATIVE
from bsq_jax.coding.tile_choice import SMALLEST_BATCH, check_tokens, filled_up
from bsq_jax.coding.tiles import Tiles
from bsq_jax.core.errors import UserError
from bsq_jax.core.pixels import pixels_to_bytes
from bsq_jax.core.progress import progress
from bsq_jax.inference.checked_arrays import chunks
from bsq_jax.inference.tokenizer import Tokenizer

MOST_PIXELS = 2**26
"""Of a frame; larger ones are refused."""

_FRAMES_AT_ONCE = 8  # of an image model
_TOKENS_AT_ONCE = 2**15  # of tiles of the model's own size, or of frames


class TileTokenizer:
    """What a codec asks a tokenizer about tiles.

    Attributes:
      tokenizer: the tokenizer.
      shape: of its model.
      layout: of its tokens.
      tile: (height, width) that the model was built for, pixels.
      group: frames that are encoded together.
    """

    def __init__(self, tokenizer: Tokenizer):
        """Wraps a tokenizer."""
        self.tokenizer, self.shape = tokenizer, tokenizer.shape
        self.layout = tokenizer.model.quantizer.layout
        self.tile = (self.shape.image_height, self.shape.image_width)
        self.group = self.shape.frames if self.shape.frames > 1 else _FRAMES_AT_ONCE

    @property
    def streams(self) -> bool:
        """Whether a clip of any length can be coded as one.

        So it is with a window of frames and rotary positions: no frame then needs more memory than
        those before, and attention sees no distance that it has not seen in training. Clips of
        tokens of several frames (``model.patch_time``) are coded one by one.
        """
        shape = self.shape
        windowed = shape.frames > 1 and shape.window > 0 and shape.patch_time == 1
        return windowed and shape.visibility.streams and shape.positions == "rotary"

    def tiles(
        self, height: int, width: int, tile: tuple[int, int] | None, overlap: int, frames: int = 1
    ) -> Tiles:
        """How frames of this size are cut.

        Args:
          height: of a frame, pixels.
          width: of a frame, pixels.
          tile: (height, width) of a tile in pixels; `NATIVE` for the whole frame; None: the tile
            that the model was built for.
          overlap: pixels that neighbours share at least.
          frames: that are computed together.

        Raises:
          UserError: the overlap does not suit the tiles, or these are too large.
        """
        if tile is None or tile == self.tile:
            return Tiles(height, width, self.tile, overlap)
        if tile == NATIVE:
            tile = filled_up(self.shape, height, width)
        check_tokens(self.shape, tile, frames)
        return Tiles(height, width, tile, overlap)

    def coder(self, tiles: Tiles, *, stream: bool = False, shown: bool = False) -> TileCoder:
        """What encodes or decodes the frames of one file.

        Args:
          tiles: how they are cut.
          stream: they are one clip.
          shown: show progress where there are many tiles.
        """
        return TileCoder(self, tiles, stream=stream, shown=shown)


class TileCoder:
    """Encodes and decodes the groups of frames of one file in order, tile by tile.

    Attributes:
      grid: (rows, columns) of the tokens of a frame, those of its tiles side by side.
      tokens: of a tile.
    """

    def __init__(self, model: TileTokenizer, tiles: Tiles, *, stream: bool, shown: bool):
        """See `TileTokenizer.coder`."""
        self._model, self._tiles, self._shown = model, tiles, shown
        patch = model.shape.patch
        self._rows, self._columns = tiles.tile[0] // patch[0], tiles.tile[1] // patch[1]
        self.tokens = self._rows * self._columns
        self.grid = tiles.grid[0] * self._rows, tiles.grid[1] * self._columns
        frames = 1 if stream else model.shape.frames
        together = _TOKENS_AT_ONCE if tiles.tile == model.tile else SMALLEST_BATCH
        most = max(together // (self.tokens * frames), 1)
        self._pieces = list(chunks(len(tiles), 1 << (most.bit_length() - 1)))
        tokenizer = model.tokenizer
        sizes = [piece.stop - piece.start for piece in self._pieces]
        self._streams = [tokenizer.stream(size) for size in sizes] if stream else None

    def encode(self, frames: np.ndarray, bits: int) -> np.ndarray:
        """Tokens of one group of frames.

        Args:
          frames: uint8 ``[time, height, width, 3]``.
          bits: how many of a token's bits are kept, the first ones.

        Returns:
          uint8 ``[time, tile, token, bit]``; of models with ``model.patch_time`` these are fewer
          frames than the pixels have.
        """
        count = self._model.shape.token_frames(len(frames))
        tokens = np.empty((count, len(self._tiles), self.tokens, bits), np.uint8)
        for times in self._times(len(frames)):
            for number, piece in self._each_piece():
                cut = self._tiles.cut(frames[times], piece)
                tokens[times, piece] = self._encode(cut, number)[..., :bits]
        return tokens

    def decode(self, tokens: np.ndarray, count: int) -> np.ndarray:
        """Frames of one group of tokens, see `encode`; uint8 ``[time, height, width, 3]``.

        Args:
          tokens: as `encode` gave them.
          count: how many frames they are of.
        """
        tiles = self._tiles
        frames = np.empty((count, tiles.height, tiles.width, 3), np.uint8)
        for times in self._times(len(tokens)):
            top = 0
            pieces = (
                self._decode(tokens[times, piece], number, count)
                for number, piece in self._each_piece()
            )
            for band in tiles.bands(pieces):
                frames[times, top : top + band.shape[1]] = pixels_to_bytes(band)
                top += band.shape[1]
        return frames

    def side_by_side(self, frame: np.ndarray) -> np.ndarray:
        """One grid ``[row, column, bit]`` of the tokens ``[tile, token, bit]`` of a frame."""
        axes = {"down": self._tiles.grid[0], "row": self._rows}
        joined = "(down across) (row column) bit -> (down row) (across column) bit"
        return rearrange(frame, joined, **axes)

    def in_tiles(self, grid: np.ndarray) -> np.ndarray:
        """The inverse of `side_by_side`."""
        axes = {"down": self._tiles.grid[0], "across": self._tiles.grid[1], "row": self._rows}
        cut = "(down row) (across column) bit -> (down across) (row column) bit"
        return rearrange(grid, cut, **axes)

    def _times(self, frames: int) -> Iterator[slice]:
        """Frames that are computed together: of clips all, unless they are a stream."""
        if self._model.shape.frames > 1 and self._streams is None:
            return iter([slice(None)])
        return chunks(frames, max(_TOKENS_AT_ONCE // (self.tokens * len(self._tiles)), 1))

    def _each_piece(self) -> Iterator[tuple[int, slice]]:
        """The tiles that are computed together, with their number; shows how far they are."""
        quiet = not self._shown or len(self._pieces) < 2
        with progress(len(self._tiles), "tiles", quiet=quiet) as advance:
            yield from advance(
                enumerate(self._pieces), lambda numbered: numbered[1].stop - numbered[1].start
            )

    def _encode(self, cut: np.ndarray, number: int) -> np.ndarray:
        """Tokens ``[time, tile, token, L]`` of tiles ``[tile, time, height, width, 3]``."""
        if self._streams is not None:
            frames = [self._streams[number].encode(frame) for frame in np.swapaxes(cut, 0, 1)]
            bits = np.stack(frames)
        elif self._model.shape.frames == 1:
            single = cut.reshape(-1, 1, *cut.shape[2:])
            bits = self._model.tokenizer.encode(single)
            bits = np.swapaxes(bits.reshape(*cut.shape[:2], *bits.shape[2:]), 0, 1)
        else:
            bits = np.swapaxes(self._model.tokenizer.encode(cut), 0, 1)
        return rearrange(bits, "time tile row column bit -> time tile (row column) bit")

    def _decode(self, tokens: np.ndarray, number: int, count: int) -> np.ndarray:
        """Pixels ``[tile, time, height, width, 3]`` of tokens ``[time, tile, token, bit]``."""
        axes = {"row": self._rows, "column": self._columns}
        to_grids = "time tile (row column) bit -> tile time row column bit"
        grids = rearrange(tokens, to_grids, **axes)
        if self._streams is not None:
            frames = [self._streams[number].decode(frame) for frame in np.swapaxes(grids, 0, 1)]
            return np.stack(frames, axis=1)
        if self._model.shape.frames == 1:
            single = grids.reshape(-1, 1, *grids.shape[2:])
            pixels = self._model.tokenizer.decode(single)
            return pixels.reshape(*grids.shape[:2], *pixels.shape[2:])
        return self._model.tokenizer.decode(grids, frames=count)


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
