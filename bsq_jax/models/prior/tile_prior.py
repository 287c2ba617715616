"""A prior of tiles: how likely each bit of a token is, given the tokens and bits before it.

Tokens look at all earlier ones of their tile, in their frame and the frames before; what a place in
a tile means is learned, so that tiles of one size alone can be coded. For any size:
`bsq_jax.models.prior.neighbourhood_prior`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from bsq_jax.models.prior.block import UNSEEN, BlockNumbers
from bsq_jax.models.prior.integer_arithmetic import (
    average,
    expanded,
    lowering,
    powers,
    product,
)
from bsq_jax.models.prior.network import PriorNetwork, PriorNumbers
from bsq_jax.models.prior.shape import PriorShape


class PastFramesCache(NamedTuple):
    """KV cache of earlier frames, and the bits of the frame before.

    Attributes:
      keys: ``[layer, batch, window - 1, token, head, channel]``, the oldest frame first.
      values: the same.
      seen: bool ``[window - 1]``: which of these frames there are.
      before: signs of the frame before, ``[batch, token, bit]``; zeros where there is none.
    """

    keys: jax.Array
    values: jax.Array
    seen: jax.Array
    before: jax.Array


class TilePrior(PriorNetwork):
    """The network.

    Attributes:
      shape: what fixes the parameters.
    """

    def __call__(self, signs: jax.Array) -> jax.Array:
        """Logits of all bits of clips, each from its beginning.

        Args:
          signs: float32 ``[batch, time, row, column, bit]``.

        Returns:
          Whole numbers, `bsq_jax.models.prior.token_bits.LOGIT` a nat, of the same shape.
        """
        cache = empty_past_frames(self.shape, signs.shape[0])
        grids = rearrange(signs, "b t h w l -> b t (h w) l")
        logits, _ = logits_of_frames(self.shape, self.numbers(), grids, cache)
        return logits.reshape(signs.shape)


def logits_of_frames(
    shape: PriorShape, numbers: PriorNumbers, signs: jax.Array, cache: PastFramesCache
) -> tuple[jax.Array, PastFramesCache]:
    """Logits of all bits of the next frames, and the cache after them.

    Args:
      shape: of the prior.
      numbers: of the prior.
      signs: float32 ``[batch, time, token, bit]``.
      cache: of the frames before.
    """
    _, time, tokens, _ = signs.shape
    steps, near = shape.steps(shape.rows, shape.columns), np.tile(_near(shape), (2, 1))
    before = jnp.concatenate([cache.before[:, None], signs[:, :-1]], axis=1)
    present = jnp.concatenate([cache.seen, jnp.ones(time, bool)])
    known = _windows(present, 0, time, shape.window)[:, None, :, None]  # [t, 1, w, 1]
    # Query rows see earlier steps of their frame, content rows those and their own.
    own = np.stack([steps[:, None] > steps, steps[:, None] >= steps])  # [2, row, token]
    inside = np.ones((2, tokens, shape.window, tokens), bool)
    inside[:, :, -1] = own
    inside = rearrange(inside, "kind n w m -> (kind n) w m")
    seen = rearrange(known & inside[None], "t r w n -> t r (w n)")[None]
    x = jnp.concatenate(
        [
            numbers.query_rows(before, numbers.place),
            numbers.content_rows(signs, before, numbers.place),
        ],
        axis=2,
    )
    keys, values = [], []
    for layer, block in enumerate(numbers.blocks):
        query, key, value = block.heads_of(x, 0, 3)
        key, value = key[:, :, tokens:], value[:, :, tokens:]
        if layer == shape.layers - 1:  # nothing looks at the content rows behind the last block
            x, query, seen, near = (
                x[:, :, :tokens],
                query[:, :, :tokens],
                seen[:, :, :tokens],
                near[:tokens],
            )
        key, value = (
            jnp.concatenate([old[layer], new], axis=1)
            for old, new in ((cache.keys, key), (cache.values, value))
        )
        keys.append(key[:, time:])
        values.append(value[:, time:])
        key, value = (
            rearrange(_windows(y, 1, time, shape.window), "b t w n h d -> b t (w n) h d")
            for y in (key, value)
        )
        mixed = _attend(block, query, *_looked_at(block, key, value), seen, near)
        x = block.finish(x, mixed)
    logits = numbers.bits(numbers.contexts(x[:, :, :tokens]), signs, shape.layout)
    return logits, PastFramesCache(jnp.stack(keys), jnp.stack(values), present[time:], signs[:, -1])


CurrentFrameCache = tuple[tuple[jax.Array, jax.Array], ...]
"""Keys and values of each layer that the tokens of the frame that is being decoded look at, as
`_attend` takes them: what is always there, tokens of earlier frames, those of this one."""


def contexts_of_step(
    shape: PriorShape,
    numbers: PriorNumbers,
    signs: jax.Array,
    content: jax.Array,
    query: jax.Array,
    have: jax.Array,
    current: CurrentFrameCache,
    cache: PastFramesCache,
) -> tuple[jax.Array, CurrentFrameCache]:
    """Takes in the bits of one step of a frame and gives what predicts those of the next.

    Args:
      shape: of the prior.
      numbers: of the prior.
      signs: of the tokens of a step, ``[batch, row, bit]``; at the beginning of any.
      content: int32 ``[row]``, which tokens these are.
      query: int32 ``[row]``, which tokens come next; at the end any.
      have: bool ``[token]``, which tokens are known, those of `content` included.
      current: keys and values of the known tokens.
      cache: of the frames before.

    Returns:
      Contexts for `bsq_jax.models.prior.token_bits.TokenBits` ``[batch, row, hidden]``, whole
      numbers, and what is known now.
    """
    assert numbers.place is not None
    near, place, taken = jnp.asarray(_near(shape)), numbers.place, content.shape[0]
    before = [jnp.take(cache.before, rows, axis=1) for rows in (content, query)]
    x = jnp.concatenate(
        [
            numbers.content_rows(signs, before[0], place[content]),
            numbers.query_rows(before[1], place[query]),
        ],
        axis=1,
    )
    near = near[jnp.concatenate([content, query])]
    seen = jnp.concatenate([jnp.repeat(cache.seen, shape.tokens), have])[None, None]
    at = 1 + (shape.window - 1) * shape.tokens + content  # behind the null and earlier frames
    kept = []
    for layer, (block, (keys, values)) in enumerate(zip(numbers.blocks, current, strict=True)):
        rows, key, value = block.heads_of(x, 0, 3)
        keys = keys.at[..., at].set(jnp.moveaxis(key[:, :taken], 1, -1))
        values = values.at[:, :, at].set(jnp.moveaxis(value[:, :taken], 1, -2))
        kept.append((keys, values))
        if layer == shape.layers - 1:  # nothing looks at the content rows behind the last block
            x, rows, near = x[:, taken:], rows[:, taken:], near[taken:]
        x = block.finish(x, _attend(block, rows, keys, values, seen, near))
    return numbers.contexts(x), tuple(kept)


def empty_past_frames(shape: PriorShape, batch: int) -> PastFramesCache:
    """The cache before the first frame: nothing is in it."""
    past = shape.window - 1
    size = (shape.layers, batch, past, shape.tokens, shape.heads, shape.width // shape.heads)
    before = jnp.zeros((batch, shape.tokens, shape.bits))
    # Arrays of their own, because programs are given them to write into.
    return PastFramesCache(jnp.zeros(size), jnp.zeros(size), jnp.zeros(past, bool), before)


def begun_frame(
    shape: PriorShape, numbers: PriorNumbers, cache: PastFramesCache
) -> CurrentFrameCache:
    """The cache of a frame before its first token: of what is always there and earlier frames."""
    empty = jnp.zeros(
        (cache.before.shape[0], shape.tokens, shape.heads, shape.width // shape.heads)
    )

    def joined(past: jax.Array) -> jax.Array:
        return jnp.concatenate([rearrange(past, "b w n h d -> b (w n) h d"), empty], axis=1)

    return tuple(
        _looked_at(block, joined(keys), joined(values))
        for block, keys, values in zip(numbers.blocks, cache.keys, cache.values, strict=True)
    )


def append_frame(
    cache: PastFramesCache, current: CurrentFrameCache, signs: jax.Array
) -> PastFramesCache:
    """The cache after a frame all of whose tokens are known, ``[batch, token, bit]``."""
    tokens = signs.shape[1]
    keys = jnp.stack([jnp.moveaxis(keys[..., -tokens:], -1, 1) for keys, _ in current])
    values = jnp.stack([jnp.swapaxes(values[:, :, -tokens:], 1, 2) for _, values in current])
    keys, values = (
        jnp.concatenate([old, new[:, :, None]], axis=2)[:, :, 1:]
        for old, new in ((cache.keys, keys), (cache.values, values))
    )
    seen = jnp.concatenate([cache.seen, jnp.ones(1, bool)])[1:]
    return PastFramesCache(keys, values, seen, signs)


def _near(shape: PriorShape) -> np.ndarray:
    """Index of the distance of each token from each key, ``[token, window * token]``."""
    row, column = np.divmod(np.arange(shape.tokens), shape.columns)
    down = row[:, None] - row + shape.rows - 1
    across = column[:, None] - column + shape.columns - 1
    inside = down * (2 * shape.columns - 1) + across
    size = (2 * shape.rows - 1) * (2 * shape.columns - 1)
    return np.concatenate([inside + t * size for t in reversed(range(shape.window))], axis=1)


def _looked_at(
    block: BlockNumbers, key: jax.Array, value: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Keys and values ``[..., key, head, channel]`` as `_attend` takes them, the null first."""
    join = (*key.shape[:-3], 1, *key.shape[-2:])
    key = jnp.concatenate([jnp.broadcast_to(block.null[0], join), key], axis=-3)
    value = jnp.concatenate([jnp.broadcast_to(block.null[1], join), value], axis=-3)
    return jnp.moveaxis(key, -3, -1), jnp.swapaxes(value, -3, -2)


