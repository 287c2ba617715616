"""Softmax attention of one block by plain matrix products: the reference, on every device."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.core.target import platform

# Numbers of the queries and of the keys, int32 ``[..., token]`` each: where they differ, the key is
# not visible. Every query has a visible key: itself, also where it is padding.
Labels = tuple[jax.Array, jax.Array]
_Pair = tuple[jax.Array, jax.Array]


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
    scores = _product("...qd,...kd->...qk", query, key)
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
    out = _product("...qk,...kd->...qd", weights.astype(value.dtype), value)
    return (out / total).astype(value.dtype)


def _product(axes: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """A product with float32 sums, whose gradient multiplies what it is given in its own type."""
    if platform() == "cpu" or left.dtype == jnp.float32:
        return jnp.einsum(axes, left, right, preferred_element_type=jnp.float32)
    return _narrow_product(axes, left, right)


# The transpose of a product of 16 bits with float32 sums multiplies its float32 gradient by 16
# bits, for which an accelerator has no units: it would widen keys, queries, values and weights. As
# in flash attention the gradient is rounded instead.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _narrow_product(axes: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(axes, left, right, preferred_element_type=jnp.float32)


def _forward(axes: str, left: jax.Array, right: jax.Array) -> tuple[jax.Array, _Pair]:
    return _narrow_product(axes, left, right), (left, right)


def _backward(axes: str, operands: _Pair, gradient: jax.Array) -> _Pair:
    pull: Callable[[jax.Array], _Pair] = jax.vjp(functools.partial(jnp.einsum, axes), *operands)[1]
    return pull(gradient.astype(operands[0].dtype))


_narrow_product.defvjp(_forward, _backward)
