"""Where a token is: learned, fixed sin-cos or rotary positions over (time, row, column).

==========  ==================================  ================================================
kind        what it does                        clips longer than the model's `frames`
==========  ==================================  ================================================
learned     adds ``spatial[row, column] +       an error: there is no embedding for them
            temporal[frame]`` (published);
            interpolated for other grids
window      the same, but the spatial table is  likewise
            of a window of attention, and
            repeated over frames of any grid
sincos      adds fixed sines and cosines of     allowed; positions that were never trained
            frame, row and column
rotary      turns queries and keys in every     allowed; with a window of frames attention sees
            layer by angles of frame, row and   no distance that it has not seen in training
            column; attention sees distances
the user's  adds what a function of frame       allowed for a function, an error for a module
            numbers or a Flax module gives
==========  ==================================  ================================================

The numbers of a frame are made by numpy in float64, for clips and for streams alike, so that both
get the same ones to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from bsq_jax.core.errors import UserError
from bsq_jax.models.initializers import bias, embedding
from bsq_jax.models.own_positions import own_module
from bsq_jax.models.position_tables import fitted

KINDS = ("learned", "window", "sincos", "rotary")
MOST_PLACES = 1024
"""Rows or columns of a frame whose number a program leaves open."""
_LONGEST_PERIOD = 10_000.0  # Vaswani et al. 2017; Su et al. 2021 take it for rotary positions


class FramePositions(NamedTuple):
    """The positions of the frames that a model is given.

    Attributes:
      number: int32 ``[frame]``, each frame's place in its clip or stream, from 0.
      added: float32 ``[frame, width]``, the temporal sines and cosines, or what
        `bsq_jax.models.own_positions.own_sums` gives; width 0 for other kinds.
      angles: float32 ``[frame, pairs, 2]``, cosine and sine of the temporal rotations; 0 pairs for
        other kinds.
    """

    number: jax.Array | np.ndarray
    added: jax.Array | np.ndarray
    angles: jax.Array | np.ndarray


class Rotation(NamedTuple):
    """Cosines and sines of all tokens, float32 ``[time, token, pairs]`` each.

    Where the examples of a batch have their own, ``[batch, time, token, pairs]``.
    """

    cosine: jax.Array
    sine: jax.Array


def frame_positions(kind: str, first: int, frames: int, width: int, heads: int) -> FramePositions:
    """Positions of frames ``first .. first + frames - 1``.

    Args:
      kind: ``learned``, ``sincos``, ``rotary`` or ``module:attribute``, whose own numbers are not
        among these.
      first: place of the first frame.
      frames: how many.
      width: channels of a token.
      heads: attention heads.

    Raises:
      UserError: an unknown kind.
    """
    if kind not in KINDS and ":" not in kind:
        raise UserError(f"positions '{kind}': it must be one of {', '.join(KINDS)}")
    number = np.arange(first, first + frames)
    added = _sines(number, width) if kind == "sincos" else np.zeros((frames, 0))
    pairs = _split(width // heads)[0] if kind == "rotary" else 0
    angles = _angles(number, pairs)
    return FramePositions(
        number.astype(np.int32), added.astype(np.float32), angles.astype(np.float32)
    )


def rotation(positions: FramePositions, grid: tuple[int, int], head_width: int) -> Rotation:
    """Rotary positions of all tokens of some frames.

    The channel pairs of a head are shared out between time, rows and columns (axial rotary
    positions).

    Args:
      positions: of the frames.
      grid: (rows, columns) of a frame.
      head_width: channels of a head, an even number of at least 6.

    Returns:
      ``[time, row * column, head_width / 2]`` twice.
    """
    _, row_pairs, column_pairs = _split(head_width)
    rows, columns = grid
    frames = positions.angles.shape[0]
    parts = (
        jnp.asarray(positions.angles)[:, None, None],
        _first(rows, _angles, row_pairs, jnp.float32)[None, :, None],
        _first(columns, _angles, column_pairs, jnp.float32)[None, None],
    )
    whole = [jnp.broadcast_to(part, (frames, rows, columns, *part.shape[3:])) for part in parts]
    both = rearrange(jnp.concatenate(whole, axis=3), "t h w p two -> two t (h w) p")
    return Rotation(both[0], both[1])


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Turns channel pairs of ``[batch, time, token, head, channel]``, in float32; the type stays.

    Channel i is paired with channel i + channels / 2.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cosine, sine = (part.reshape(-1, *part.shape[-3:])[..., None, :] for part in rotation)
    turned = first * cosine - second * sine, first * sine + second * cosine
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class PositionEmbedding(nn.Module):
    """Adds what tells where a token is; for rotary positions, nothing.

    Attributes:
      kind: ``learned``, ``window``, ``sincos`` or ``rotary``.
      grid: (rows, columns) of the learned spatial table; it is interpolated for frames of another
        grid, and repeated for the kind ``window``.
      frames: rows of the learned temporal table; 1 for none.
      dtype: of the sum.
    """

    kind: str
    grid: tuple[int, int]
    frames: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: jax.Array, positions: FramePositions, sizes: jax.Array | None = None
    ) -> jax.Array:
        """Maps ``[batch, time, row, column, width]`` to the same shape.

        Args:
          x: tokens.
          positions: of the frames.
          sizes: int32 ``[batch, 2]``, real (rows, columns) of each picture; None: all are real.
        """
        rows, columns, width = x.shape[2:]
        if self.kind == "rotary":
            return x
        if self.kind == "sincos":
            parts = (
                _first(rows, _sines, width // 2, self.dtype)[:, None],
                _first(columns, _sines, width - width // 2, self.dtype)[None],
            )
            whole = [jnp.broadcast_to(part, (rows, columns, part.shape[-1])) for part in parts]
            x = x + jnp.concatenate(whole, axis=-1)[None, None]
            return x + jnp.asarray(positions.added).astype(self.dtype)[None, :, None, None]
        count = self.grid[0] * self.grid[1]
        table = self.param("spatial", embedding(None, "embed"), (count, width))
        table = table.reshape(*self.grid, width)
        if self.kind == "window":
            down, across = (
                -(-n // side) for n, side in zip((rows, columns), self.grid, strict=True)
            )
            learned = jnp.tile(table, (down, across, 1))[None, :rows, :columns]
        else:
            learned = fitted(table, (rows, columns), sizes)
        x = x + learned.astype(self.dtype)[:, None]
        if self.frames > 1:
            # Zero at first, so that a video model starts as its image model, frame by frame.
            temporal = self.param("temporal", bias(None, "embed"), (self.frames, width))
            rows_ = jnp.take(temporal, positions.number, axis=0, mode="clip")
            x = x + rows_.astype(self.dtype)[None, :, None, None]
        return x


def check_length(kind: str, last: int, frames: int) -> None:
    """Refuses frames that a model has no positions for.

    Args:
      kind: ``learned``, ``sincos``, ``rotary`` or ``module:attribute``.
      last: place of the last frame, from 0.
      frames: the model's longest clip.

    Raises:
      UserError: the positions are learned, or this is an image model, and there are too few.
    """
    if last < frames:
        return
    learned = own_module(kind) is not None if ":" in kind else kind in ("learned", "window")
    if frames > 1 and not learned:
        return
    if frames == 1:
        raise UserError(
            f"a clip of {last + 1} frames: this model takes 1 frame, it is an image model"
        )
    raise UserError(
        f"a clip of {last + 1} frames: this model has learned positions for {frames}: give fewer, "
        "or train one with model.positions=rotary"
    )


def check_width(kind: str, width: int, heads: int) -> None:
    """Refuses widths that positions of this kind do not fit.

    Raises:
      UserError: the width (sincos) or a head's (rotary) is too small or odd.
    """
    head = width // heads
    if kind == "rotary" and (head < 6 or head % 2):
        raise UserError(
            f"model.positions=rotary needs heads of an even width of at least 6, not {head}: "
            "choose model.width and model.heads anew"
        )
    if kind == "sincos" and width % 4:
        raise UserError(
            f"model.positions=sincos needs a width that 4 divides, not {width}: choose model.width"
        )


def _split(head_width: int) -> tuple[int, int, int]:
    """Channel pairs of a head for time, rows and columns; the same for images and clips."""
    pairs = head_width // 2
    temporal = max(pairs // 4, 1)
    rows = (pairs - temporal + 1) // 2
    return temporal, rows, pairs - temporal - rows


def _phases(places: np.ndarray, pairs: int) -> np.ndarray:
    """Angles in radians, float64 ``[place, pairs]``, from one radian a place downwards."""
    frequencies = _LONGEST_PERIOD ** (-np.arange(pairs) / max(pairs, 1))
    return places[:, None].astype(np.float64) * frequencies[None]


def _first(
    places: Any, function: Callable[[np.ndarray, int], np.ndarray], size: int, dtype: jnp.dtype
) -> jax.Array:
    """What a function of places and a size gives for places 0 to `places` - 1.

    The numbers are made by numpy. Where `places` is symbolic (`jax.export`), they are the first
    ones of `MOST_PLACES`, and the scope of the symbol must say that there are no more.
    """
    if isinstance(places, int):
        return jnp.asarray(function(np.arange(places), size), dtype)
    return jnp.asarray(function(np.arange(MOST_PLACES), size), dtype)[:places]


def _angles(places: np.ndarray, pairs: int) -> np.ndarray:
    """Cosines and sines of rotations, float64 ``[place, pairs, 2]``."""
    return _cosines_and_sines(_phases(places, pairs))


def _cosines_and_sines(phases: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(phases), np.sin(phases)], axis=-1)


def _sines(places: np.ndarray, width: int) -> np.ndarray:
    """Sines and cosines, float64 ``[place, width]``; an even width."""
    phases = _phases(places, width // 2)
    return np.concatenate([np.sin(phases), np.cos(phases)], axis=-1)
