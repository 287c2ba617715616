"""The network of `NeighbourhoodPrior` for some tokens of a frame, with the keys of all before.

An encoder takes all tokens of a frame at once, a decoder those of one step after the other; both
give what the network gives on whole clips. Each token leaves its keys and values in a cache, 8 bits
a number, where those that look at it find them. Tokens are computed in chunks, so that memory
beyond the cache is about that of the rows themselves.

Tokens are the last axis of the cache and within attention: sums over channels then run along whole
vectors of tokens, which on a CPU is several times as fast as sums along a vector.

Shapes depend on the size of the cache and the room for tokens alone: sizes of frames are values,
so that few programs code frames of all sizes. `wavefront_steps` has the steps of pictures in
raster order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from bsq_jax.models.prior.block import UNSEEN, BlockNumbers
from bsq_jax.models.prior.integer_arithmetic import lowering, powers, quotient
from bsq_jax.models.prior.neighbourhood_prior import (
    Places,
    near_of,
    offsets_of,
    visible,
)
from bsq_jax.models.prior.network import PriorNumbers
from bsq_jax.models.prior.shape import PriorShape


class Tokens(NamedTuple):
    """Some tokens of a frame; those that fill up the room come last.

    Attributes:
      place: int32 ``[token]``, row times columns plus column; -1 fills up.
      signs: of their bits, int8 ``[token, bit]``; any where they are not known.
      before: of the tokens at these places in the frame before, or zeros; likewise.
    """

    place: jax.Array | np.ndarray
    signs: jax.Array | np.ndarray
    before: jax.Array | np.ndarray


class Frame(NamedTuple):
    """A frame that is coded, int32 each.

    Attributes:
      number: from 0 on.
      rows: tokens downwards.
      columns: tokens across.
    """

    number: jax.Array | np.ndarray
    rows: jax.Array | np.ndarray
    columns: jax.Array | np.ndarray


_T = TypeVar("_T")

At = Callable[[jax.Array], jax.Array]
"""Keys or values at an offset from each token of a chunk, ``[kind or 1, width, token]``."""

Cache = tuple[tuple[jax.Array, jax.Array], ...]
"""Keys and values of each layer, int8 ``[width, slot]``: one for each token of each frame of the
window, row by row, and a margin of a chunk on both sides. A frame takes the place of the one that
is no longer seen."""

Get = Callable[[jax.Array, jax.Array, int, jax.Array], jax.Array]
"""Keys or values at an offset from each token of a chunk, ``[kind or 1, width, token]``, of: what
the cache has of a layer, the chunk's first token, the number of kinds and the offset."""

Put = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""What the cache has of a layer with keys or values ``[width, token]`` of a chunk, of: what it had,
the chunk's first token and these."""


def empty_cache(shape: PriorShape, slots: int, chunk: int) -> Cache:
    """The cache before the first frame, for frames of up to so many tokens, so many at once."""
    size = (shape.width, shape.window * slots + 2 * chunk)
    # Arrays of their own, because programs are given them to write into.
    return tuple(
        (jnp.zeros(size, jnp.int8), jnp.zeros(size, jnp.int8)) for _ in range(shape.layers)
    )


def contexts_of_step(
    shape: PriorShape,
    numbers: PriorNumbers,
    content: Tokens,
    query: Tokens,
    count: jax.Array,
    frame: Frame,
    cache: Cache,
    chunk: int,
) -> tuple[jax.Array, Cache]:
    """Takes in the tokens of one step of a frame and gives what predicts those of the next.

    Args:
      shape: of the prior.
      numbers: of the prior.
      content: tokens of a step that are known now; none before the first.
      query: tokens of the next step, whose signs are ignored; none behind the last.
      count: int32, tokens of these two, the larger number.
      frame: which one.
      cache: of all tokens before these.
      chunk: tokens that are computed at once; their room is a multiple.

    Returns:
      Contexts for `bsq_jax.models.prior.token_bits.TokenBits`, float32 ``[token, hidden]``, and the
      cache with what is known now.
    """
    places = jnp.stack([jnp.asarray(query.place), jnp.asarray(content.place)])
    where = jnp.divmod(places, jnp.asarray(frame.columns))

    def put(known: jax.Array, first: jax.Array, new: jax.Array) -> jax.Array:
        here = _part(places[1], first, chunk)
        slot = _slot(shape, known, frame.number, here, chunk)
        slot = jnp.where(here < 0, known.shape[1], slot)  # out of it: left out
        return known.at[:, slot].set(new, mode="drop")

    def get(known: jax.Array, first: jax.Array, kinds: int, offset: jax.Array) -> jax.Array:
        here = jax.lax.dynamic_slice_in_dim(places[:kinds], first, chunk, axis=1)
        here += offset[1] * frame.columns + offset[2]
        # What is not seen may lie anywhere.
        slot = _slot(shape, known, frame.number - offset[0], here, chunk)
        return jnp.moveaxis(jnp.take(known, slot, axis=1, mode="clip"), 1, 0)

    x = _rows_of(numbers, query.before, content.signs, content.before)
    x, cache = _through_blocks(shape, numbers, x, where, count, frame, cache, chunk, put, get)

    def made(first: jax.Array, out: jax.Array) -> jax.Array:
        return _with(out, first, numbers.contexts(_part(x[0], first, chunk).astype(jnp.float32)))

    return _by_chunk(count, chunk, made, jnp.zeros((x.shape[1], shape.hidden))), cache


