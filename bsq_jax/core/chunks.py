"""A function over many rows, few at a time on each device, so that its memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bsq_jax.core.sharding import batch_sharding, batch_shards


def map_chunks(function: Callable[..., Any], *rows: jax.Array, mesh: Mesh, most: int) -> Any:
    """Applies `function` chunk by chunk; to be called inside `jax.jit`.

    Args:
      function: of arrays ``[n, ...]``; returns a tree of arrays ``[n, ...]``, each row of which
        depends on the same row of the arguments alone.
      *rows: arrays ``[rows, ...]``, split over the devices like a batch.
      mesh: the run's mesh.
      most: the most rows that a device takes at once. The largest divisor of its number of rows
        that is not above it is taken.

    Returns:
      What ``function(*rows)`` returns, split over the devices in the same way.
    """
    shards, sharding = batch_shards(mesh), batch_sharding(mesh)
    each = len(rows[0]) // shards
    few = max(n for n in range(1, most + 1) if each % n == 0)

    def split(array: jax.Array) -> jax.Array:
        # [rows, ...] -> [chunks, shards, few, ...]: each device goes through its own rows.
        array = jax.lax.with_sharding_constraint(array, sharding)
        return jnp.swapaxes(array.reshape(shards, each // few, few, *array.shape[1:]), 0, 1)

    def step(parts: tuple[jax.Array, ...]) -> Any:
        chunk = (part.reshape(shards * few, *part.shape[2:]) for part in parts)
        outputs = function(*(jax.lax.with_sharding_constraint(part, sharding) for part in chunk))
        return jax.tree.map(lambda out: out.reshape(shards, few, *out.shape[1:]), outputs)

    outputs = jax.lax.map(step, tuple(split(array) for array in rows))
    return jax.tree.map(lambda out: jnp.swapaxes(out, 0, 1).reshape(-1, *out.shape[3:]), outputs)
