"""Tokens to bytes and back with a prior of tiles: the network, the steps and the arithmetic coder.

The grid of a frame is cut into tiles of the prior's size, row by row. The order of the bits in a
stream: frame by frame; in a frame 64 tiles after 64 tiles; in these step by step; in a step bit by
bit, the first first; of one bit tile by tile, and in a tile token by token. Encoding computes a
frame at once, decoding goes through its steps; the network's whole numbers are the same.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from bsq_jax.models.prior.entropy_coder import Decoder, Encoder
from bsq_jax.models.prior.network import PriorNumbers
from bsq_jax.models.prior.shape import tokens_by_step
from bsq_jax.models.prior.tile_prior import (
    PastFramesCache,
    TilePrior,
    append_frame,
    begun_frame,
    contexts_of_step,
    empty_past_frames,
    logits_of_frames,
)
from bsq_jax.models.prior.token_bits import TokenBits

_MOST_TILES = 64  # computed at once; more go in pieces of so many
_JOINED = "(down across) (rows columns) bit -> (down rows) (across columns) bit"


class TilePriorCoder:
    """Codes tokens with one prior. Programs are compiled once for each number of tiles at once."""

    def __init__(self, model: TilePrior, params: Any):
        """Takes a network and its parameters."""
        self.shape = model.shape
        numbers = jax.jit(functools.partial(model.apply, method="numbers"))
        self._numbers: PriorNumbers = numbers({"params": params})
        self._bits = TokenBits(model.shape, params)
        self._order = tokens_by_step(model.shape.steps(model.shape.rows, model.shape.columns))

        def frame(numbers: PriorNumbers, signs: jax.Array, cache: PastFramesCache) -> Any:
            logits, cache = logits_of_frames(model.shape, numbers, signs[:, None], cache)
            return logits[:, 0].astype(jnp.int16), cache

        self._frame = jax.jit(frame, donate_argnums=2)
        self._begin = jax.jit(functools.partial(begun_frame, model.shape))
        self._advance = jax.jit(functools.partial(contexts_of_step, model.shape), donate_argnums=5)
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
        firsts = range(0, self._tiles, _MOST_TILES)
        self._pieces = [slice(first, min(first + _MOST_TILES, self._tiles)) for first in firsts]
        self._caches = [
            empty_past_frames(shape, 1 << (piece.stop - piece.start - 1).bit_length())
            for piece in self._pieces
        ]

    @property
    def steps(self) -> int:
        """See `bsq_jax.coding.prior_coder.PriorStream`."""
        return len(self._coder._order)

    def encode(self, frame: np.ndarray, encoder: Encoder) -> np.ndarray:
        """See `bsq_jax.coding.prior_coder.PriorStream`."""
        cut = "(down rows) (across columns) bit -> (down across) (rows columns) bit"
        bits = rearrange(frame, cut, **self._axes)
        coder, parts = self._coder, []
        own = [bits[piece] for piece in self._pieces]
        for number, part in enumerate(own):
            signs, cache = self._padded(part), self._caches[number]
            logits, self._caches[number] = coder._frame(coder._numbers, signs, cache)
            parts.append(logits)
        found = np.empty(bits.shape, np.int16)
        for piece, part, logits in zip(self._pieces, own, parts, strict=True):
            found[piece] = np.asarray(logits)[: len(part), :, : self._kept]
            for tokens in coder._order:
                encoder.write(*(np.moveaxis(x[:, tokens], 2, 0) for x in (part, found[piece])))
        return rearrange(found, _JOINED, **self._axes)

    def decode(self, decoder: Decoder) -> np.ndarray:
        """See `bsq_jax.coding.prior_coder.PriorStream`."""
        bits = np.zeros((self._tiles, self._coder.shape.tokens, self._kept), np.uint8)
        for number, piece in enumerate(self._pieces):
            self._decode_piece(number, bits[piece], decoder)
        return rearrange(bits, _JOINED, **self._axes)

    def _decode_piece(self, number: int, bits: np.ndarray, decoder: Decoder) -> None:
        """Fills in the bits of some tiles of a frame."""
        coder, shape, tiles = self._coder, self._coder.shape, len(bits)
        cache, have = self._caches[number], np.zeros(shape.tokens, bool)
        current = coder._begin(coder._numbers, cache)

        def advance(taken: np.ndarray, tokens: np.ndarray) -> np.ndarray:
            nonlocal current
            signs = self._padded(bits[:, taken])
            contexts, current = coder._advance(
                coder._numbers, signs, taken, tokens, have, current, cache
            )
            return np.asarray(contexts)[:tiles]

        taken = coder._order[0]  # nothing is known yet, so it does not matter what is taken in
        for tokens in coder._order:
            contexts = advance(taken, tokens)
            bits[:, tokens] = coder._bits.decode(contexts, self._kept, decoder.read_levels)
            have = have.copy()
            have[tokens] = True
            taken = tokens
        if shape.window > 1:  # the next frame looks at the last tokens of this one too
            advance(taken, taken)
        self._caches[number] = coder._end(cache, current, self._padded(bits))

    def _padded(self, bits: np.ndarray) -> np.ndarray:
        """Signs of the tiles of a piece, ``[tile, token, L]``; tiles that fill up are all zeros."""
        size = 1 << (len(bits) - 1).bit_length()
        signs = np.zeros((size, bits.shape[1], self._coder.shape.bits), np.float32)
        signs[: len(bits), :, : self._kept] = 2.0 * bits - 1
        return signs
