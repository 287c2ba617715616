"""Products with weights, as fast as a CPU can."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bsq_jax.core.target import platform


def dot_general(
    lhs: jax.Array,
    rhs: jax.Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """`jax.lax.dot_general`, for the argument `dot_general` of Flax's linear layers.

    On a CPU `precision` and `preferred_element_type` do not matter: the result has the dtype of
    `lhs`.

    Args:
      lhs: the activations.
      rhs: the weights, contracted in their first axes with the last ones of `lhs`.
      dimension_numbers: as of `jax.lax.dot_general`.
      precision: likewise.
      preferred_element_type: likewise.
    """
    contracted, batch = dimension_numbers
    count = len(contracted[0])
    axes = tuple(range(lhs.ndim - count, lhs.ndim)), tuple(range(count))
    of_weights = tuple(map(tuple, contracted)) == axes and not batch[0]
    if platform() != "cpu" or not of_weights or lhs.dtype != rhs.dtype:
        return lax.dot_general(
            lhs,
            rhs,
            dimension_numbers,
            precision=precision,
            preferred_element_type=preferred_element_type,
        )
    # As matrices: XLA for CPUs transposes weights of more axes, and their gradients, in memory.
    inputs = math.prod(rhs.shape[:count])
    multiply = _through_float32 if lhs.dtype == jnp.bfloat16 else jnp.matmul
    out = multiply(lhs.reshape(-1, inputs), rhs.reshape(inputs, -1))
    return out.reshape(*lhs.shape[: lhs.ndim - count], *rhs.shape[count:])


# For CPUs jax 0.10 has a fast kernel from bfloat16 to float32, but none to bfloat16, which takes
# twice as long. The gradient is that of the plain product, because the transpose of this one would
# multiply in float32.
@jax.custom_vjp
def _through_float32(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    return jnp.matmul(lhs, rhs, preferred_element_type=jnp.float32).astype(lhs.dtype)


def _forward(lhs: jax.Array, rhs: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _through_float32(lhs, rhs), (lhs, rhs)


def _backward(operands: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, ...]:
    return jax.vjp(jnp.matmul, *operands)[1](gradient)


_through_float32.defvjp(_forward, _backward)
