"""Attention over the tokens of a clip. Every kind in the package goes through `attend`."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from einops import rearrange

from bsq_jax.core import cpu
from bsq_jax.core.once import say_once
from bsq_jax.core.sharding import each_on_its_own
from bsq_jax.models.attention import cudnn, splash
from bsq_jax.models.attention.causality import EVERYTHING, Causality
from bsq_jax.models.attention.choice import (
    Block,
    Blocking,
    Noted,
    blocks_of,
    choose_implementation,
    note,
)
from bsq_jax.models.attention.softmax import softmax_attention


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    causality: Causality = EVERYTHING,
    implementation: str = "auto",
    real: jax.Array | None = None,
    blocking: Blocking = Blocking.LARGE,
    regions: jax.Array | None = None,
) -> jax.Array:
    """Scaled dot-product attention over the tokens of a clip, softmax in float32.

    The queries may be those of the last frames alone, as in streaming.

    Args:
      query: ``[batch, query time, token, head, channel]``.
      key: ``[batch, key time, token, head, channel]``, with at least as many frames.
      value: ``[batch, key time, token, head, channel]``.
      causality: which tokens are visible to a token.
      implementation: of ``model.attention``, see `bsq_jax.models.attention.choice`.
      real: int32 ``[batch]``, the number of frames of each example that are not padding; None: all.
        Padding comes after the real frames and is not visible to them: where no later frame is
        visible this holds anyway, and nothing is computed for it. What is returned for padding is
        finite and otherwise undefined.
      blocking: how the implementation ``blocked`` cuts a clip.
      regions: int32 ``[batch, token]``: of the tokens of a frame, those that see each other, and
        their likes in other frames, have the same number, not a negative one; None: all see all.

    Returns:
      ``[batch, query time, token, head, channel]`` in the dtype of `query`.

    Raises:
      UserError: see `choose_implementation`.
    """
    (frames, tokens), queries = key.shape[1:3], query.shape[1]
    if causality.streams or frames == 1:
        real = None
    choice = choose_implementation(
        implementation,
        causality,
        frames,
        tokens,
        query.dtype,
        channels=query.shape[-1],
        queries=queries,
        padded=real is not None,
    )
    note(Noted(implementation, choice, frames, tokens, query.dtype))
    chosen, why = choice
    if why:
        say_once(f"attention: {chosen}; {why}")
    blocks = blocks_of(chosen, causality, frames, tokens, queries, blocking)
    if chosen == "cudnn":
        real_keys = None if real is None else real.astype(jnp.int32) * tokens
        return _by_cudnn(query, key, value, blocks, real_keys, regions)
    labels = _labels(frames, tokens, real, regions)
    # Heads in front, once for all blocks: a CPU then multiplies contiguous matrices.
    rows = [rearrange(x, "b t n h d -> b h (t n) d") for x in (query, key, value)]
    if labels is not None:
        rows.append(jnp.broadcast_to(labels[:, None], (*rows[0].shape[:2], frames * tokens)))
    parts = []
    first_query = (frames - queries) * tokens
    apart = functools.partial(_head_by_head, chosen, blocking)
    for by_head, group in itertools.groupby(blocks, apart):
        function: Callable[..., jax.Array] = functools.partial(
            _attend_blocks,
            blocks=tuple(group),
            attention=splash.attention if chosen == "splash" else softmax_attention,
            first_query=first_query,
        )
        if by_head:
            function = each_on_its_own(functools.partial(cpu.map_heads, function))
        elif chosen == "splash":
            function = each_on_its_own(function)
        parts.append(function(*rows))
    return rearrange(_joined(parts, axis=2), "b h (t n) d -> b t n h d", n=tokens)


def _labels(
    frames: int, tokens: int, real: jax.Array | None, regions: jax.Array | None
) -> jax.Array | None:
    """A number for each key, ``[batch, key]``: those of other numbers are not visible.

    Frames that are padding have -1. None: all are visible.
    """
    if real is None and regions is None:
        return None
    frame = jnp.arange(frames, dtype=jnp.int32)[None, :, None]
    labels = jnp.zeros((1, frames, tokens), jnp.int32)
    if regions is not None:
        labels = labels + regions.astype(jnp.int32)[:, None]
    if real is not None:
        labels = jnp.where(frame < real.astype(jnp.int32)[:, None, None], labels, -1)
    return rearrange(labels, "b t n -> b (t n)")


def _by_cudnn(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    blocks: Sequence[Block],
    real_keys: jax.Array | None,
    regions: jax.Array | None,
) -> jax.Array:
    """`attend` with a call of cuDNN for each block."""
    if real_keys is not None:
        real_keys = jnp.maximum(real_keys, 1)  # padding alone would have no weights
    q, k, v = (rearrange(x, "b t n h d -> b (t n) h d") for x in (query, key, value))
    visible = None
    if regions is not None:
        of_keys = jnp.tile(regions, (1, key.shape[1]))
        of_queries = jnp.tile(regions, (1, query.shape[1]))
        visible = of_queries[:, :, None] == of_keys[:, None, :]
    parts = [
        cudnn.attention(
            q[:, b.queries],
            k[:, b.keys],
            v[:, b.keys],
            b.mask,
            real_keys,
            None if visible is None else visible[:, b.queries, b.keys],
        )
        for b in blocks
    ]
    return jnp.concatenate(parts, axis=1).reshape(query.shape)


def _head_by_head(chosen: str, blocking: Blocking, block: Block) -> bool:
    """Whether the heads of a block are computed one after the other.

    For the blocked implementation this depends on nothing but the span of keys, so that a frame of
    a stream is computed by the very same operations as in its clip.
    """
    if chosen == "by_head":
        return True
    keys = block.keys.stop - block.keys.start
    if chosen != "blocked" or blocking == Blocking.FOR_COUNTING:
        return False
    return cpu.scores_exceed_cache(keys)


def _attend_blocks(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    labels: jax.Array | None = None,
    *,
    blocks: tuple[Block, ...],
    attention: Callable[..., jax.Array],
    first_query: int,
) -> jax.Array:
    """Attention of ``[..., token, channel]`` arrays, the blocks' results one after another.

    Args:
      query: the queries.
      key: the keys.
      value: the values.
      labels: int32 ``[..., key token]``, of `_labels`; None: all keys are visible.
      blocks: which queries go with which keys.
      attention: of one block.
      first_query: the token of the keys that the first query belongs to.
    """
    parts = []
    for block in blocks:
        q, k, v = query[..., block.queries, :], key[..., block.keys, :], value[..., block.keys, :]
        pair = None
        if labels is not None:
            begin, end = block.queries.start, block.queries.stop
            queries = slice(first_query + begin, first_query + end)
            pair = labels[..., queries], labels[..., block.keys]
        parts.append(attention(q, k, v, block.mask, pair))
    return _joined(parts, axis=-2)


def _joined(parts: Sequence[jax.Array], axis: int) -> jax.Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=axis)
