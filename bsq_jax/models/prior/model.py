"""The prior: how likely each bit of a token is, given the tokens and bits before it.

A transformer over the tokens of a tile, frame by frame, in whole numbers (`integer_arithmetic`):
probabilities come out the same on every machine. Tokens of a frame are taken in steps, those of a
step at once; `bsq_jax.models.prior.shape` says in which. Each token has two rows: the *content* row
knows its bits and is what later tokens look at; the *query* row does not, and predicts them from
the content of earlier steps and frames. Inside a token bits are predicted one after the other by a
small network that sees the earlier ones (neural autoregressive distribution estimator: Larochelle
and Murray, 2011).

Bits are written as signs: -1, 1, and 0 where a token keeps fewer bits than there are. A bit that
must be 0, because no code has these bits and then a 1, has the lowest logit whatever the network
says: so patterns that name no code take no probability from those that do.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from bsq_jax.models.initializers import spread
from bsq_jax.models.prior.bounds import SCALE, logit_shift, out_shift, shift_for
from bsq_jax.models.prior.integer_arithmetic import (
    LARGEST,
    RESIDUAL,
    SUM_BITS,
    UNIT,
    average,
    exactly,
    lowering,
    normalize,
    powers,
    product,
    shift,
    weights,
    whole,
)
from bsq_jax.models.prior.shape import PriorShape

LOGIT = 64  # a logit of 1 nat is the whole number 64
LARGEST_LOGIT = 11 * LOGIT  # what 16 bits of probability can tell
_UNSEEN = -(2.0**20)


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


class _Block(nn.Module):
    """Attention and MLP, each behind `normalize` and added to its input."""

    shape: PriorShape

    def setup(self) -> None:
        shape = self.shape
        width, heads = shape.width, shape.heads
        fresh = spread(SCALE)
        self.qkv = self.param("qkv", fresh, (width, 3 * width))
        self.out = self.param("out", fresh, (width, width))
        self.up = self.param("up", fresh, (width, 4 * width))
        self.up_bias = self.param("up_bias", nn.initializers.zeros, (4 * width,))
        self.down = self.param("down", fresh, (4 * width, width))
        distances = (heads, shape.window, 2 * shape.rows - 1, 2 * shape.columns - 1)
        self.near = self.param("near", nn.initializers.zeros, distances)
        # Something that is always there to look at: the first token has no other.
        self.null = self.param("null", spread(SCALE), (2, heads, width // heads))

    def rows(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values ``[..., row, head, channel]`` of ``[..., row, width]``."""
        shape = self.shape
        made = product(normalize(x), weights(self.qkv))
        made = jnp.clip(shift(made, shift_for(shape.width, 40, 32)), -LARGEST, LARGEST)
        query, key, value = jnp.split(made, 3, axis=-1)
        split = "... (head channel) -> ... head channel"
        return tuple(rearrange(y, split, head=shape.heads) for y in (query, key, value))  # type: ignore[return-value]

    def attend(
        self, query: jax.Array, key: jax.Array, value: jax.Array, seen: jax.Array, near: Any
    ) -> jax.Array:
        """Attention.

        Args:
          query: ``[..., row, head, channel]``.
          key: ``[..., key, head, channel]``.
          value: ``[..., key, head, channel]``.
          seen: bool ``[..., row, key]``, of as many axes.
          near: int32 ``[row, key]``, index of the distance among `self.near`.

        Returns:
          ``[..., row, width]``.
        """
        null = whole(self.null)
        join = (*key.shape[:-3], 1, *key.shape[-2:])
        key = jnp.concatenate([jnp.broadcast_to(null[0], join), key], axis=-3)
        value = jnp.concatenate([jnp.broadcast_to(null[1], join), value], axis=-3)
        scores = product(jnp.swapaxes(query, -3, -2), jnp.moveaxis(key, -3, -1))
        scores = shift(scores, shift_for(self.shape.width // self.shape.heads, 32 / 16, 23 / 32))
        bias = whole(self.near).reshape(self.shape.heads, -1)[:, near]  # [head, row, key]
        bias = jnp.pad(bias, ((0, 0), (0, 0), (1, 0)))
        visible = jnp.pad(seen, ((0, 0),) * (seen.ndim - 1) + ((1, 0),), constant_values=True)
        bias = bias.reshape((1,) * (scores.ndim - 3) + bias.shape)
        scores = jnp.where(visible[..., None, :, :], scores + bias, _UNSEEN)
        shares = powers(scores, lowering(scores.shape[-1]))
        mixed = average(shares, jnp.swapaxes(value, -3, -2))
        return rearrange(mixed, "... head row channel -> ... row (head channel)")

    def finish(self, x: jax.Array, mixed: jax.Array) -> jax.Array:
        """The rest of the block, from what attention found."""
        width = self.shape.width
        x = x + shift(product(mixed, weights(self.out)), out_shift(width))
        hidden = product(normalize(x), weights(self.up))
        hidden = shift(hidden, shift_for(width, 40, 32)) + _like(whole(self.up_bias), x)
        hidden = jnp.clip(hidden, 0, LARGEST)
        x = x + shift(product(hidden, weights(self.down)), shift_for(4 * width, 23, 96))
        return jnp.clip(x, -RESIDUAL, RESIDUAL)


class PriorModel(nn.Module):
    """The network.

    Attributes:
      shape: what fixes the parameters.
    """

    shape: PriorShape

    def setup(self) -> None:
        """Makes the parts."""
        shape = self.shape
        fresh = spread(SCALE)
        self.embed = self.param("embed", fresh, (shape.bits, shape.width))
        self.before = self.param("before", fresh, (shape.bits, shape.width))
        self.place = self.param("place", fresh, (shape.tokens, shape.width))
        self.unknown = self.param("unknown", fresh, (shape.width,))
        self.blocks = [_Block(shape, name=f"block_{i}") for i in range(shape.layers)]
        self.context = self.param("context", fresh, (shape.width, shape.hidden))
        self.context_bias = self.param("context_bias", fresh, (shape.hidden,))
        self.earlier = self.param("earlier", spread(0.1), (shape.bits, shape.hidden))
        self.later = self.param(
            "later", spread(0.05), (shape.bits, shape.hidden)
        )  # unsure at first
        self.logit_bias = self.param("logit_bias", nn.initializers.zeros, (shape.bits,))

    # --- rows ---

    def _content(self, signs: jax.Array, before: jax.Array, place: np.ndarray | jax.Array) -> Any:
        known = product(signs, whole(self.embed)) + product(before, whole(self.before))
        place_ = _like(whole(self.place)[place], known)
        return jnp.clip(4 * (known + place_), -RESIDUAL, RESIDUAL)

    def _query(self, before: jax.Array, place: np.ndarray | jax.Array) -> jax.Array:
        known = product(before, whole(self.before))
        place_ = whole(self.place)[place] + whole(self.unknown)[None]
        return jnp.clip(4 * (known + _like(place_, known)), -RESIDUAL, RESIDUAL)

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
          signs: float32 ``[batch, time, token, bit]``.

        Returns:
          Whole numbers, `LOGIT` a nat, ``[batch, time, token, bit]``.
        """
        cache = empty_past_frames(self.shape, signs.shape[0])
        return self.frames(signs, cache)[0]

    def frames(self, signs: jax.Array, cache: PastFramesCache) -> tuple[jax.Array, PastFramesCache]:
        """Logits of all bits of the next frames, and the cache after them."""
        shape = self.shape
        _, time, tokens, _ = signs.shape
        steps, near, place = shape.steps, self._near(), np.arange(tokens)
        before = jnp.concatenate([cache.before[:, None], signs[:, :-1]], axis=1)
        present = jnp.concatenate([cache.seen, jnp.ones(time, bool)])
        known = _windows(present, 0, time, shape.window)[:, None, :, None]  # [t, 1, w, 1]
        # Query rows see earlier steps of their frame, content rows those and their own.
        own = np.stack([steps[:, None] > steps, steps[:, None] >= steps])  # [2, row, token]
        inside = np.ones((2, tokens, shape.window, tokens), bool)
        inside[:, :, -1] = own
        inside = rearrange(inside, "kind n w m -> (kind n) w m")
        seen = rearrange(known & inside[None], "t r w n -> t r (w n)")[None]
        x = jnp.concatenate([self._query(before, place), self._content(signs, before, place)], 2)
        keys, values = [], []
        for layer, block in enumerate(self.blocks):
            query, key, value = block.rows(x)
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
            mixed = block.attend(query, key, value, seen, np.concatenate([near, near]))
            x = block.finish(x, mixed)
        logits = self._bits(self._contexts(x[:, :, :tokens]), signs)
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
        near = jnp.asarray(self._near())
        taken = content.shape[0]
        x = jnp.concatenate(
            [
                self._content(signs, jnp.take(cache.before, content, axis=1), content),
                self._query(jnp.take(cache.before, query, axis=1), query),
            ],
            axis=1,
        )
        places = jnp.concatenate([content, query])
        seen = jnp.concatenate([jnp.repeat(cache.seen, self.shape.tokens), have])[None, None]
        keys, values = current.keys, current.values
        for layer, block in enumerate(self.blocks):
            rows, key, value = block.rows(x)
            keys = keys.at[layer, :, content].set(jnp.moveaxis(key[:, :taken], 1, 0))
            values = values.at[layer, :, content].set(jnp.moveaxis(value[:, :taken], 1, 0))
            key, value = (
                rearrange(
                    jnp.concatenate([old[layer], new[layer][:, None]], axis=1),
                    "b w n h d -> b (w n) h d",
                )
                for old, new in ((cache.keys, keys), (cache.values, values))
            )
            x = block.finish(x, block.attend(rows, key, value, seen, near[places]))
        return self._contexts(x[:, taken:]), CurrentFrameCache(keys, values)

    # --- the bits of a token ---

    def _contexts(self, x: jax.Array) -> jax.Array:
        made = product(normalize(x), weights(self.context))
        made = shift(made, shift_for(self.shape.width, 40, 32))
        return made + _like(whole(self.context_bias), made)

    def _bits(self, contexts: jax.Array, signs: jax.Array) -> jax.Array:
        """Logits ``[..., bit]`` of contexts ``[..., hidden]``, each bit seeing the ones before."""
        signs = signs[..., None]
        steps = signs * _like(whole(self.earlier), signs)  # [..., bit, hidden]
        sums = jnp.cumsum(steps, axis=-2) - steps
        hidden = jnp.clip(contexts[..., None, :] + sums, 0, LARGEST)
        products = hidden * _like(whole(self.later), hidden)
        logits = _sum_shifted(products, logit_shift(self.shape.hidden))
        logits += _like(whole(self.logit_bias), logits)
        logits = jnp.clip(logits, -LARGEST_LOGIT, LARGEST_LOGIT)
        bits, layout = signs[..., 0] > 0, self.shape.layout
        for place in layout.limited:
            zero = layout.must_be_zero(bits, place)
            chosen = jnp.where(zero, -LARGEST_LOGIT, logits[..., place])
            logits = logits.at[..., place].set(chosen)
        return logits


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


class TokenBits:
    """Goes through the bits of tokens on the host, where the decoder is; as `PriorModel._bits`."""

    def __init__(self, shape: PriorShape, params: Any):
        """Takes the parameters of a `PriorModel`."""

        def integers(name: str) -> np.ndarray:
            scaled = np.clip(np.asarray(params[name], np.float32) * UNIT, -LARGEST, LARGEST)
            return np.round(scaled).astype(np.int32)

        self.earlier, self.later = integers("earlier"), integers("later")
        self.bias = integers("logit_bias")
        self.drop, self.layout = logit_shift(shape.hidden), shape.layout
        self.limited = frozenset(shape.layout.limited)

    def logits(self, sums: np.ndarray, bits: np.ndarray, bit: int) -> np.ndarray:
        """Logits of one bit.

        Args:
          sums: int32 ``[..., hidden]``.
          bits: 0/1 ``[..., L]`` or less, of which those before `bit` count.
          bit: which one.

        Returns:
          int32 ``[...]``, `LOGIT` a nat.
        """
        hidden = np.clip(sums, 0, LARGEST)
        made = hidden @ self.later[bit]
        made = ((2 * made + (1 << self.drop)) >> (self.drop + 1)) + self.bias[bit]
        made = np.clip(made, -LARGEST_LOGIT, LARGEST_LOGIT)
        if bit in self.limited:
            made[self.layout.must_be_zero(bits, bit)] = -LARGEST_LOGIT
        return made

    def after(self, sums: np.ndarray, bit: int, values: np.ndarray) -> np.ndarray:
        """Sums once a bit is known, 0 or 1 ``[...]``."""
        return sums + (2 * values.astype(np.int32) - 1)[..., None] * self.earlier[bit]


def _like(x: jax.Array, y: jax.Array) -> jax.Array:
    """The array with axes of size 1 before its own, as many axes in all as `y` has."""
    return x.reshape((1,) * (y.ndim - x.ndim) + x.shape)


def _sum_shifted(products: jax.Array, bits: int) -> jax.Array:
    """The sum over the last axis of products of two numbers of 8 bits, shifted; float32."""
    each = 2**SUM_BITS // LARGEST**2  # products of which a float32 sum is exact, and half a step
    if products.shape[-1] <= each:
        return shift(jnp.sum(products, axis=-1), bits)
    parts = [
        jnp.sum(products[..., first : first + each], axis=-1)
        for first in range(0, products.shape[-1], each)
    ]
    whole_ = sum(jax.lax.stop_gradient(part).astype(jnp.int32) for part in parts)
    value = (2 * jnp.asarray(whole_) + (1 << bits)) >> (bits + 1)
    return exactly(value.astype(jnp.float32), jnp.asarray(sum(parts)) * np.float32(2.0**-bits))


def _windows(x: jax.Array, axis: int, time: int, window: int) -> jax.Array:
    """For each of `time` frames the window of frames that ends with it, as a new axis."""
    parts = [jax.lax.slice_in_dim(x, w, w + time, axis=axis) for w in range(window)]
    return jnp.stack(parts, axis=axis + 1)


def cross_entropy(logits: jax.Array, signs: jax.Array) -> jax.Array:
    """Bits that each sign costs, 0 where there is none; shapes ``[...]``."""
    nats = jax.nn.softplus(-signs * logits / LOGIT)
    return jnp.where(signs != 0, nats / np.float32(np.log(2)), 0.0)
