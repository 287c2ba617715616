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
from bsq_jax.models.prior.shape import PriorShape, step_at, tokens_by_step
from bsq_jax.models.prior.token_bits import TokenBits
from bsq_jax.models.prior.wavefront_steps import contexts_of_wavefront, empty_ring, first_row

_LEAST_SLOTS = 64  # of a frame; more in powers of two
_CHUNK = 256  # tokens computed at once
_SMALL_CHUNK = 32  # where a step has fewer


class NeighbourhoodCoder:
    """Codes tokens with one prior.

    Programs depend on sizes of frames that are rounded up, so that they are few: that which encodes
    on a power of two of tokens of a frame, and so does that which decodes, but for pictures in
    raster order. These are decoded by one for a power of two of rows and of tokens of a step.
    """

    def __init__(self, model: NeighbourhoodPrior, params: Any):
        """Takes a network and its parameters."""
        self.shape = model.shape
        numbers = jax.jit(functools.partial(model.apply, method="numbers"))
        self._numbers: PriorNumbers = numbers({"params": params})
        self._bits = TokenBits(model.shape, params)

        shape = model.shape
        self._logits: Any = jax.jit(
            functools.partial(logits_of_frame, shape), static_argnames="chunk", donate_argnums=4
        )
        self._contexts: Any = jax.jit(
            functools.partial(contexts_of_step, shape), static_argnames="chunk", donate_argnums=5
        )
        self._wavefront: Any = jax.jit(
            functools.partial(contexts_of_wavefront, shape), donate_argnums=4
        )
        self.in_wavefronts = shape.window == 1 and shape.order == "raster"
        self._sees_before = bool(np.any(np.asarray(self._numbers.before)))

    @property
    def programs(self) -> int:
        """How many programs were compiled."""
        programs = self._logits, self._contexts, self._wavefront
        return sum(int(function._cache_size()) for function in programs)

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

    def encode(self, frame: np.ndarray, encoder: Encoder) -> np.ndarray:
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
        return logits[: self._count, : self._kept].reshape(frame.shape)

    def decode(self, decoder: Decoder) -> np.ndarray:
        """See `bsq_jax.coding.prior_coder.PriorStream`."""
        coder = self._coder
        # Wavefronts know no frame before: all frames then, or the first one.
        if coder.in_wavefronts and not (self._number and coder._sees_before):
            bits = self._decode_wavefronts(decoder)
            self._next(self._signs(bits))
            return bits.reshape(*self._grid, self._kept)
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

    def _decode_wavefronts(self, decoder: Decoder) -> np.ndarray:
        """Bits ``[token, bit]`` of a frame in raster order, of priors that look at no other."""
        coder, shape, (rows, columns) = self._coder, self._coder.shape, self._grid
        bits = np.zeros((self._count, self._kept), np.uint8)
        room = room_of_wavefront(max(map(len, self._order)))
        ring = empty_ring(shape, max(_LEAST_SLOTS, 1 << (rows - 1).bit_length()), room)
        size, signs = np.array(self._grid, np.int32), np.zeros((room, shape.bits), np.int8)
        order = iter(self._order)
        tokens, step = next(order), -1
        while len(tokens):
            made, ring = coder._wavefront(coder._numbers, signs, np.int32(step), size, ring)
            first, step = first_row(shape, step, columns), step + 1
            row, column = divmod(int(tokens[0]), columns)
            signs = np.zeros_like(signs)
            if step_at(shape.order, row, column, shape.reach) != step:
                continue  # in narrow pictures some steps have no tokens
            here = np.asarray(made)[row - first : row - first + len(tokens)]
            bits[tokens] = coder._bits.decode(here, self._kept, decoder.read_levels)
            signs[: len(tokens)] = self._signs(bits[tokens])
            tokens = next(order, np.zeros(0, np.int64))
        return bits

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


def room_of_wavefront(most: int) -> int:
    """Room for the tokens of the steps of a picture, which have so many at most, and one more."""
    return -(-(most + 1) // 8) * 8 if most < 32 else 1 << most.bit_length()
