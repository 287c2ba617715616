"""Which tiles frames are coded in: the whole frame up to a number of tokens, and else as few tiles.

A model with ``model.spatial_window`` takes frames of any size at a cost in proportion to their
pixels, so frames are cut for the sake of memory alone: up to `inference.grids.MOST_TOKENS` tokens
(2 megapixels with patches of 8) they are whole, and the tiles of larger ones have at most so many;
of clips that are coded together the tokens of all frames count. Other models are made for one size,
which is that of their tiles unless the caller asks for another.
"""

from __future__ import annotations

import math
import re
from typing import TypeAlias

import numpy as np

from bsq_jax.coding.header import MOST_SIDE, NATIVE
from bsq_jax.coding.tiles import Tiles
from bsq_jax.core.errors import UserError
from bsq_jax.inference.grids import MOST_TOKENS_IN_WINDOWS, grid_of, most_at_once
from bsq_jax.models.patches import CHANNELS
from bsq_jax.models.tokenizer_shape import TokenizerShape

SMALLEST_BATCH = 2**12
"""Tokens that tiles of another size than the model's are computed in together, at least: with fewer
most of the time goes into other things than the network."""

MOST_STREAM_BYTES = 2**31
"""Keys and values that a clip which is coded as one may keep; larger ones are coded in groups."""

_FLOAT = 4  # bytes

Tile: TypeAlias = int | tuple[int, int] | str | None
"""Of `Codec.encode`: None for the model's choice, 0 for the whole frame, the side of square tiles
or (height, width) in pixels; or one of these as text, as ``--tile`` takes it."""


def checked_tile(tile: Tile, shape: TokenizerShape) -> tuple[int, int] | None:
    """(Height, width) of the tiles that are asked for, `NATIVE`, or None for the model's choice.

    Raises:
      UserError: they are no whole numbers, or no multiples of the patch.
    """
    wanted = _parsed(tile) if isinstance(tile, str) else tile
    if wanted is None:
        return None
    numbers = np.asarray(wanted)
    if numbers.dtype.kind not in "iu" or numbers.ndim > 1:
        raise UserError(f"tile={tile!r}: give a side in pixels, (height, width), or 0 for no tiles")
    pair = (int(numbers),) * 2 if numbers.ndim == 0 else tuple(numbers.tolist())
    if pair == NATIVE:
        return NATIVE
    patch = shape.patch
    if len(pair) != 2 or not all(
        patch <= side <= MOST_SIDE and side % patch == 0
        for side, patch in zip(pair, patch, strict=False)
    ):
        raise UserError(
            f"tiles of {'x'.join(map(str, pair))} pixels: sides must be multiples of the patch of "
            f"{patch[0]}x{patch[1]}, such as {16 * patch[0]}x{16 * patch[1]}; 0 for no tiles"
        )
    return pair[0], pair[1]