def logits_of_frame(
    shape: PriorShape,
    numbers: PriorNumbers,
    signs: jax.Array,
    before: jax.Array,
    frame: Frame,
    cache: Cache,
    chunk: int,
) -> tuple[jax.Array, Cache]:
    """Logits of all bits of a frame, int16 ``[slot, bit]``, and the cache after it.

    Args:
      shape: of the prior.
      numbers: of the prior.
      signs: of the bits of its tokens, row by row, int8 ``[slot, bit]``; any behind the last token.
      before: of the tokens at these places in the frame before, or zeros; likewise.
      frame: which one.
      cache: of the frames before.
      chunk: tokens that are computed at once; the slots are a multiple.
    """
    count = jnp.asarray(frame.rows * frame.columns)
    where = jnp.divmod(jnp.arange(len(signs), dtype=jnp.int32)[None], jnp.asarray(frame.columns))

    def put(known: jax.Array, first: jax.Array, new: jax.Array) -> jax.Array:
        start = _slot(shape, known, frame.number, first, chunk)
        return jax.lax.dynamic_update_slice_in_dim(known, new, start, axis=1)

    def get(known: jax.Array, first: jax.Array, kinds: int, offset: jax.Array) -> jax.Array:
        del kinds
        # Tokens side by side look at such. Where all of these lie outside of the frame they may
        # be any, because none is seen; where some do, the margin has them.
        start = first + offset[1] * frame.columns + offset[2]
        slot = _slot(shape, known, frame.number - offset[0], start, chunk)
        return jax.lax.dynamic_slice_in_dim(known, jnp.maximum(slot, 0), chunk, axis=1)[None]

    x = _rows_of(numbers, before, signs, before)
    x, cache = _through_blocks(shape, numbers, x, where, count, frame, cache, chunk, put, get)

    def made(first: jax.Array, out: jax.Array) -> jax.Array:
        contexts = numbers.contexts(_part(x[0], first, chunk).astype(jnp.float32))
        known = _part(signs, first, chunk).astype(jnp.float32)
        return _with(out, first, numbers.bits(contexts, known, shape.layout))

    return _by_chunk(count, chunk, made, jnp.zeros((len(signs), shape.bits), jnp.int16)), cache


def _rows_of(
    numbers: PriorNumbers,
    query_before: jax.Array | np.ndarray,
    signs: jax.Array | np.ndarray,
    before: jax.Array | np.ndarray,
) -> jax.Array:
    """Query and content rows before the blocks, int16 ``[kind, token, width]``."""
    floats = (jnp.asarray(x, jnp.float32) for x in (query_before, signs, before))
    rows = numbers.query_rows(next(floats)), numbers.content_rows(next(floats), next(floats))
    return jnp.stack(rows).astype(jnp.int16)


