"""A large batch in several smaller ones, for what does not fit into memory at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def over_micro_batches(
    function: Callable[[jax.Array, jax.Array | None], Any],
    pixels: jax.Array,
    frames: jax.Array | None,
    count: int,
) -> Any:
    """The mean of `function` over micro-batches, weighted by their numbers of real frames.

    Of what is a mean over real frames this is the same for any `count`.

    Args:
      function: maps pixels and frames of a micro-batch to a tree of float arrays.
      pixels: ``[batch, time, ...]``.
      frames: int32 ``[batch]``, real frames of each clip; None: all are.
      count: number of micro-batches, a divisor of the batch.

    Returns:
      A tree like that of `function`.
    """
    if count == 1:
        return function(pixels, frames)

    def split(x: jax.Array) -> jax.Array:
        # Strided, so that each device's rows stay on it.
        return jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)

    real = jnp.full(len(pixels), pixels.shape[1], jnp.int32) if frames is None else frames
    shares = jnp.sum(split(real), axis=1) / jnp.sum(real)
    parts = jax.tree.map(split, (pixels, frames))

    def add(total: Any, part: Any) -> tuple[Any, None]:
        share, arguments = part
        found = function(*arguments)
        return jax.tree.map(lambda sum_, leaf: sum_ + share * leaf, total, found), None

    shapes = jax.eval_shape(function, *jax.tree.map(lambda leaf: leaf[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, (shares, parts))[0]
