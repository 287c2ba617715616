"""What the priors have in common: the rows of tokens, the blocks and the last layers.

A transformer in whole numbers (`integer_arithmetic`): probabilities come out the same on every
machine. Tokens of a frame are taken in steps, those of a step at once;
`bsq_jax.models.prior.shape` says in which. Each token has two rows: the *content* row knows its
bits and is what later tokens look at; the *query* row does not, and predicts them from the content
of earlier steps and frames. `bsq_jax.models.prior.token_bits` goes through the bits of a token.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bsq_jax.models.initializers import spread
from bsq_jax.models.prior.block import Block, BlockNumbers
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
from bsq_jax.quantizers.layout import TokenLayout


class PriorNumbers(NamedTuple):
    """The whole numbers of a prior, float32, and what it computes with them outside its attention.

    Coders make them once and compute every step with them.

    Attributes:
      embed: ``[bit, width]``, of the bits of a token.
      before: ``[bit, width]``, of those of the token at its place in the frame before.
      place: ``[token, width]``, of the places of a tile; None of priors with a reach.
      unknown: ``[width]``, of a token whose bits are not known.
      blocks: of each layer.
      context: ``[width, hidden]``.
      context_bias: ``[hidden]``.
      earlier: see `bit_logits`.
      later: likewise.
      logit_bias: likewise.
    """

    embed: jax.Array
    before: jax.Array
    place: jax.Array | None
    unknown: jax.Array
    blocks: tuple[BlockNumbers, ...]
    context: jax.Array
    context_bias: jax.Array
    earlier: jax.Array
    later: jax.Array
    logit_bias: jax.Array

    def content_rows(
        self, signs: jax.Array, before: jax.Array, place: jax.Array | None = None
    ) -> jax.Array:
        """Rows of known tokens, ``[..., width]``.

        Args:
          signs: of their bits, ``[..., bit]``.
          before: of the tokens at the same places in the frame before, or zeros, ``[..., bit]``.
          place: what tells where a token lies, ``[..., width]``; None: nothing does.
        """
        known = product(signs, self.embed) + product(before, self.before)
        if place is not None:
            known += expanded(place, known)
        return jnp.clip(4 * known, -RESIDUAL, RESIDUAL)

    def query_rows(self, before: jax.Array, place: jax.Array | None = None) -> jax.Array:
        """Rows of tokens that are to be predicted, see `content_rows`."""
        known = product(before, self.before)
        known += expanded(self.unknown, known)
        if place is not None:
            known += expanded(place, known)
        return jnp.clip(4 * known, -RESIDUAL, RESIDUAL)

    def contexts(self, x: jax.Array) -> jax.Array:
        """What `bsq_jax.models.prior.token_bits` needs, ``[..., hidden]`` of query rows."""
        made = product(normalize(x), self.context)
        made = shift(made, shift_for(len(self.context), 40, 32))
        return made + expanded(self.context_bias, made)

    def bits(self, contexts: jax.Array, signs: jax.Array, layout: TokenLayout) -> jax.Array:
        """See `bit_logits`."""
        return bit_logits(contexts, signs, (self.earlier, self.later, self.logit_bias), layout)


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
        # Nothing at first: priors of pictures, which see no frame before, code clips as pictures.
        self.before = self.param("before", nn.initializers.zeros, (shape.bits, shape.width))
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

    def numbers(self) -> PriorNumbers:
        """The whole numbers that the parameters stand for."""
        return PriorNumbers(
            embed=whole(self.embed),
            before=whole(self.before),
            place=None if self.shape.any_size else whole(self.place),
            unknown=whole(self.unknown),
            blocks=tuple(block.numbers() for block in self.blocks),
            context=weights(self.context),
            context_bias=whole(self.context_bias),
            earlier=whole(self.earlier),
            later=whole(self.later),
            logit_bias=whole(self.logit_bias),
        )
