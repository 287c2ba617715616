"""Pictures of any size as grids of tokens: their numbers, and how many are computed at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.core.once import say_once
from bsq_jax.models.tokenizer import TokenizerShape

Grid = tuple[int, int]
Size = tuple[int, int]

MOST_TOKENS = 2**15
"""Of a picture that is coded as a whole where the memory should stay small: 1920x1088 pixels in
patches of 8x8. `bsq_jax.Codec` codes larger ones in tiles, and of clips of models with a window
`Tokenizer` computes so many tokens at a time."""
MOST_TOKENS_IN_WINDOWS = 2**17
"""Of a picture or clip that `Tokenizer` computes at once with attention within windows of a frame,
whose memory grows with the tokens: 3840x2176 pixels in patches of 8x8."""
MOST_TOKENS_OF_WHOLE_FRAMES = 2**13
"""Likewise with attention over whole frames, whose memory grows with their square."""
MOST_FRAMES = 16
"""Frames that are computed at once where a model has a window."""


def grid_of(shape: TokenizerShape, height: int, width: int) -> Grid:
    """(rows, columns) of the tokens of a picture of so many pixels."""
    return whole_units((height, width), shape.patch)


def unit_of(shape: TokenizerShape, what: str) -> Size:
    """(rows, columns) of a token in arrays of pixels to encode, or in those of tokens."""
    return shape.patch if what == "encode" else (1, 1)


def whole_units(sides: Sequence[int], unit: Size) -> Grid:
    """How many units cover an array of these sides."""
    return -(-sides[0] // unit[0]), -(-sides[1] // unit[1])


def frames_at_once(shape: TokenizerShape, frames: int, tokens: int) -> int:
    """Frames of tokens of a clip that are computed at once: all, or a power of two.

    Args:
      shape: of the model.
      frames: of tokens of the clip.
      tokens: of a frame.
    """
    if not (shape.window and shape.visibility.streams):
        return frames
    most = min(max(MOST_TOKENS // tokens, 1), MOST_FRAMES)
    return min(frames, 2 ** (most.bit_length() - 1))


def most_at_once(shape: TokenizerShape) -> int:
    """The most tokens of a picture or clip that are computed at once."""
    most = MOST_TOKENS_IN_WINDOWS if shape.spatial_window else MOST_TOKENS_OF_WHOLE_FRAMES
    own: int = shape.token_frames(shape.frames) * shape.tokens
    return max(most, own)


def check_tokens(shape: TokenizerShape, grid: Grid, frames: int, given: str) -> None:
    """Refuses pictures and clips that take too much memory at once.

    Args:
      shape: of the model; those of its own size are never refused.
      grid: (rows, columns) of their tokens.
      frames: of tokens of a clip; 1 of a picture.
      given: what was given, for the message.

    Raises:
      UserError: there are too many tokens.
    """
    tokens, most = math.prod(grid), most_at_once(shape)
    together = tokens * frames_at_once(shape, frames, tokens)
    if grid == shape.grid or together <= most:
        return
    frame = f"{grid[0]}x{grid[1]} tokens" + (f" in each of {frames} frames" if frames > 1 else "")
    why = "attention within windows" if shape.spatial_window else "attention over whole frames"
    raise UserError(
        f"{given} has {frame}, and with {why} this model computes at most {most:,d} tokens at "
        "once: use bsq_jax.Codec, which codes pictures and videos of any size in tiles"
    )


def say_what_another_size_means(shape: TokenizerShape, grid: Grid) -> None:
    """Says once that learned positions are interpolated, if they are for this grid."""
    if shape.positions == "learned" and grid != shape.grid:
        say_once(
            f"this model has learned positions for pictures of {shape.image_height}x"
            f"{shape.image_width}: for other sizes they are interpolated"
        )


class Pictures:
    """Arrays of pictures or clips as one that is cut into chunks, filled up to one size.

    Attributes:
      shape: ``[batch, time, row, column, channel]``.
      dtype: of all arrays.
    """

    def __init__(self, arrays: Sequence[np.ndarray], unit: Size, grid: Grid):
        """Copies nothing.

        Args:
          arrays: ``[batch, time, row, column, channel]`` each, all of one type and length.
          unit: (rows, columns) whose multiples are reached by repeating the last row and column.
          grid: of units; zeros are beyond what is repeated.
        """
        self._unit, self._sides = unit, (grid[0] * unit[0], grid[1] * unit[1])
        first = arrays[0]
        self.shape = sum(map(len, arrays)), first.shape[1], *self._sides, first.shape[4]
        self.dtype = first.dtype
        self._whole = None
        if len(arrays) == 1 and first.shape[2:4] == self._sides:
            self._whole = first
        self._each = [] if self._whole is not None else [row[None] for a in arrays for row in a]

    def __len__(self) -> int:
        """Number of pictures or clips."""
        return self.shape[0]

    def __getitem__(self, chunk: slice) -> np.ndarray:
        """Some of them, ``[batch, time, row, column, channel]``."""
        if self._whole is not None:
            return self._whole[chunk]
        return np.concatenate([self._filled_up(array) for array in self._each[chunk]])

    def _filled_up(self, array: np.ndarray) -> np.ndarray:
        for sides, mode in ((self._unit, "edge"), (self._sides, "constant")):
            down, across = (-n % side for n, side in zip(array.shape[2:4], sides, strict=True))
            if down or across:
                padding = ((0, 0), (0, 0), (0, down), (0, across), (0, 0))
                array = np.pad(array, padding, mode=mode)  # type: ignore[call-overload]
        return array
