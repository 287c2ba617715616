"""Tokens to bytes and back with a prior of neighbourhoods, for frames of any size.

The order of the bits in a stream: frame by frame; in a frame step by step
(`bsq_jax.models.prior.shape.step_at`); in a step bit by bit, the first first; of one bit token by
token, row by row. Encoding computes a frame at once, decoding goes through its steps.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from bsq_jax.models.prior.entropy_coder import Decoder, Encoder
from bsq_jax.models.prior.neighbourhood_prior import NeighbourhoodPrior
from bsq_jax.models.prior.neighbourhood_steps import (
    Cache,
    Frame,
    Tokens,
    contexts_of_step,
    empty_cache,
    logits_of_frame,
)
from bsq_jax.models.prior.network import PriorNumbers
from bsq_jax.models.prior.shape import PriorShape, tokens_by_step
from bsq_jax.models.prior.token_bits import TokenBits

_LEAST_SLOTS = 64  # of a frame; more in powers of two
_CHUNK = 256  # tokens computed at once
_SMALL_CHUNK = 32  # where a step has fewer


class NeighbourhoodCoder:
    """Codes tokens with one prior.

    There are two programs for each power of two that numbers of tokens of a frame are rounded up
    to, one that encodes and one that decodes, whatever the sizes of frames.
    """

    def __init__(self, model: NeighbourhoodPrior, params: Any):
        """Takes a network and its parameters."""
        self.shape = model.shape
        numbers = jax.jit(functools.partial(model.apply, method="numbers"))
        self._numbers: PriorNumbers = numbers({"params": params})
        self._bits = TokenBits(model.shape, params)

        def logits(*arguments: Any, chunk: int) -> Any:
            return logits_of_frame(model.shape, *arguments, chunk)

        def contexts(*arguments: Any, chunk: int) -> Any:
            return contexts_of_step(model.shape, *arguments, chunk)

        self._logits: Any = jax.jit(logits, static_argnames="chunk", donate_argnums=4)
        self._contexts: Any = jax.jit(contexts, static_argnames="chunk", donate_argnums=5)

    @property
    def programs(self) -> int:
        """How many programs were compiled."""
        return sum(int(function._cache_size()) for function in (self._logits, self._contexts))

    def stream(self, rows: int, columns: int, bits: int) -> NeighbourhoodStream:
        """See `bsq_jax.coding.prior_coder.PriorCoder`."""
        return NeighbourhoodStream(self, (rows, columns), bits)


class NeighbourhoodStream:
    """Codes the frames of one picture or video in order; for encoding or for decoding."""

    def __init__(self, coder: NeighbourhoodCoder, grid: tuple[int, int], bits: int):
        """See `NeighbourhoodCoder.stream`."""
        self._coder, self._grid, self._kept = coder, grid, bits
        self._count, self._number = grid[0] * grid[1], 0
        self._order = tokens_by_step(coder.shape.steps(*grid))
        self._slots = max(_LEAST_SLOTS, 1 << (self._count - 1).bit_length())
        self._before = np.zeros((self._count, coder.shape.bits), np.int8)
        self._cache: Cache | None = None  # made when there is a frame: a header may claim any size

    @property
    def steps(self) -> int:
        """See `bsq_jax.coding.prior_coder.PriorStream`."""
        return len(self._order)

    def encode(self, frame: np.ndarray, encoder: Encoder) -> None:
        """See `bsq_jax.coding.prior_coder.PriorStream`."""
        coder, bits = self._coder, frame.reshape(self._count, self._kept)
        signs = self._signs(bits)
        tokens = self._tokens(np.arange(self._count), signs, self._slots)
        chunk = min(_CHUNK, self._slots)
        made, self._cache = coder._logits(
            coder._numbers,
            tokens.signs,
            tokens.before,
            self._frame(),
            self._begun(chunk),
            chunk=chunk,
        )
        logits = np.asarray(made)
        for step in self._order:
            encoder.write(bits[step].T, logits[step, : self._kept].T)
        self._next(signs)

    def decode(self, decoder: Decoder) -> np.ndarray:
        """See `bsq_jax.coding.prior_coder.PriorStream`."""
        coder = self._coder
        bits = np.zeros((self._count, self._kept), np.uint8)
        signs = np.zeros((self._count, coder.shape.bits), np.int8)
        known = np.zeros(0, np.int64)
        for step in self._order:
            sums = self._contexts_of(known, step, signs)
            bits[step] = coder._bits.decode(sums, self._kept, decoder.read_levels)
            signs[step] = self._signs(bits[step])
            known = step
        if coder.shape.window > 1:  # the next frame looks at the last tokens of this one too
            self._contexts_of(known, np.zeros(0, np.int64), signs)
        self._next(signs)
        return bits.reshape(*self._grid, self._kept)

    def _contexts_of(self, known: np.ndarray, step: np.ndarray, signs: np.ndarray) -> np.ndarray:
        """What predicts tokens, float32 ``[token, hidden]``, once those before are known."""
        coder = self._coder
        room = room_of_step(coder.shape, self._slots)
        chunk = _CHUNK if room % _CHUNK == 0 else _SMALL_CHUNK
        content, query = (self._tokens(places, signs, room) for places in (known, step))
        contexts, self._cache = coder._contexts(
            coder._numbers,
            content,
            query,
            np.int32(max(len(known), len(step))),
            self._frame(),
            self._begun(chunk),
            chunk=chunk,
        )
        return np.asarray(contexts)[: len(step)]

    def _tokens(self, places: np.ndarray, signs: np.ndarray, room: int) -> Tokens:
        def filled(rows: np.ndarray, value: int = 0) -> np.ndarray:
            out = np.full((room, *rows.shape[1:]), value, rows.dtype)
            out[: len(rows)] = rows
            return out

        place = filled(places.astype(np.int32), -1)
        return Tokens(place, filled(signs[places]), filled(self._before[places]))

    def _signs(self, bits: np.ndarray) -> np.ndarray:
        signs = np.zeros((len(bits), self._coder.shape.bits), np.int8)
        signs[:, : self._kept] = 2 * bits.astype(np.int8) - 1
        return signs

    def _frame(self) -> Frame:
        return Frame(*np.array([self._number, *self._grid], np.int32))

    def _begun(self, chunk: int) -> Cache:
        return self._cache or empty_cache(self._coder.shape, self._slots, chunk)

    def _next(self, signs: np.ndarray) -> None:
        self._before, self._number = signs, self._number + 1


def room_of_step(shape: PriorShape, slots: int) -> int:
    """The most tokens that a step may have in frames of up to so many, and some more.

    A multiple of the chunks that these are computed in.
    """
    most = slots // 2
    if shape.order == "raster":
        # A step has n tokens if there are n rows and (n - 1) (C + 1) + 1 columns.
        each, most = shape.reach[1] + 1, 1
        while (most + 1) * (most * each + 1) <= slots:
            most += 1
    return -(-most // _SMALL_CHUNK) * _SMALL_CHUNK
