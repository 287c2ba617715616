"""A large batch in several smaller ones, for what does not fit into memory at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def over_micro_batches(
    function: Callable[[Any, jax.Array | None], Any],
    rows: Any,
    weights: jax.Array | None,
    count: int,
) -> Any:
    """The mean of `function` over micro-batches, weighted by the weights of their examples.

    Of what is a mean over, say, real frames this is the same for any `count` where the weight of an
    example is its number of real frames.

    Args:
      function: maps rows and weights of a micro-batch to a tree of float arrays.
      rows: a tree of arrays ``[batch, ...]``.
      weights: ``[batch]``, not all zero; None: all count alike.
      count: number of micro-batches, a divisor of the batch.

    Returns:
      A tree like that of `function`.
    """
    if count == 1:
        return function(rows, weights)

    def split(x: jax.Array) -> jax.Array:
        # Strided, so that each device's rows stay on it.
        return jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)

    if weights is None:
        shares = jnp.full(count, 1 / count)
    else:
        shares = jnp.sum(split(weights), axis=1) / jnp.sum(weights)
    parts = jax.tree.map(split, (rows, weights))

    def add(total: Any, part: Any) -> tuple[Any, None]:
        share, arguments = part
        found = function(*arguments)
        return jax.tree.map(lambda sum_, leaf: sum_ + share * leaf, total, found), None

    shapes = jax.eval_shape(function, *jax.tree.map(lambda leaf: leaf[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, (shares, parts))[0]
