"""The network of `NeighbourhoodPrior` for some tokens of a frame, with the keys of all before.

A decoder takes the tokens of one step after the other, an encoder all of a frame at once; both call
the same functions with more or fewer tokens, which give what the network gives on whole clips. Each
token leaves its keys and values in a cache, 8 bits a number, where those that look at it find them.
Tokens are computed in chunks, so that memory beyond the cache is about that of the rows themselves.

Shapes depend on the size of the cache and the room for tokens alone: sizes of frames are values,
so that few programs code frames of all sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.models.prior.block import UNSEEN, BlockNumbers
from bsq_jax.models.prior.integer_arithmetic import lowering
from bsq_jax.models.prior.neighbourhood_prior import (
    KINDS,
    NeighbourhoodPrior,
    Places,
    near_of,
    offsets_of,
    visible,
)
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

Cache = tuple[tuple[jax.Array, jax.Array], ...]
"""Keys and values of each layer, int8 ``[window * slot, width]``: a slot for each token of a frame,
and a frame takes the place of the one that is no longer seen."""


def empty_cache(shape: PriorShape, slots: int) -> Cache:
    """The cache before the first frame, for frames of up to so many tokens."""
    size = (shape.window * slots, shape.width)
    # Arrays of their own, because programs are given them to write into.
    return tuple(
        (jnp.zeros(size, jnp.int8), jnp.zeros(size, jnp.int8)) for _ in range(shape.layers)
    )


def contexts_of_step(
    model: NeighbourhoodPrior,
    content: Tokens,
    query: Tokens,
    count: jax.Array,
    frame: Frame,
    cache: Cache,
    chunk: int,
) -> tuple[jax.Array, Cache]:
    """Takes in the tokens of one step of a frame and gives what predicts those of the next.

    Args:
      model: with its parameters.
      content: tokens of a step that are known now; none before the first.
      query: tokens of the next step, whose signs are ignored; none behind the last.
      count: int32, tokens of these two, the larger number.
      frame: which one.
      cache: of all tokens before these.
      chunk: tokens that are computed at once; their room is a multiple.

    Returns:
      Contexts for `bsq_jax.models.prior.token_bits.TokenBits`, int32 ``[token, hidden]``, and the
      cache with what is known now.
    """
    x, cache = _through_blocks(model, content, query, count, frame, cache, chunk)

    def made(first: jax.Array, out: jax.Array) -> jax.Array:
        contexts = model.contexts(_part(x[0], first, chunk).astype(jnp.float32))
        return _with(out, first, contexts)

    out = jnp.zeros((len(query.place), model.shape.hidden), jnp.int32)
    return _by_chunk(count, chunk, made, out), cache


def logits_of_frame(
    model: NeighbourhoodPrior,
    tokens: Tokens,
    count: jax.Array,
    frame: Frame,
    cache: Cache,
    chunk: int,
) -> tuple[jax.Array, Cache]:
    """Logits of all bits of a frame, int16 ``[token, bit]``, and the cache after it.

    Args:
      model: with its parameters.
      tokens: all of the frame, in any order.
      count: int32, how many these are.
      frame: which one.
      cache: of the frames before.
      chunk: see `contexts_of_step`.
    """
    x, cache = _through_blocks(model, tokens, tokens, count, frame, cache, chunk)

    def made(first: jax.Array, out: jax.Array) -> jax.Array:
        contexts = model.contexts(_part(x[0], first, chunk).astype(jnp.float32))
        signs = _part(jnp.asarray(tokens.signs), first, chunk).astype(jnp.float32)
        return _with(out, first, model.bits(contexts, signs))

    out = jnp.zeros((len(tokens.place), model.shape.bits), jnp.int16)
    return _by_chunk(count, chunk, made, out), cache


def _through_blocks(
    model: NeighbourhoodPrior,
    content: Tokens,
    query: Tokens,
    count: jax.Array,
    frame: Frame,
    cache: Cache,
    chunk: int,
) -> tuple[jax.Array, Cache]:
    """Query and content rows behind the blocks, int16 ``[kind, token, width]``, and the cache."""
    shape = model.shape
    signs, *before = (
        jnp.asarray(x, jnp.float32) for x in (content.signs, query.before, content.before)
    )
    rows = model.query_rows(before[0]), model.content_rows(signs, before[1])
    x = jnp.stack(rows).astype(jnp.int16)
    place = jnp.stack([jnp.asarray(query.place), jnp.asarray(content.place)])
    kept = []
    for module, known in zip(model.blocks, cache, strict=True):
        block = module.numbers()

        def put(
            first: jax.Array,
            known: tuple[jax.Array, jax.Array],
            block: BlockNumbers = block,
            x: jax.Array = x,
        ) -> tuple[jax.Array, jax.Array]:
            key, value = block.heads_of(_part(x[1], first, chunk).astype(jnp.float32), 1, 3)
            here = _part(place[1], first, chunk)
            slot = _slot(shape, known[0], frame.number, here)
            slot = jnp.where(here < 0, len(known[0]), slot)  # out of it: left out
            return _written(known[0], slot, key), _written(known[1], slot, value)

        known = _by_chunk(count, chunk, put, known)

        def look(
            first: jax.Array,
            x: jax.Array,
            block: BlockNumbers = block,
            known: tuple[jax.Array, jax.Array] = known,
        ) -> jax.Array:
            part = jax.lax.dynamic_slice_in_dim(x, first, chunk, axis=1).astype(jnp.float32)
            here = jax.lax.dynamic_slice_in_dim(place, first, chunk, axis=1)
            (queries,) = block.heads_of(part, 0, 1)
            mixed = _attend(shape, block, queries, here, frame, known)
            new = block.finish(part, mixed).astype(x.dtype)
            return jax.lax.dynamic_update_slice_in_dim(x, new, first, axis=1)

        x = _by_chunk(count, chunk, look, x)
        kept.append(known)
    return x, tuple(kept)


def _attend(
    shape: PriorShape,
    block: BlockNumbers,
    query: jax.Array,
    place: jax.Array,
    frame: Frame,
    known: tuple[jax.Array, jax.Array],
) -> jax.Array:
    """Attention of a chunk of rows, ``[kind, token, width]``.

    Args:
      shape: of the prior.
      block: of which layer.
      query: ``[kind, token, head, channel]``.
      place: of the rows, ``[kind, token]``.
      frame: which one.
      known: keys and values of the layer.
    """
    place = place[None]  # [key, kind, token] from here on
    row, column = jnp.divmod(place, jnp.asarray(frame.columns))
    kind = jnp.arange(KINDS)[None, :, None]
    places = Places(kind, jnp.asarray(frame.number), row, column)
    size = jnp.asarray(frame.rows), jnp.asarray(frame.columns)
    back, down, across = offset = offsets_of(shape).T[:, :, None, None]
    seen = visible(shape, places, size, offset)
    slot = _slot(shape, known[0], frame.number - back, place + down * frame.columns + across)
    slot = jnp.where(seen, slot, 0)
    key, value = (
        array[slot].reshape(*slot.shape, *query.shape[2:]).astype(jnp.int32) for array in known
    )
    # In int32, because XLA miscomputes some sums of products, see `NeighbourhoodPrior`.
    sums = jnp.sum(query[None].astype(jnp.int32) * key, axis=-1).astype(jnp.float32)
    scores = block.scaled(sums) + near_of(block, shape)[:, None, None]
    scores = jnp.where(seen[..., None], scores, UNSEEN)
    shares = block.shares(query, scores, lowering(shape.keys))
    mixed = jnp.sum(shares[1:, ..., None].astype(jnp.int32) * value, axis=0)
    return block.mean(shares, mixed.astype(jnp.float32))


def _slot(
    shape: PriorShape, known: jax.Array, number: jax.Array | np.ndarray, place: jax.Array
) -> jax.Array:
    """Where the cache has the tokens at some places of a frame."""
    return jnp.asarray(number % shape.window) * (len(known) // shape.window) + place


def _by_chunk(
    count: jax.Array, chunk: int, function: Callable[[jax.Array, _T], _T], initial: _T
) -> _T:
    """Goes through the first `count` tokens; the function is given the first of each chunk."""
    chunks = (count + chunk - 1) // chunk
    return jax.lax.fori_loop(0, chunks, lambda i, x: function(i * chunk, x), initial)


def _written(array: jax.Array, slot: jax.Array, rows: jax.Array) -> jax.Array:
    rows = rows.reshape(len(slot), -1).astype(array.dtype)
    return array.at[slot].set(rows, mode="drop")


def _part(x: jax.Array, first: jax.Array, chunk: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, first, chunk, axis=0)


def _with(x: jax.Array, first: jax.Array, part: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, part.astype(x.dtype), first, axis=0)