def _through_blocks(
    shape: PriorShape,
    numbers: PriorNumbers,
    x: jax.Array,
    where: tuple[jax.Array, jax.Array],
    count: jax.Array,
    frame: Frame,
    cache: Cache,
    chunk: int,
    put: Put,
    get: Get,
) -> tuple[jax.Array, Cache]:
    """Query rows behind the blocks, int16 ``[1, token, width]``, and the cache with their keys.

    Args:
      shape: of the prior.
      numbers: of the prior.
      x: of `_rows_of`.
      where: row and column of the tokens, int32 ``[kind or 1, token]``.
      count: of tokens.
      frame: which one.
      cache: of all tokens before.
      chunk: tokens that are computed at once.
      put: see `Put`.
      get: see `Get`.
    """
    kept = []
    for layer, (block, known) in enumerate(zip(numbers.blocks, cache, strict=True)):

        def keys(
            first: jax.Array,
            known: tuple[jax.Array, jax.Array],
            block: BlockNumbers = block,
            x: jax.Array = x,
        ) -> tuple[jax.Array, jax.Array]:
            made = block.heads_of(_part(x[1], first, chunk).astype(jnp.float32), 1, 3)
            key, value = (
                rearrange(part, "token head channel -> (head channel) token").astype(jnp.int8)
                for part in made
            )
            return put(known[0], first, key), put(known[1], first, value)

        known = _by_chunk(count, chunk, keys, known)
        if layer == shape.layers - 1:
            x = x[:1]  # nothing looks at the content rows behind the last block

        def look(
            first: jax.Array,
            x: jax.Array,
            block: BlockNumbers = block,
            known: tuple[jax.Array, jax.Array] = known,
        ) -> jax.Array:
            part = jax.lax.dynamic_slice_in_dim(x, first, chunk, axis=1).astype(jnp.float32)
            row, column = (
                jax.lax.dynamic_slice_in_dim(place[: len(x)], first, chunk, axis=1)[None]
                for place in where
            )
            kind = jnp.arange(len(x))[None, :, None]
            places = Places(kind, jnp.asarray(frame.number), row, column)
            (query,) = block.heads_of(part, 0, 1)
            at = tuple(functools.partial(get, array, first, len(x)) for array in known)
            mixed = _attend(shape, block, query, places, frame, at)
            new = block.finish(part, mixed).astype(x.dtype)
            return jax.lax.dynamic_update_slice_in_dim(x, new, first, axis=1)

        x = _by_chunk(count, chunk, look, x)
        kept.append(known)
    return x, tuple(kept)


def _attend(
    shape: PriorShape,
    block: BlockNumbers,
    query: jax.Array,
    places: Places,
    frame: Frame,
    at: tuple[At, ...],
) -> jax.Array:
    """Attention of a chunk of rows, ``[kind, token, width]``.

    Args:
      shape: of the prior.
      block: of which layer.
      query: ``[kind, token, head, channel]``.
      places: of the rows, ``[1, kind, token]``.
      frame: which one.
      at: keys and values of the layer at an offset.
    """
    # In int32, because XLA miscomputes some sums of products, see `NeighbourhoodPrior`.
    query = rearrange(query, "kind token head channel -> kind head channel token").astype(jnp.int32)
    null_key, null_value = block.null.astype(jnp.int32)[:, None, ..., None]
    size = jnp.asarray(frame.rows), jnp.asarray(frame.columns)
    offsets = offsets_of(shape)
    seen = visible(shape, places, size, offsets.T[:, :, None, None])
    key_at, value_at = (
        lambda offset, of=of: of(offset).reshape(-1, *query.shape[1:]).astype(jnp.int32)
        for of in at
    )

    def score(key: jax.Array) -> jax.Array:
        return jnp.sum(query * key, axis=2)  # [kind, head, token]

    _, sums = jax.lax.scan(lambda _, offset: (None, score(key_at(offset))), None, offsets)
    scores = block.scaled(sums.astype(jnp.float32)) + near_of(block, shape)[:, None, :, None]
    scores = jnp.where(seen[:, :, None], scores, UNSEEN)
    null = block.scaled(score(null_key).astype(jnp.float32))
    shares = powers(jnp.concatenate([null[None], scores]), lowering(shape.keys), axis=0)
    weights = shares.astype(jnp.int32)[:, :, :, None]
    mixed, _ = jax.lax.scan(
        lambda mixed, item: (mixed + item[0] * value_at(item[1]), None),
        weights[0] * null_value,
        (weights[1:], offsets),
    )
    found = quotient(mixed, jnp.sum(weights, axis=0))
    return rearrange(found, "kind head channel token -> kind token (head channel)")


def _slot(
    shape: PriorShape,
    known: jax.Array,
    number: jax.Array | np.ndarray,
    place: jax.Array,
    chunk: int,
) -> jax.Array:
    """Where the cache has the tokens at some places of a frame."""
    slots = (known.shape[1] - 2 * chunk) // shape.window
    return chunk + jnp.asarray(number % shape.window) * slots + place


def _by_chunk(
    count: jax.Array, chunk: int, function: Callable[[jax.Array, _T], _T], initial: _T
) -> _T:
    """Goes through the first `count` tokens; the function is given the first of each chunk."""
    chunks = (count + chunk - 1) // chunk
    return jax.lax.fori_loop(0, chunks, lambda i, x: function(i * chunk, x), initial)


def _part(x: jax.Array, first: jax.Array, chunk: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, first, chunk, axis=0)


def _with(x: jax.Array, first: jax.Array, part: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, part.astype(x.dtype), first, axis=0)
