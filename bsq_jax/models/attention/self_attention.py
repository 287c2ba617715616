"""Multi-head self-attention over the tokens of a clip."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from bsq_jax.core import cpu
from bsq_jax.models.attention.attend import attend
from bsq_jax.models.attention.causality import EVERYTHING, Causality
from bsq_jax.models.attention.choice import Blocking
from bsq_jax.models.initializers import bias, kernel
from bsq_jax.models.positions import Rotation, rotate

# Keys and values of some frames in a layer, ``[batch, time, token, head, channel]`` each; of all
# layers together ``[layer, batch, time, token, head, channel]``.
KVCache = tuple[jax.Array, jax.Array]


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases.

    Attributes:
      heads: number of heads; must divide the width.
      causality: which tokens are visible to a token.
      dtype: dtype of the computation; parameters are float32.
      implementation: see `attend`.
      blocking: see `attend`.
    """

    heads: int
    causality: Causality = EVERYTHING
    dtype: jnp.dtype = jnp.float32
    implementation: str = "auto"
    blocking: Blocking = Blocking.LARGE

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        rotation: Rotation | None = None,
        past: KVCache | None = None,
        real: jax.Array | None = None,
        regions: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """Attends from the tokens of some frames to these and to earlier ones.

        Args:
          x: ``[batch, time, token, width]``.
          rotation: rotary positions of these tokens, if the model has them.
          past: keys and values of the frames before, if there are any.
          real: frames of each example that are not padding, see `attend`.
          regions: which tokens of a frame see each other, see `attend`.

        Returns:
          ``[batch, time, token, width]``, and keys and values of these frames.
        """
        width = x.shape[-1]
        qkv = nn.DenseGeneral(
            features=(3, self.heads, width // self.heads),
            dtype=self.dtype,
            dot_general=cpu.dot_general,
            kernel_init=kernel("embed", None, "heads", None),
            bias_init=bias(None, "heads", None),
            name="qkv",
        )(x)
        query, key, value = (qkv[..., i, :, :] for i in range(3))
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        present = key, value
        if past is not None:
            key, value = (jnp.concatenate(pair, axis=1) for pair in zip(past, present, strict=True))
        out = attend(
            *(query, key, value, self.causality, self.implementation, real, self.blocking),
            regions=regions,
        )
        out = nn.DenseGeneral(
            features=width,
            axis=(-2, -1),
            dtype=self.dtype,
            dot_general=cpu.dot_general,
            kernel_init=kernel("heads", None, "embed"),
            bias_init=bias("embed"),
            name="out",
        )(out)
        return out, present
