"""A small prior on the levels of tokens, for the rate in the loss of a tokenizer.

A token is a level of each channel (`bsq_jax.quantizers.base.Quantizer.scalar_levels`). The network
gives a categorical distribution of each channel's level, given six tokens of the same frame that
come earlier in raster order (to the left and above, two tokens far) and the earlier channels of the
token: as the context models of learned image compression (Minnen et al., arXiv 1809.02736), one
layer deep, because it is trained and used beside the tokenizer in every step. What codes files is
the larger `bsq_jax.models.prior`.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.models.initializers import bias, spread

NEIGHBOURS = ((-1, 0), (0, -1), (-1, -1), (-1, 1), (-2, 0), (0, -2))
"""(rows, columns) from a token to those that it depends on."""


class LevelPrior(nn.Module):
    """Logits of the levels of tokens.

    Attributes:
      channels: of a token, C.
      levels: of each channel, N.
      hidden: channels of what is made of the neighbours.
      features: hidden channels of each channel's distribution.
    """

    channels: int
    levels: int
    hidden: int = 128
    features: int = 24

    @nn.compact
    def __call__(self, levels: jax.Array) -> jax.Array:
        """Maps int32 ``[batch, row, column, C]`` to float32 logits ``[..., C, N]``, in nats."""
        channels, count = self.channels, self.levels
        value = (2 * levels.astype(jnp.float32) - (count - 1)) / count
        inside = jnp.ones_like(value[..., :1])
        given = jnp.concatenate([value, value * value, inside], axis=-1)
        padded = jnp.pad(given, ((0, 0), (2, 0), (2, 1), (0, 0)))
        rows, columns = levels.shape[1:3]
        seen = [
            padded[:, 2 + row : 2 + row + rows, 2 + column : 2 + column + columns]
            for row, column in NEIGHBOURS
        ]
        x = nn.gelu(nn.Dense(self.hidden, name="neighbours")(jnp.concatenate(seen, axis=-1)))
        x = nn.Dense(self.hidden, name="mixed")(x)
        context = self.param(
            "context", spread(self.hidden**-0.5), (self.hidden, channels, self.features)
        )
        earlier = self.param("earlier", spread(0.02), (channels, count, channels, self.features))
        # Channel c sees those before it alone.
        before = np.triu(np.ones((channels, channels), np.float32), 1)[:, None, :, None]
        chosen = jax.nn.one_hot(levels, count)
        x = jnp.einsum("bhwd,dcf->bhwcf", x, context)
        x += jnp.einsum("bhwkl,klcf->bhwcf", chosen, earlier * before)
        out = self.param("out", spread(self.features**-0.5), (channels, self.features, count))
        biases = self.param("logit_bias", bias(None, None), (channels, count))
        return jnp.einsum("bhwcf,cfl->bhwcl", nn.gelu(x), out) + biases[None, None, None]
