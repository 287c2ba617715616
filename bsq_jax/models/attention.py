"""Self-attention. Every kind of attention in the package goes through `attend`."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from bsq_jax.models.initializers import bias, kernel

IMPLEMENTATIONS = ("auto", "dense", "by_head")
# From this many keys on, one head's scores at a time are never slower on a CPU than all heads' at
# once, up to 1.6 times faster, and take a fraction of the memory (benchmarks/README.md).
_BY_HEAD_FROM = 1024


def choose_implementation(implementation: str, keys: int) -> str:
    """What ``auto`` stands for on this backend: ``by_head`` for long sequences on a CPU."""
    if implementation != "auto":
        return implementation
    return "by_head" if jax.default_backend() == "cpu" and keys >= _BY_HEAD_FROM else "dense"


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Scaled dot-product attention, softmax in float32.

    Args:
      query: ``[batch, query, head, channel]``.
      key: ``[batch, key, head, channel]``.
      value: ``[batch, key, head, channel]``.
      mask: booleans ``[1, 1, query, key]``, True = may attend. Every query must see at least one
        key.
      implementation: ``dense``: all scores at once. ``by_head``: the scores of one
        head of one example at a time, computed again in the backward pass; they stay in a CPU's
        cache. ``auto``: see `choose_implementation`.

    Returns:
      ``[batch, query, head, channel]`` in the dtype of `query`.
    """
    chosen = choose_implementation(implementation, key.shape[1])
    mask = None if mask is None else mask[0, 0]
    # Heads in front: a CPU then multiplies contiguous matrices.
    q, k, v = (rearrange(x, "b n h d -> b h n d") for x in (query, key, value))
    if chosen == "dense":
        return rearrange(_softmax_attention(q, k, v, mask), "b h n d -> b n h d")
    rows = tuple(rearrange(x, "b h n d -> (b h) n d") for x in (q, k, v))
    one_head = jax.checkpoint(lambda row: _softmax_attention(row[0], row[1], row[2], mask))
    out = jax.lax.map(one_head, rows)
    return rearrange(out, "(b h) n d -> b n h d", b=query.shape[0])


def _softmax_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None
) -> jax.Array:
    """Attention of ``[..., token, channel]`` with a mask ``[query, key]`` or None."""
    scores = jnp.einsum("...qd,...kd->...qk", query, key, preferred_element_type=jnp.float32)
    scores = scores * np.float32(query.shape[-1] ** -0.5)
    if mask is not None:
        mask = mask.reshape((1,) * (scores.ndim - 2) + mask.shape)
        scores = jnp.where(mask, scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("...qk,...kd->...qd", weights, value)


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
      implementation: see `attend`.
    """

    heads: int
    dtype: jnp.dtype = jnp.float32
    implementation: str = "auto"

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
        out = attend(query, key, value, mask, self.implementation)
        return nn.DenseGeneral(
            features=width,
            axis=(-2, -1),
            dtype=self.dtype,
            kernel_init=kernel("heads", None, "embed"),
            bias_init=bias("embed"),
            name="out",
        )(out)
