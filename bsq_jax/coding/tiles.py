"""Pictures of any size as tiles of the size that a tokenizer takes, and back without seams."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from bsq_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How frames are cut.

    Along each axis there are as few tiles as cover it with neighbours that share `overlap` pixels
    or more; they are evenly spread, the first at the beginning, the last at the end. A frame
    smaller than a tile is filled up with its last row and column.

    Attributes:
      height: of the frames, pixels.
      width: of the frames, pixels.
      tile: (height, width) of a tile, pixels.
      overlap: least number of pixels that neighbours share.
    """

    height: int
    width: int
    tile: tuple[int, int]
    overlap: int = 0

    def __post_init__(self) -> None:
        """Checks the sizes.

        Raises:
          UserError: the overlap does not suit the tiles, or there are no pixels.
        """
        if not 0 <= self.overlap <= min(self.tile) // 2:
            raise UserError(
                f"an overlap of {self.overlap} pixels: tiles of {self.tile[0]}x{self.tile[1]} may "
                f"share 0 to {min(self.tile) // 2}"
            )
        if self.height < 1 or self.width < 1:
            raise UserError(
                f"frames of {self.height}x{self.width} pixels: there is nothing in them"
            )

    @functools.cached_property
    def starts(self) -> tuple[list[int], list[int]]:
        """First rows and first columns of the tiles."""
        sizes = (self.height, self.width)
        pair = [
            _starts(size, tile, self.overlap) for size, tile in zip(sizes, self.tile, strict=True)
        ]
        return pair[0], pair[1]

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles of a frame, (downwards, across)."""
        rows, columns = self.starts
        return len(rows), len(columns)

    def __len__(self) -> int:
        """Number of tiles of a frame."""
        return self.grid[0] * self.grid[1]

    def cut(self, frames: np.ndarray) -> np.ndarray:
        """Tiles of frames, row by row.

        Args:
          frames: ``[time, height, width, channel]``.

        Returns:
          ``[tile, time, tile height, tile width, channel]``.
        """
        missing = [max(t - s, 0) for t, s in zip(self.tile, frames.shape[1:3], strict=True)]
        padded = np.pad(frames, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
        height, width = self.tile
        rows, columns = self.starts
        return np.stack([padded[:, y : y + height, x : x + width] for y in rows for x in columns])

    def join(self, tiles: np.ndarray) -> np.ndarray:
        """Frames of tiles; where tiles overlap, one fades into the other.

        Args:
          tiles: float32 ``[tile, time, tile height, tile width, channel]``.

        Returns:
          float32 ``[time, height, width, channel]``; where one tile alone lies, its very values.
        """
        rows, columns = self.starts
        down, across = (
            _shares(starts, tile, self.overlap)
            for starts, tile in zip(self.starts, self.tile, strict=True)
        )
        height, width = rows[-1] + self.tile[0], columns[-1] + self.tile[1]
        frames = np.zeros((tiles.shape[1], height, width, tiles.shape[-1]), np.float32)
        for number, tile in enumerate(tiles):
            row, column = divmod(number, len(columns))
            y, x = rows[row], columns[column]
            share = down[row][:, None, None] * across[column][:, None]
            frames[:, y : y + self.tile[0], x : x + self.tile[1]] += tile * share
        return frames[:, : self.height, : self.width]


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    if size <= tile:
        return [0]
    count = -(-(size - overlap) // (tile - overlap))
    return [number * (size - tile) // (count - 1) for number in range(count)]


def _shares(starts: list[int], tile: int, overlap: int) -> np.ndarray:
    """Share of each tile in each of its pixels along an axis, ``[tile, pixel]``; they add to 1."""
    place = np.arange(tile) + 0.5
    ramp = np.minimum(np.minimum(place, tile - place), max(overlap, 1) / 2 + 0.5)
    total = np.zeros(starts[-1] + tile)
    for start in starts:
        total[start : start + tile] += ramp
    return np.stack([ramp / total[start : start + tile] for start in starts]).astype(np.float32)
