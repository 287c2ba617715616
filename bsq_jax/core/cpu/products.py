"""Products with weights, as fast as a CPU can."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bsq_jax.core.target import platform

_Axes = tuple[tuple[int, ...], tuple[int, ...]]


def dot_general(
    lhs: jax.Array,
    rhs: jax.Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """`jax.lax.dot_general`, for the argument `dot_general` of Flax's linear layers.

    On a CPU `precision` and `preferred_element_type` do not matter: sums are in float32, the result
    has the dtype of `lhs`.

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
    return _product(lhs, rhs, axes)


# The gradient of the weights is computed in the order of their axes. JAX transposes a product in
# another order, which is a pass over all of them where they have more than two.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(lhs: jax.Array, rhs: jax.Array, axes: _Axes) -> jax.Array:
    # For CPUs jax 0.10 has a fast kernel from bfloat16 to float32, but none to bfloat16, which
    # takes twice as long.
    wide = lax.dot_general(lhs, rhs, (axes, ((), ())), preferred_element_type=jnp.float32)
    return wide.astype(lhs.dtype)


def _forward(lhs: jax.Array, rhs: jax.Array, axes: _Axes) -> tuple[jax.Array, Any]:
    return _product(lhs, rhs, axes), (lhs, rhs)


def _backward(
    axes: _Axes, operands: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, ...]:
    lhs, rhs = operands
    rows = tuple(range(lhs.ndim - len(axes[0])))
    outputs = tuple(range(len(rows), gradient.ndim)), tuple(range(len(axes[1]), rhs.ndim))
    # A product reads the rows of its operands several times: what they are computed from must not
    # be computed again each time.
    of_rows = lax.optimization_barrier((lhs, gradient))
    return _product(gradient, rhs, outputs), _product(*of_rows, (rows, rows))


_product.defvjp(_forward, _backward)
