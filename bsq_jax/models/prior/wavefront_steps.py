"""The network of `NeighbourhoodPrior` for the steps of pictures in raster order.

A step is a wavefront (`bsq_jax.models.prior.shape.step_at`): one token each of rows that follow
each other. What these see at one offset are tokens of one earlier step, in rows that follow each
other too. So the cache has the last steps alone, row by row, as far back as a token looks: a few
slices of it are all that rows look at, and its size does not depend on the width of the picture.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from bsq_jax.models.prior.block import UNSEEN, BlockNumbers
from bsq_jax.models.prior.integer_arithmetic import lowering, powers, quotient
from bsq_jax.models.prior.neighbourhood_prior import KINDS, Places, near_of, offsets_of, visible
from bsq_jax.models.prior.network import PriorNumbers
from bsq_jax.models.prior.shape import PriorShape

Ring = tuple[jax.Array, ...]
"""Keys and values of each layer, int8 ``[2 span, 2 width, row]``, with a margin of the reach before
the first row and of the room of a step behind the last. Each step has two places `_span` apart, so
that the steps that rows look at lie one after the other wherever the last one is."""


def _span(shape: PriorShape) -> int:
    """Steps that a program looks at: those of content rows, and the one to be predicted."""
    rows, columns = shape.reach
    return rows * (columns + 1) + columns + 2


def first_row(shape: PriorShape, step: Any, columns: Any) -> Any:
    """The row of the first token of a step; of numbers, or arrays of JAX."""
    row = -((columns - 1 - step) // (shape.reach[1] + 1))
    return row * (row > 0)


def empty_ring(shape: PriorShape, rows: int, room: int) -> Ring:
    """The cache before the first step.

    Args:
      shape: of the prior.
      rows: the most of a picture, in tokens.
      room: the most tokens of a step, and one more.
    """
    size = (2 * _span(shape), 2 * shape.width, shape.reach[0] + rows + room)
    # Arrays of their own, because programs are given them to write into.
    return tuple(jnp.zeros(size, jnp.int8) for _ in range(shape.layers))


def contexts_of_wavefront(
    shape: PriorShape,
    numbers: PriorNumbers,
    signs: jax.Array,
    step: jax.Array,
    size: jax.Array,
    ring: Ring,
) -> tuple[jax.Array, Ring]:
    """Takes in the tokens of one step of a picture and gives what predicts those of the next.

    Args:
      shape: of the prior, whose window is 1.
      numbers: of the prior.
      signs: of the bits of the tokens of the step, row by row, int8 ``[token, bit]``; any behind
        the last.
      step: int32, which one; -1 before the first.
      size: int32, rows and columns of the picture.
      ring: of the steps before.

    Returns:
      Contexts for `bsq_jax.models.prior.token_bits.TokenBits`, float32 ``[token, hidden]``, of the
      next step's tokens in the row of the step's first token and those below, and the cache with
      this step.
    """
    room, span = len(signs), _span(shape)
    each = shape.reach[1] + 1  # steps from a row to the next
    first = first_row(shape, step, size[1])
    row = first + jnp.arange(room)[None, None]
    kind = np.arange(KINDS)[None, :, None]
    places = Places(kind, np.zeros((), np.int32), row, step + 1 - kind - each * row)
    seen = visible(shape, places, (size[0], size[1]), offsets_of(shape).T[:, :, None, None])
    floats = signs.astype(jnp.float32)
    none = jnp.zeros_like(floats)
    x = jnp.concatenate([numbers.query_rows(none), numbers.content_rows(floats, none)])
    kept = []
    for layer, (block, known) in enumerate(zip(numbers.blocks, ring, strict=True)):
        query, *new = block.heads_of(x, 0, 3)
        left = "kind token head channel -> (kind head channel) token"
        written = rearrange(jnp.stack(new)[:, room:], left).astype(jnp.int8)[None]
        for again in (0, span):
            start = (step % span + again, 0, first + shape.reach[0])
            known = jax.lax.dynamic_update_slice(known, written, start)
        kept.append(known)
        if layer == shape.layers - 1:  # nothing looks at the content rows behind the last block
            x, query = x[:room], query[:room]
        looked = (span, known.shape[1], shape.reach[0] + room)
        window = jax.lax.dynamic_slice(known, ((step + 1) % span + 1, 0, first), looked)
        mixed = _attend(shape, block, query, window, seen[:, : len(x) // room])
        x = block.finish(x, mixed.T)
    return numbers.contexts(x), tuple(kept)


def _attend(
    shape: PriorShape, block: BlockNumbers, query: jax.Array, window: jax.Array, seen: jax.Array
) -> jax.Array:
    """Attention, ``[width, kind * token]``.

    Args:
      shape: of the prior.
      block: of which layer.
      query: ``[kind * token, head, channel]``.
      window: keys and values, ``[step, 2 width, row]``; the last step is that of query rows.
      seen: bool ``[key, kind, token]``.
    """
    kinds, room = seen.shape[1:]
    rows, columns = shape.reach
    # In int32, because XLA miscomputes some sums of products, see `NeighbourhoodPrior`.
    split = "(kind token) head channel -> kind head channel token"
    queries = rearrange(query, split, kind=kinds).astype(jnp.int32)
    null_key, null_value = block.null.astype(jnp.int32)[..., None]
    split = "step (what head channel) row -> what step head channel row"
    parts = rearrange(window, split, what=2, head=queries.shape[1])
    # By row of the neighbourhood: how many keys are in it. They lie in steps one after the other,
    # those of query rows one step behind those of content rows.
    counts = [2 * columns + 1] * rows + [columns + 1]

    def by_row(part: jax.Array, kind: int) -> list[jax.Array]:
        firsts = ((columns + 1) * down + 1 - kind for down in range(rows + 1))
        return [
            part[first : first + count, ..., down : down + room].astype(jnp.int32)
            for down, (first, count) in enumerate(zip(firsts, counts, strict=True))
        ]

    def weights_of(kind: int) -> jax.Array:
        query = queries[kind]
        sums = [jnp.sum(query[None] * keys, axis=2) for keys in by_row(parts[0], kind)]
        scores = block.scaled(jnp.concatenate(sums).astype(jnp.float32))
        scores += near_of(block, shape)[..., None]
        scores = jnp.where(seen[:, None, kind], scores, UNSEEN)  # [key, head, token]
        null = block.scaled(jnp.sum(query * null_key, axis=1).astype(jnp.float32))
        shares = powers(jnp.concatenate([null[None], scores]), lowering(shape.keys), axis=0)
        return shares.astype(jnp.int32)

    def found_by(kind: int) -> jax.Array:
        weights = weights_of(kind)
        mixed, begin = weights[0][:, None] * null_value, 1
        for values in by_row(parts[1], kind):
            for weight, value in zip(weights[begin : begin + len(values)], values, strict=True):
                mixed += weight[:, None] * value
            begin += len(values)
        return quotient(mixed, jnp.sum(weights, axis=0)[:, None])

    found = jnp.stack([found_by(kind) for kind in range(kinds)])
    return rearrange(found, "kind head channel token -> (head channel) (kind token)")
