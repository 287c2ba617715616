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
from bsq_jax.models.prior.network import PriorNetwork
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

    def _near(self) -> np.ndarray:
        """Index of the distance of each token from each key, ``[token, window * token]``."""
        shape = self.shape
        row, column = np.divmod(np.arange(shape.tokens), shape.columns)
        down = row[:, None] - row + shape.rows - 1
        across = column[:, None] - column + shape.columns - 1
        inside = down * (2 * shape.columns - 1) + across
        size = (2 * shape.rows - 1) * (2 * shape.columns - 1)
        return np.concatenate([inside + t * size for t in reversed(range(shape.window))], axis=1)

    # --- all tokens of some frames at once ---

    def __call__(self, signs: jax.Array) -> jax.Array:
        """Logits of all bits of clips, each from its beginning.

        Args:
          signs: float32 ``[batch, time, row, column, bit]``.

        Returns:
          Whole numbers, `bsq_jax.models.prior.token_bits.LOGIT` a nat, of the same shape.
        """
        cache = empty_past_frames(self.shape, signs.shape[0])
        logits, _ = self.frames(rearrange(signs, "b t h w l -> b t (h w) l"), cache)
        return logits.reshape(signs.shape)

    def frames(self, signs: jax.Array, cache: PastFramesCache) -> tuple[jax.Array, PastFramesCache]:
        """Logits of all bits of the next frames, and the cache after them.

        Args:
          signs: float32 ``[batch, time, token, bit]``.
          cache: of the frames before.
        """
        shape = self.shape
        _, time, tokens, _ = signs.shape
        steps, near, numbers = shape.steps(shape.rows, shape.columns), self._near(), self.numbers()
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
            mixed = _attend(block, query, key, value, seen, np.concatenate([near, near]))
            x = block.finish(x, mixed)
        logits = numbers.bits(numbers.contexts(x[:, :, :tokens]), signs, shape.layout)
        return logits, PastFramesCache(
            jnp.stack(keys), jnp.stack(values), present[time:], signs[:, -1]
        )

    # --- step by step ---

    def advance(
        self,
        signs: jax.Array,
        content: jax.Array,
        query: jax.Array,
        have: jax.Array,
        current: CurrentFrameCache,
        cache: PastFramesCache,
    ) -> tuple[jax.Array, CurrentFrameCache]:
        """Takes in the bits of one step of a frame and gives what predicts those of the next.

        Args:
          signs: of the tokens of a step, ``[batch, row, bit]``; at the beginning of any.
          content: int32 ``[row]``, which tokens these are.
          query: int32 ``[row]``, which tokens come next; at the end any.
          have: bool ``[token]``, which tokens are known, those of `content` included.
          current: keys and values of the known tokens.
          cache: of the frames before.

        Returns:
          Contexts for `TokenBits` ``[batch, row, hidden]``, whole numbers, and what is known now.
        """
        near, numbers = jnp.asarray(self._near()), self.numbers()
        assert numbers.place is not None
        place = numbers.place
        taken = content.shape[0]
        before = (jnp.take(cache.before, rows, axis=1) for rows in (content, query))
        x = jnp.concatenate(
            [
                numbers.content_rows(signs, next(before), place[content]),
                numbers.query_rows(next(before), place[query]),
            ],
            axis=1,
        )
        places = jnp.concatenate([content, query])
        seen = jnp.concatenate([jnp.repeat(cache.seen, self.shape.tokens), have])[None, None]
        keys, values = current.keys, current.values
        for layer, block in enumerate(numbers.blocks):
            rows, key, value = block.heads_of(x, 0, 3)
            keys = keys.at[layer, :, content].set(jnp.moveaxis(key[:, :taken], 1, 0))
            values = values.at[layer, :, content].set(jnp.moveaxis(value[:, :taken], 1, 0))
            key, value = (
                rearrange(
                    jnp.concatenate([old[layer], new[layer][:, None]], axis=1),
                    "b w n h d -> b (w n) h d",
                )
                for old, new in ((cache.keys, keys), (cache.values, values))
            )
            x = block.finish(x, _attend(block, rows, key, value, seen, near[places]))
        return numbers.contexts(x[:, taken:]), CurrentFrameCache(keys, values)


class CurrentFrameCache(NamedTuple):
    """KV cache of the known tokens of the frame that is being decoded.

    Attributes:
      keys: ``[layer, batch, token, head, channel]``.
      values: the same.
    """

    keys: jax.Array
    values: jax.Array


def empty_past_frames(shape: PriorShape, batch: int) -> PastFramesCache:
    """The cache before the first frame: nothing is in it."""
    past = shape.window - 1
    size = (shape.layers, batch, past, shape.tokens, shape.heads, shape.width // shape.heads)
    before = jnp.zeros((batch, shape.tokens, shape.bits))
    # Arrays of their own, because programs are given them to write into.
    return PastFramesCache(jnp.zeros(size), jnp.zeros(size), jnp.zeros(past, bool), before)


def empty_current_frame(shape: PriorShape, batch: int) -> CurrentFrameCache:
    """The cache of a frame before its first token: nothing is in it."""
    size = (shape.layers, batch, shape.tokens, shape.heads, shape.width // shape.heads)
    return CurrentFrameCache(jnp.zeros(size), jnp.zeros(size))


def append_frame(
    cache: PastFramesCache, current: CurrentFrameCache, signs: jax.Array
) -> PastFramesCache:
    """The cache after a frame all of whose tokens are known, ``[batch, token, bit]``."""
    keys, values = (
        jnp.concatenate([old, new[:, :, None]], axis=2)[:, :, 1:]
        for old, new in ((cache.keys, current.keys), (cache.values, current.values))
    )
    seen = jnp.concatenate([cache.seen, jnp.ones(1, bool)])[1:]
    return PastFramesCache(keys, values, seen, signs)


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
      key: ``[..., key, head, channel]``.
      value: ``[..., key, head, channel]``.
      seen: bool ``[..., row, key]``, of as many axes.
      near: int32 ``[row, key]``, index of the distance among `block.near`.

    Returns:
      ``[..., row, width]``.
    """
    null = block.null
    join = (*key.shape[:-3], 1, *key.shape[-2:])
    key = jnp.concatenate([jnp.broadcast_to(null[0], join), key], axis=-3)
    value = jnp.concatenate([jnp.broadcast_to(null[1], join), value], axis=-3)
    scores = product(jnp.swapaxes(query, -3, -2), jnp.moveaxis(key, -3, -1))
    bias = block.near.reshape(len(block.near), -1)[:, near]  # [head, row, key]
    bias = jnp.pad(bias, ((0, 0), (0, 0), (1, 0)))
    visible = jnp.pad(seen, ((0, 0),) * (seen.ndim - 1) + ((1, 0),), constant_values=True)
    scores = block.scaled(scores) + expanded(bias, scores)
    scores = jnp.where(visible[..., None, :, :], scores, UNSEEN)
    shares = powers(scores, lowering(scores.shape[-1]))
    mixed = average(shares, jnp.swapaxes(value, -3, -2))
    return rearrange(mixed, "... head row channel -> ... row (head channel)")


def _windows(x: jax.Array, axis: int, time: int, window: int) -> jax.Array:
    """For each of `time` frames the window of frames that ends with it, as a new axis."""
    parts = [jax.lax.slice_in_dim(x, w, w + time, axis=axis) for w in range(window)]
    return jnp.stack(parts, axis=axis + 1)
