"""The tokens of a file that was just coded: what each takes in it, and what comes of other bits.

For what shows people how a codec works. Coding itself keeps no tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from bsq_jax.coding.file_encoder import Coding, FileEncoder, Rate
from bsq_jax.coding.prior_coder import PriorCoder
from bsq_jax.coding.tile_tokenizer import TileTokenizer
from bsq_jax.core.errors import UserError
from bsq_jax.models.prior.entropy_coder import chance_of_one


@dataclasses.dataclass(frozen=True)
class Place:
    """Which token shows at a pixel.

    Attributes:
      row: of the token in the grid of its frame.
      column: likewise.
      box: first row, first column, and those behind the last ones, of its patch in pixels; the
        patch may reach over the edge of the frame, the box does not.
    """

    row: int
    column: int
    box: tuple[int, int, int, int]


class CodedTokens:
    """Frames that are coded, and their tokens.

    The tokens of a frame are one grid. Where the frame is coded in tiles, theirs lie side by side
    in it; of tiles that overlap some tokens then show only faintly or not at all.

    Attributes:
      file: the bytes of the file.
      tokens: uint8 ``[time, row, column, bit]``; of models with ``model.patch_time`` these are
        fewer frames than there are of pixels.
      costs: how many bits of the file each of these bits takes, float64 of the same shape: minus
        the logarithm of its probability, or 1 without a prior. What the arithmetic coder adds is at
        most some 64 bits for each chunk of the file.
      mode: ``prior`` or ``raw``.
    """

    def __init__(
        self,
        tokenizer: TileTokenizer,
        coder: PriorCoder | None,
        coding: Coding,
        groups: Sequence[np.ndarray],
        rate: Rate,
    ):
        """Codes frames; `Codec.coded_tokens` is the way here.

        Args:
          tokenizer: of the frames.
          coder: of the tokens; needed with the mode ``prior`` alone.
          coding: how the file is coded.
          groups: of frames that are coded together, uint8 ``[time, height, width, 3]``.
          rate: of the file.

        Raises:
          UserError: such frames cannot be coded so.
        """
        height, width = groups[0].shape[1:3]
        self._tokenizer, self._coding = tokenizer, coding
        self._tiles = tokenizer.tiles(height, width, coding.tile, coding.overlap)
        encoder = FileEncoder(tokenizer, coder, coding, (height, width))
        encoder.header(sum(map(len, groups)), rate)  # an impossible rate shows before the work
        added = [encoder.add(group) for group in groups]
        self.file, self.mode = encoder.finish(rate), coding.mode
        self._frames = [len(group) for group in groups]
        self._layout = tokenizer.coder(self._tiles)
        grids = [self._layout.side_by_side(frame) for part in added for frame in part.tokens]
        self.tokens = np.stack(grids)
        self.costs = np.ones(self.tokens.shape)
        if coder is not None:
            one = chance_of_one(np.stack([grid for part in added for grid in part.logits]))
            self.costs = -np.log2(np.where(self.tokens == 1, one, 1 - one))

    def decode(self, tokens: np.ndarray | None = None) -> np.ndarray:
        """The frames of tokens, uint8 ``[time, height, width, 3]``.

        Args:
          tokens: as `tokens`, with other bits; None: as they are, which gives what the file does.

        Raises:
          UserError: a token names no code.
        """
        parts = self._parts(self._checked(tokens))
        coder = self._coder()
        return np.concatenate([coder.decode(part, count) for part, count in parts])

    def decode_frame(self, frame: int, tokens: np.ndarray | None = None) -> np.ndarray:
        """One frame of `decode`, computed with as few others as gives the same pixels."""
        parts = self._parts(self._checked(tokens))
        coder, first = self._coder(), 0
        for part, count in parts:
            if frame < first + count or self._coding.stream:
                made = coder.decode(part, count)
                if frame < first + count:
                    return made[frame - first]
            first += count
        raise UserError(f"frame {frame} of {first}: there is none")

    def flipped(self, time: int, row: int, column: int, bits: Sequence[int]) -> np.ndarray:
        """`tokens` with some bits of one token as their opposite.

        Raises:
          UserError: there is no such bit, or no code has these bits.
        """
        changed = self.tokens.copy()
        places = [(time, row, column, bit) for bit in bits]
        for place in places:
            if not all(0 <= at < size for at, size in zip(place, changed.shape, strict=True)):
                raise UserError(
                    f"bit {place[3]} of the token in row {row}, column {column} of frame {time}: "
                    "there is none"
                )
            changed[place] ^= 1
        return self._checked(changed)

    def token_frame(self, frame: int) -> int:
        """Which frame of `tokens` a frame of pixels is decoded from."""
        count, first = self._tokenizer.shape.token_frames, 0
        for frames in self._frames:
            if frame < frames:
                return first + int(count(frame + 1)) - 1
            first, frame = first + int(count(frames)), frame - frames
        raise UserError(f"frame {frame} behind the last one: there is none")

    def place(self, y: int, x: int) -> Place:
        """The token that shows at a pixel, most of all where several do.

        Raises:
          UserError: there is no such pixel.
        """
        if not (0 <= y < self._tiles.height and 0 <= x < self._tiles.width):
            raise UserError(f"the pixel in row {y}, column {x} is outside the frame")
        (rows, tops), (columns, lefts) = self._seen
        patch, size = self._tokenizer.shape.patch, (self._tiles.height, self._tiles.width)
        top, left = int(tops[y]), int(lefts[x])
        bottom, right = (min(a + b, c) for a, b, c in zip((top, left), patch, size, strict=True))
        return Place(int(rows[y]), int(columns[x]), (top, left, bottom, right))

    def as_pixels(self, grid: np.ndarray) -> np.ndarray:
        """Values of the tokens of a frame ``[row, column]``, at its pixels ``[height, width]``."""
        (rows, _), (columns, _) = self._seen
        return grid[rows][:, columns]

    @functools.cached_property
    def _seen(self) -> Any:
        """For rows of pixels and for columns: which of the grid shows, and where it begins."""
        sizes = (self._tiles.height, self._tiles.width)
        sides = zip(
            self._tiles.starts, self._tiles.tile, self._tokenizer.shape.patch, sizes, strict=True
        )
        return [_shown(*side) for side in sides]

    def _checked(self, tokens: np.ndarray | None) -> np.ndarray:
        if tokens is None:
            return self.tokens
        if not self._tokenizer.layout.names_code(tokens).all():
            raise UserError("no code has these bits: flip another one")
        return tokens

    def _parts(self, tokens: np.ndarray) -> list[tuple[np.ndarray, int]]:
        """The tokens of each group as files have them, and of how many frames they are."""
        in_tiles, parts, first = self._layout.in_tiles, [], 0
        for frames in self._frames:
            last = first + int(self._tokenizer.shape.token_frames(frames))
            parts.append((np.stack([in_tiles(grid) for grid in tokens[first:last]]), frames))
            first = last
        return parts

    def _coder(self) -> Any:
        return self._tokenizer.coder(self._tiles, stream=self._coding.stream)


def _shown(
    starts: Sequence[int], tile: int, patch: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Along an axis, of each pixel the token in whose tile it lies furthest from an edge.

    Args:
      starts: of the tiles, pixels.
      tile: side of a tile, pixels.
      patch: side of a patch, pixels.
      size: of a frame, pixels.

    Returns:
      The token's number in the grid, and its first pixel; int64 ``[pixel]`` each.
    """
    pixel, first = np.arange(size)[:, None], np.asarray(starts)[None]
    from_edge = np.minimum(pixel - first, first + tile - 1 - pixel)
    chosen = from_edge.argmax(axis=1)
    inside = (np.arange(size) - np.asarray(starts)[chosen]) // patch
    return chosen * (tile // patch) + inside, np.asarray(starts)[chosen] + inside * patch
