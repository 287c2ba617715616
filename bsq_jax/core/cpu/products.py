"""Products with weights in bfloat16, as fast as a CPU can."""

from __future__ import annotations

import functools
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

    Args:
      lhs: the activations.
      rhs: the weights.
      dimension_numbers: as of `jax.lax.dot_general`.
      precision: likewise.
      preferred_element_type: likewise; a product in bfloat16 on a CPU is bfloat16 whatever it says.
    """
    if platform() != "cpu" or not lhs.dtype == rhs.dtype == jnp.bfloat16:
        return lax.dot_general(
            lhs,
            rhs,
            dimension_numbers,
            precision=precision,
            preferred_element_type=preferred_element_type,
        )
    return _through_float32(lhs, rhs, dimension_numbers)


# For CPUs jax 0.10 has a fast kernel from bfloat16 to float32, but none to bfloat16, which takes
# twice as long. The gradient is that of the plain product, because the transpose of this one would
# multiply in float32.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _through_float32(lhs: jax.Array, rhs: jax.Array, dimension_numbers: Any) -> jax.Array:
    wide = lax.dot_general(lhs, rhs, dimension_numbers, preferred_element_type=jnp.float32)
    return wide.astype(lhs.dtype)


def _forward(lhs: jax.Array, rhs: jax.Array, dimension_numbers: Any) -> tuple[jax.Array, Any]:
    return _through_float32(lhs, rhs, dimension_numbers), (lhs, rhs)


def _backward(
    dimension_numbers: Any, operands: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, ...]:
    def plain(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return lax.dot_general(lhs, rhs, dimension_numbers)

    return jax.vjp(plain, *operands)[1](gradient)


_through_float32.defvjp(_forward, _backward)
