"""A large batch in several smaller ones, for what does not fit into memory at once.

Random numbers are drawn for the whole batch and split like its examples. A key inside the function
of a micro-batch would be the same for all of them, so there it is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr

from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import batch_shards
from bsq_jax.training.flops import bodies


def check_divides(batch_size: int, count: int, mesh: jax.sharding.Mesh) -> None:
    """Refuses a batch that does not divide into `count` micro-batches over the devices of a mesh.

    Raises:
      UserError: it does not.
    """
    if batch_size % (count * batch_shards(mesh)):
        raise UserError(
            f"train.batch_size {batch_size} does not divide into {count} micro-batches "
            f"(train.accumulate) over {batch_shards(mesh)} devices (data x fsdp)"
        )


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
      function: maps rows and weights of a micro-batch to a tree of float arrays. It has no random
        key but what is in its rows.
      rows: a tree of arrays ``[batch, ...]``: the examples and what was drawn at random for each.
      weights: ``[batch]``, not all zero; None: all count alike.
      count: number of micro-batches, a divisor of the batch.

    Returns:
      A tree like that of `function`.

    Raises:
      ValueError: `function` makes a random key or holds one, which every micro-batch would share.
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

    traced, shapes = jax.make_jaxpr(function, return_shape=True)(
        *jax.tree.map(lambda leaf: leaf[0], parts)
    )
    if _has_key(traced.jaxpr):
        raise ValueError(
            "the function of a micro-batch has a random key of its own, so that all micro-batches "
            "of a step draw the same numbers: draw for the whole batch and give them as rows"
        )
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, (shares, parts))[0]


def _has_key(jaxpr: Jaxpr) -> bool:
    """Whether a traced program makes a random key, or was given one other than as an argument."""
    kinds = (getattr(var.aval, "dtype", None) for var in jaxpr.constvars)
    if any(kind is not None and jnp.issubdtype(kind, jax.dtypes.prng_key) for kind in kinds):
        return True
    return any(
        equation.primitive.name in ("random_seed", "random_wrap")
        or any(_has_key(body) for body in bodies(equation.params))
        for equation in jaxpr.eqns
    )
