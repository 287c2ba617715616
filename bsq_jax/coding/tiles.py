"""Pictures of any size as tiles of one size, and back without seams."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator

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
        sizes = zip((self.height, self.width), self.tile, strict=True)
        most = min((tile // 2 for size, tile in sizes if size > tile), default=self.overlap)
        if not 0 <= self.overlap <= most:
            raise UserError(
                f"an overlap of {self.overlap} pixels: tiles of {self.tile[0]}x{self.tile[1]} may "
                f"share 0 to {max(most, 0)}"
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

    def cut(self, frames: np.ndarray, part: slice = slice(None)) -> np.ndarray:
        """Tiles of frames, row by row.

        Args:
          frames: ``[time, height, width, channel]``.
          part: which of the tiles.

        Returns:
          ``[tile, time, tile height, tile width, channel]``.
        """
        rows, columns = self.starts
        corners = [(y, x) for y in rows for x in columns][part]
        return np.stack([self._filled_up(frames, y, x) for y, x in corners])

    def _filled_up(self, frames: np.ndarray, y: int, x: int) -> np.ndarray:
        height, width = self.tile
        tile = frames[:, y : y + height, x : x + width]
        down, across = height - tile.shape[1], width - tile.shape[2]
        if not (down or across):
            return tile
        return np.pad(tile, ((0, 0), (0, down), (0, across), (0, 0)), mode="edge")

    def join(self, tiles: np.ndarray) -> np.ndarray:
        """Frames of tiles; where tiles overlap, one fades into the other.

        Args:
          tiles: float32 ``[tile, time, tile height, tile width, channel]``.

        Returns:
          float32 ``[time, height, width, channel]``; where one tile alone lies, its very values.
        """
        return np.concatenate(list(self.bands([tiles])), axis=1)

    def bands(self, pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """As `join`, a few rows at a time, so that memory holds one row of tiles.

        Args:
          pieces: the tiles in their order, some at a time, each as `join` takes them.

        Yields:
          float32 ``[time, rows, width, channel]``, from the top down.
        """
        rows, columns = self.starts
        down, across = (
            _shares(starts, tile, self.overlap)
            for starts, tile in zip(self.starts, self.tile, strict=True)
        )
        height, width = self.tile[0], columns[-1] + self.tile[1]
        band = np.zeros(0, np.float32)
        for number, tile in enumerate(itertools.chain.from_iterable(pieces)):
            row, column = divmod(number, len(columns))
            if not number:
                band = np.zeros((len(tile), height, width, tile.shape[-1]), np.float32)
            elif not column:  # nothing comes any more to the rows above this row of tiles
                done = rows[row] - rows[row - 1]
                yield band[:, :done, : self.width]
                band = np.concatenate([band[:, done:], np.zeros_like(band[:, :done])], axis=1)
            share = down[row][:, None, None] * across[column][:, None]
            band[:, :, columns[column] : columns[column] + self.tile[1]] += tile * share
        yield band[:, : self.height - rows[-1], : self.width]


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
