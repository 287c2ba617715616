"""What the priors have in common: the rows of tokens, the blocks and the last layers.

A transformer in whole numbers (`integer_arithmetic`): probabilities come out the same on every
machine. Tokens of a frame are taken in steps, those of a step at once;
`bsq_jax.models.prior.shape` says in which. Each token has two rows: the *content* row knows its
bits and is what later tokens look at; the *query* row does not, and predicts them from the content
of earlier steps and frames. `bsq_jax.models.prior.token_bits` goes through the bits of a token.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from bsq_jax.models.initializers import spread
from bsq_jax.models.prior.block import Block
from bsq_jax.models.prior.bounds import SCALE, shift_for
from bsq_jax.models.prior.integer_arithmetic import (
    RESIDUAL,
    expanded,
    normalize,
    product,
    shift,
    weights,
    whole,
)
from bsq_jax.models.prior.shape import PriorShape
from bsq_jax.models.prior.token_bits import bit_logits


class PriorNetwork(nn.Module):
    """A prior without its attention.

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
        if not shape.any_size:
            self.place = self.param("place", fresh, (shape.tokens, shape.width))
        self.unknown = self.param("unknown", fresh, (shape.width,))
        self.blocks = [Block(shape, name=f"block_{i}") for i in range(shape.layers)]
        self.context = self.param("context", fresh, (shape.width, shape.hidden))
        self.context_bias = self.param("context_bias", fresh, (shape.hidden,))
        self.earlier = self.param("earlier", spread(0.1), (shape.bits, shape.hidden))
        self.later = self.param(
            "later", spread(0.05), (shape.bits, shape.hidden)
        )  # unsure at first
        self.logit_bias = self.param("logit_bias", nn.initializers.zeros, (shape.bits,))

    def content_rows(
        self, signs: jax.Array, before: jax.Array, place: jax.Array | None = None
    ) -> jax.Array:
        """Rows of known tokens, ``[..., width]``.

        Args:
          signs: of their bits, ``[..., bit]``.
          before: of the tokens at the same places in the frame before, or zeros, ``[..., bit]``.
          place: what tells where a token lies, ``[..., width]``; None: nothing does.
        """
        known = product(signs, whole(self.embed)) + product(before, whole(self.before))
        if place is not None:
            known += expanded(place, known)
        return jnp.clip(4 * known, -RESIDUAL, RESIDUAL)

    def query_rows(self, before: jax.Array, place: jax.Array | None = None) -> jax.Array:
        """Rows of tokens that are to be predicted, see `content_rows`."""
        known = product(before, whole(self.before))
        known += expanded(whole(self.unknown), known)
        if place is not None:
            known += expanded(place, known)
        return jnp.clip(4 * known, -RESIDUAL, RESIDUAL)

    def contexts(self, x: jax.Array) -> jax.Array:
        """What `bsq_jax.models.prior.token_bits` needs, ``[..., hidden]`` of query rows."""
        made = product(normalize(x), weights(self.context))
        made = shift(made, shift_for(self.shape.width, 40, 32))
        return made + expanded(whole(self.context_bias), made)

    def bits(self, contexts: jax.Array, signs: jax.Array) -> jax.Array:
        """See `bit_logits`."""
        parameters = self.earlier, self.later, self.logit_bias
        return bit_logits(contexts, signs, parameters, self.shape.layout)
