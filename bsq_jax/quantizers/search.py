"""The nearest of many codes, in memory that does not grow with their number."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 256  # codes compared at a time: a token then needs less than features of a layer


def nearest_code(points: jax.Array, codebook: jax.Array) -> jax.Array:
    """Numbers of the codes at the least Euclidean distance, the lowest of several.

    Goes through the codes in blocks. The tokens' axes are never split or joined, so those of a
    batch that is split over devices stay where they are.

    Args:
      points: float32 ``[..., channels]``. One that is not a number gets code 0.
      codebook: float32 ``[codes, channels]``; whole on every device.

    Returns:
      int32 ``[...]``; has no gradient.
    """
    points, codebook = jax.lax.stop_gradient((points, codebook))
    count, channels = codebook.shape
    size = min(BLOCK, count)
    pad = -count % size
    # |p - c|^2 is least where this is largest: p c - |c|^2 / 2.
    offsets = jnp.pad(jnp.sum(codebook * codebook, axis=-1) / 2, (0, pad), constant_values=np.inf)
    blocks = (
        jnp.arange(0, count + pad, size, dtype=jnp.int32),
        jnp.pad(codebook, ((0, pad), (0, 0))).reshape(-1, size, channels),
        offsets.reshape(-1, size),
    )
    places = jnp.arange(size, dtype=jnp.int32).reshape((1,) * (points.ndim - 1) + (size,))

    def compare(
        best: tuple[jax.Array, jax.Array], block: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        first, codes, offset = block
        scores = jnp.einsum("...c,kc->...k", points, codes, precision=jax.lax.Precision.HIGHEST)
        scores = scores - offset.reshape((1,) * (points.ndim - 1) + (size,))
        highest = jnp.max(scores, axis=-1)
        # Faster than `argmax`, which reduces pairs.
        place = jnp.min(jnp.where(scores == highest[..., None], places, size), axis=-1)
        better = highest > best[0]
        found = jnp.where(better, highest, best[0]), jnp.where(better, first + place, best[1])
        return found, None

    start = (
        jnp.full(points.shape[:-1], -np.inf, jnp.float32),
        jnp.zeros(points.shape[:-1], jnp.int32),
    )
    return jax.lax.scan(compare, start, blocks)[0][1]