def _attend(
    block: BlockNumbers,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    seen: jax.Array,
    near: Any,
) -> jax.Array:
    """Attention.

    Args:
      block: of which layer.
      query: ``[..., row, head, channel]``.
      key: of `_looked_at`, ``[..., head, channel, 1 + key]``.
      value: of `_looked_at`, ``[..., head, 1 + key, channel]``.
      seen: bool ``[..., row, key]``, of as many axes as the query but the head's.
      near: int32 ``[row, key]``, index of the distance among `block.near`.

    Returns:
      ``[..., row, width]``.
    """
    scores = product(jnp.swapaxes(query, -3, -2), key)
    bias = block.near.reshape(len(block.near), -1)[:, near]  # [head, row, key]
    bias = jnp.pad(bias, ((0, 0), (0, 0), (1, 0)))
    visible = jnp.pad(seen, ((0, 0),) * (seen.ndim - 1) + ((1, 0),), constant_values=True)
    scores = block.scaled(scores) + expanded(bias, scores)
    scores = jnp.where(visible[..., None, :, :], scores, UNSEEN)
    shares = powers(scores, lowering(scores.shape[-1]))
    mixed = average(shares, value)
    return rearrange(mixed, "... head row channel -> ... row (head channel)")


def _windows(x: jax.Array, axis: int, time: int, window: int) -> jax.Array:
    """For each of `time` frames the window of frames that ends with it, as a new axis."""
    parts = [jax.lax.slice_in_dim(x, w, w + time, axis=axis) for w in range(window)]
    return jnp.stack(parts, axis=axis + 1)