def _parsed(text: str) -> int | tuple[int, int] | None:
    """``auto``, ``native``, ``512`` or ``512x768``."""
    if text == "auto":
        return None
    if text == "native":
        return 0
    sides = [int(side) for side in text.split("x")] if re.fullmatch(r"\d+(x\d+)?", text) else []
    if not sides:
        raise UserError(
            f"tiles of '{text}': give a side in pixels, HEIGHTxWIDTH, 0 or native for no tiles, or "
            "auto"
        )
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def tokens_for(memory_mb: float, shape: TokenizerShape) -> int:
    """How many tokens fit into so many megabytes, see `bytes_a_token`.

    Raises:
      UserError: no number, fewer than `SMALLEST_BATCH`, or the cost of a token is not constant.
    """
    if not shape.spatial_window:
        raise UserError(
            "memory chooses the tiles of models with model.spatial_window, and this one has none: "
            "it needs what its own tiles need; give their size with tile instead"
        )
    if not (isinstance(memory_mb, int | float | np.number) and math.isfinite(memory_mb)):
        raise UserError(f"memory of {memory_mb!r} MB: give a number of megabytes, such as 500")
    tokens = int(memory_mb * 2**20) // bytes_a_token(shape)
    most = max(SMALLEST_BATCH, shape.spatial_window**2)
    if tokens < most:
        least = -(-most * bytes_a_token(shape) // 2**20)
        raise UserError(f"{memory_mb} MB of memory: this model needs {least} or more")
    return min(tokens, MOST_TOKENS_IN_WINDOWS)


def bytes_a_token(shape: TokenizerShape) -> int:
    """Working memory of encoding or decoding, estimated, bytes for each token.

    Counted are the arrays of one block in float32, twice over since XLA keeps some of the block
    before: the residual stream, its norm, queries, keys, values and the result of attention, two
    arrays of the MLP's hidden width, the scores within a window; and the pixels of a patch four
    times. Weights and what a process with JAX needs by itself (about 0.5 GB) come on top.
    """
    width, window = shape.width, shape.spatial_window
    block = width * (6 + 2 * shape.mlp_ratio) + shape.heads * window**2
    height, across = shape.patch
    pixels = CHANNELS * height * across * 4
    return int(_FLOAT * (2 * block + pixels))


def stream_bytes(shape: TokenizerShape, tokens: int) -> int:
    """Keys and values that the encoder or the decoder of a stream keeps, in float32.

    Args:
      shape: of a model with a window of frames.
      tokens: of a frame, all its tiles together.
    """
    halves = [shape.half(name) for name in ("encoder", "decoder")]
    most = max(half.layers * half.width for half in halves)
    return 2 * _FLOAT * most * (shape.window - 1) * tokens


def chosen_tile(
    shape: TokenizerShape, height: int, width: int, most: int, overlap: int | None
) -> tuple[int, int]:
    """As few tiles of at most `most` tokens as cover a frame; of as few the smallest and squarest.

    Args:
      shape: of a model with ``model.spatial_window``.
      height: of the frame, pixels.
      width: of the frame, pixels.
      most: tokens of a tile.
      overlap: pixels that neighbours share; None: what `usual_overlap` says.

    Returns:
      (height, width), whole windows or as long as the frame; or `NATIVE` if one tile does.

    Raises:
      UserError: no such tiles can share so many pixels.
    """
    whole = filled_up(shape, height, width)
    if tokens_of(shape, whole) <= most:
        return NATIVE
    windows = max(most // shape.spatial_window**2, 1)  # of a tile
    units = [shape.spatial_window * patch for patch in shape.patch]
    found = []
    for down in range(1, windows + 1):
        largest = down * units[0], windows // down * units[1]
        tile = min(largest[0], whole[0]), min(largest[1], whole[1])
        shared = usual_overlap(shape, tile) if overlap is None else overlap
        if not _suits(shared, tile, whole):
            continue
        grid = Tiles(height, width, tile, shared).grid
        # As many tiles need not be as large.
        even = [
            min(-(-(size + (parts - 1) * shared) // parts), size)
            for size, parts in zip(whole, grid, strict=True)
        ]
        rounded = [
            min(-(-size // unit) * unit, side)
            for size, unit, side in zip(even, units, tile, strict=True)
        ]
        if _suits(shared, (rounded[0], rounded[1]), whole):
            tile = rounded[0], rounded[1]
        found.append((grid[0] * grid[1], tile[0] * tile[1], max(tile), tile))
    if not found:
        raise UserError(
            f"an overlap of {overlap} pixels is more than half a tile of {most:,d} tokens: give "
            "less, or more memory"
        )
    best = min(found)[-1]
    return best[0], best[1]


def _suits(overlap: int, tile: tuple[int, int], whole: tuple[int, int]) -> bool:
    """Whether tiles can share so many pixels along the axes that have several."""
    return all(2 * overlap <= t or t == w for t, w in zip(tile, whole, strict=True))


def fitted(
    shape: TokenizerShape, tile: tuple[int, int], height: int, width: int
) -> tuple[int, int]:
    """A tile cut to the size of the frame, filled up to patches; `NATIVE` where it is that size."""
    whole = filled_up(shape, height, width)
    smaller = min(tile[0], whole[0]), min(tile[1], whole[1])
    return NATIVE if tile == NATIVE or smaller == whole else smaller


def filled_up(shape: TokenizerShape, height: int, width: int) -> tuple[int, int]:
    """(Height, width) of a frame that is filled up to whole patches."""
    (rows, columns), patch = grid_of(shape, height, width), shape.patch
    return rows * patch[0], columns * patch[1]


def tokens_of(shape: TokenizerShape, tile: tuple[int, int]) -> int:
    """Tokens of a tile of (height, width) pixels."""
    return math.prod(grid_of(shape, *tile))


def usual_overlap(shape: TokenizerShape, tile: tuple[int, int]) -> int:
    """Pixels that tiles share where nobody says it: enough to hide seams at a small cost.

    A patch; with windows, whose tokens near an edge see less, up to half a window where tiles are
    large.
    """
    if tile == NATIVE:
        return 0
    patch = max(shape.patch)
    half_a_window = patch * shape.spatial_window // 2
    overlap = max(patch, min(min(tile) // 16, half_a_window))
    return min(overlap, min(tile) // 2)  # of tiles of one patch they can share but half


def check_tokens(shape: TokenizerShape, tile: tuple[int, int], frames: int) -> None:
    """Refuses tiles that would need many gigabytes.

    Args:
      shape: of the model.
      tile: (height, width), pixels.
      frames: that are computed together.

    Raises:
      UserError: it has too many tokens.
    """
    tokens, most = tokens_of(shape, tile) * shape.token_frames(frames), most_at_once(shape)
    if tokens > most:
        why = "" if shape.spatial_window else (
            ", as each token attends to all others (model.spatial_window=0)"
        )  # fmt: skip
        raise UserError(
            f"{tile[0]}x{tile[1]} pixels at once, {tokens:,d} tokens: this model takes up to "
            f"{most:,d}{why}: code with smaller tiles"
        )
