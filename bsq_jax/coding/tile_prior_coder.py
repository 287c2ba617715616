"""Tokens to bytes and back with a prior of tiles: the network, the steps and the arithmetic coder.

The grid of a frame is cut into tiles of the prior's size, row by row. The order of the bits in a
stream: frame by frame; in a frame 64 tiles after 64 tiles; in these step by step; in a step bit by
bit, the first first; of one bit tile by tile, and in a tile token by token. Encoding computes a
frame at once, decoding goes through its steps; the network's whole numbers are the same.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from bsq_jax.models.prior.entropy_coder import Decoder, Encoder
from bsq_jax.models.prior.shape import tokens_by_step
from bsq_jax.models.prior.tile_prior import (
    PastFramesCache,
    TilePrior,
    append_frame,
    empty_current_frame,
    empty_past_frames,
)
from bsq_jax.models.prior.token_bits import TokenBits

_MOST_TILES = 64  # computed at once; more go in pieces of so many


class TilePriorCoder:
    """Codes tokens with one prior. Programs are compiled once for each number of tiles at once."""

    def __init__(self, model: TilePrior, params: Any):
        """Takes a network and its parameters."""
        self.shape = model.shape
        self._params = jax.device_put(params)
        self._bits = TokenBits(model.shape, params)
        self._order = tokens_by_step(model.shape.steps(model.shape.rows, model.shape.columns))

        def frames(params: Any, signs: jax.Array, cache: PastFramesCache) -> Any:
            applied: Any = model.apply({"params": params}, signs[:, None], cache, method="frames")
            logits, cache = applied
            return logits[:, 0].astype(jnp.int16), cache

        def advance(params: Any, *arguments: Any) -> Any:
            contexts, current = model.apply({"params": params}, *arguments, method="advance")
            return contexts.astype(jnp.int32), current

        self._frames = jax.jit(frames, donate_argnums=2)
        self._advance = jax.jit(advance, donate_argnums=5)
        self._end = jax.jit(append_frame)

    def stream(self, rows: int, columns: int, bits: int) -> TilePriorStream:
        """See `bsq_jax.coding.prior_coder.PriorCoder`; whole tiles alone."""
        return TilePriorStream(self, (rows, columns), bits)


class TilePriorStream:
    """Codes the frames of one video in order; for encoding or for decoding."""

    def __init__(self, coder: TilePriorCoder, grid: tuple[int, int], bits: int):
        """See `TilePriorCoder.stream`."""
        shape = coder.shape
        down, across = grid[0] // shape.rows, grid[1] // shape.columns
        if (down * shape.rows, across * shape.columns) != grid:
            raise ValueError(f"a grid of {grid} is no whole tiles of {shape.rows}x{shape.columns}")
        self._axes = {"down": down, "rows": shape.rows, "columns": shape.columns}
        self._coder, self._tiles, self._kept = coder, down * across, bits
        size = min(_MOST_TILES, 1 << (self._tiles - 1).bit_length())
        self._size = size
        self._pieces = -(-self._tiles // size)
        self._caches = [empty_past_frames(shape, size) for _ in range(self._pieces)]

    @property
    def steps(self) -> int:
        """See `bsq_jax.coding.prior_coder.PriorStream`."""
        return len(self._coder._order)

    def encode(self, frame: np.ndarray, encoder: Encoder) -> None:
        """See `bsq_jax.coding.prior_coder.PriorStream`."""
        cut = "(down rows) (across columns) bit -> (down across) (rows columns) bit"
        bits = rearrange(frame, cut, **self._axes)
        coder, parts = self._coder, []
        own = [bits[first : first + self._size] for first in range(0, len(bits), self._size)]
        for piece, part in enumerate(own):
            signs, cache = self._padded(part), self._caches[piece]
            logits, self._caches[piece] = coder._frames(coder._params, signs, cache)
            parts.append(logits)
        for part, logits in zip(own, parts, strict=True):
            for tokens in coder._order:
                here = (slice(len(part)), tokens, slice(self._kept))
                written = (np.moveaxis(x[here], 2, 0) for x in (part, np.asarray(logits)))
                encoder.write(*written)

    def decode(self, decoder: Decoder) -> np.ndarray:
        """See `bsq_jax.coding.prior_coder.PriorStream`."""
        bits = np.zeros((self._tiles, self._coder.shape.tokens, self._kept), np.uint8)
        for piece in range(self._pieces):
            self._decode_piece(piece, bits[piece * self._size : (piece + 1) * self._size], decoder)
        joined = "(down across) (rows columns) bit -> (down rows) (across columns) bit"
        return rearrange(bits, joined, **self._axes)

    def _decode_piece(self, piece: int, bits: np.ndarray, decoder: Decoder) -> None:
        """Fills in the bits of some tiles of a frame."""
        coder, shape, tiles = self._coder, self._coder.shape, len(bits)
        current, have = empty_current_frame(shape, self._size), np.zeros(shape.tokens, bool)
        taken = coder._order[0]  # nothing is known yet, so it does not matter what is taken in
        for tokens in [*coder._order, coder._order[-1]]:
            contexts, current = coder._advance(
                coder._params,
                self._padded(bits[:, taken]),
                taken,
                tokens,
                have,
                current,
                self._caches[piece],
            )
            if have.all():
                break
            sums = np.asarray(contexts)[:tiles]
            bits[:, tokens] = coder._bits.decode(sums, self._kept, decoder.read_levels)
            have = have.copy()
            have[tokens] = True
            taken = tokens
        self._caches[piece] = coder._end(self._caches[piece], current, self._padded(bits))

    def _padded(self, bits: np.ndarray) -> np.ndarray:
        """Signs of the tiles of a piece, ``[tile, token, L]``; tiles that fill up are all zeros."""
        signs = np.zeros((self._size, bits.shape[1], self._coder.shape.bits), np.float32)
        signs[: len(bits), :, : self._kept] = 2.0 * bits - 1
        return signs
