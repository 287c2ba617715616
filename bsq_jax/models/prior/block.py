"""A block of a prior in whole numbers: attention and MLP."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from bsq_jax.models.initializers import spread
from bsq_jax.models.prior.bounds import SCALE, out_shift, shift_for
from bsq_jax.models.prior.integer_arithmetic import (
    LARGEST,
    RESIDUAL,
    expanded,
    normalize,
    powers,
    product,
    quotient,
    shift,
    weights,
    whole,
)
from bsq_jax.models.prior.shape import PriorShape

UNSEEN = -(2.0**20)
"""Score of a key that is not seen: so low that its weight is 0."""


class BlockNumbers(NamedTuple):
    """The whole numbers of a block, and what it computes with them.

    Attributes:
      qkv: ``[width, 3 width]``, of queries, keys and values.
      out: ``[width, width]``.
      up: ``[width, 4 width]``.
      up_bias: ``[4 width]``.
      down: ``[4 width, width]``.
      near: bias of the scores by distance, ``[head, frames back, row, column]``.
      null: a key and a value that are always there, ``[2, head, channel]``.
    """

    qkv: jax.Array
    out: jax.Array
    up: jax.Array
    up_bias: jax.Array
    down: jax.Array
    near: jax.Array
    null: jax.Array

    def heads_of(self, x: jax.Array, first: int, last: int) -> tuple[jax.Array, ...]:
        """Some of queries (0), keys (1) and values (2) of rows ``[..., width]``.

        Returns:
          Those from `first` up to `last`, excluded: ``[..., head, channel]``, within ±127.
        """
        width = len(self.qkv)
        made = product(normalize(x), self.qkv[:, first * width : last * width])
        made = jnp.clip(shift(made, shift_for(width, 40, 32)), -LARGEST, LARGEST)
        split = "... (kind head channel) -> kind ... head channel"
        parts = rearrange(made, split, kind=last - first, head=self.null.shape[1])
        return tuple(parts)

    def scaled(self, scores: jax.Array) -> jax.Array:
        """Scores of sums of products of queries and keys."""
        return shift(scores, shift_for(self.null.shape[-1], 32 / 16, 23 / 32))

    def shares(self, query: jax.Array, scores: jax.Array, lower: int) -> jax.Array:
        """Weights of attention, that of the null key first.

        Args:
          query: ``[..., head, channel]``.
          scores: of the other keys, `UNSEEN` of those that are not seen, ``[key, ..., head]``.
          lower: see `bsq_jax.models.prior.integer_arithmetic.powers`.

        Returns:
          ``[1 + key, ..., head]``.
        """
        null = self.scaled(jnp.einsum("...hc,hc->...h", query, self.null[0]))
        return powers(jnp.concatenate([null[None], scores]), lower, axis=0)

    def mean(self, shares: jax.Array, mixed: jax.Array) -> jax.Array:
        """What attention finds, ``[..., width]``.

        Args:
          shares: of `shares`.
          mixed: the weighted sum of the values without that of the null, ``[..., head, channel]``.
        """
        mixed = mixed + shares[0][..., None] * expanded(self.null[1], mixed)
        found = quotient(mixed, jnp.sum(shares, axis=0)[..., None])
        return rearrange(found, "... head channel -> ... (head channel)")

    def finish(self, x: jax.Array, mixed: jax.Array) -> jax.Array:
        """The rest of the block, from what attention found."""
        width = len(self.qkv)
        x = x + shift(product(mixed, self.out), out_shift(width))
        hidden = product(normalize(x), self.up)
        hidden = shift(hidden, shift_for(width, 40, 32)) + expanded(self.up_bias, x)
        hidden = jnp.clip(hidden, 0, LARGEST)
        x = x + shift(product(hidden, self.down), shift_for(4 * width, 23, 96))
        return jnp.clip(x, -RESIDUAL, RESIDUAL)


class Block(nn.Module):
    """Attention and MLP, each behind `normalize` and added to its input.

    Attributes:
      shape: of the prior.
    """

    shape: PriorShape

    def setup(self) -> None:
        """Makes the parameters."""
        shape = self.shape
        width, heads = shape.width, shape.heads
        fresh = spread(SCALE)
        self.qkv = self.param("qkv", fresh, (width, 3 * width))
        self.out = self.param("out", fresh, (width, width))
        self.up = self.param("up", fresh, (width, 4 * width))
        self.up_bias = self.param("up_bias", nn.initializers.zeros, (4 * width,))
        self.down = self.param("down", fresh, (4 * width, width))
        distances = (heads, shape.window, *shape.distances)
        self.near = self.param("near", nn.initializers.zeros, distances)
        # Something that is always there to look at: the first token has no other.
        self.null = self.param("null", spread(SCALE), (2, heads, width // heads))

    def numbers(self) -> BlockNumbers:
        """The whole numbers that the parameters stand for."""
        return BlockNumbers(
            weights(self.qkv),
            weights(self.out),
            weights(self.up),
            whole(self.up_bias),
            weights(self.down),
            whole(self.near),
            whole(self.null),
        )
