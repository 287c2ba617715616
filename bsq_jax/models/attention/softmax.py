"""Softmax attention of one block by plain matrix products: the reference, on every device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# Numbers of the queries and of the keys, int32 ``[..., token]`` each: where they differ, the key is
# not visible. Every query has a visible key: itself, also where it is padding.
Labels = tuple[jax.Array, jax.Array]


def softmax_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: np.ndarray | None = None,
    labels: Labels | None = None,
) -> jax.Array:
    """Scaled dot-product attention of ``[..., token, channel]``, softmax in float32.

    Args:
      query: the queries.
      key: the keys.
      value: the values.
      mask: booleans ``[query, key]``, True = visible; None: all are.
      labels: see `Labels`; None: all keys are visible.
    """
    scores = jnp.einsum("...qd,...kd->...qk", query, key, preferred_element_type=jnp.float32)
    scores = scores * np.float32(query.shape[-1] ** -0.5)
    if mask is not None:
        mask = mask.reshape((1,) * (scores.ndim - 2) + mask.shape)
        scores = jnp.where(mask, scores, -jnp.inf)
    if labels is not None:
        queries, keys = labels
        scores = jnp.where(queries[..., :, None] == keys[..., None, :], scores, -jnp.inf)
    # The softmax's division comes after the product: it then goes over channels and not over keys.
    highest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - highest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jnp.einsum(
        "...qk,...kd->...qd",
        weights.astype(value.dtype),
        value,
        preferred_element_type=jnp.float32,
    )
    return (out / total).astype(value.dtype)
