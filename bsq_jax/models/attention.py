"""Self-attention. Every kind of attention in the package goes through `attend`."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from bsq_jax.models.initializers import bias, kernel


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
    """Scaled dot-product attention, softmax in float32.

    Args:
      query: ``[batch, query, head, channel]``.
      key: ``[batch, key, head, channel]``.
      value: ``[batch, key, head, channel]``.
      mask: booleans that broadcast to ``[batch, head, query, key]``, True = may attend. Every
        query must see at least one key.

    Returns:
      ``[batch, query, head, channel]`` in the dtype of `query`.
    """
    return jax.nn.dot_product_attention(query, key, value, mask=mask)


def block_causal_mask(frames: int, tokens_per_frame: int) -> jax.Array | None:
    """The mask of block-wise causal attention: a token of frame t sees all tokens of frames <= t.

    Returns:
      Booleans ``[1, 1, tokens, tokens]`` with tokens = frames * tokens_per_frame in (time, height,
      width) order; None for one frame, which sees all of itself.
    """
    if frames == 1:
        return None
    frame = jnp.arange(frames * tokens_per_frame) // tokens_per_frame
    return (frame[:, None] >= frame[None, :])[None, None]


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases.

    Attributes:
      heads: number of heads; must divide the width.
      dtype: dtype of the computation; parameters are float32.
    """

    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Maps ``[batch, token, width]`` to the same shape."""
        width = x.shape[-1]
        qkv = nn.DenseGeneral(
            features=(3, self.heads, width // self.heads),
            dtype=self.dtype,
            kernel_init=kernel("embed", None, "heads", None),
            bias_init=bias(None, "heads", None),
            name="qkv",
        )(x)
        query, key, value = (qkv[:, :, i] for i in range(3))
        out = attend(query, key, value, mask)
        return nn.DenseGeneral(
            features=width,
            axis=(-2, -1),
            dtype=self.dtype,
            kernel_init=kernel("heads", None, "embed"),
            bias_init=bias("embed"),
            name="out",
        )(out)
