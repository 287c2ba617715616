"""Wrong bits in training, so that a decoder learns to bear them (Infinity, arXiv 2412.04431)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bsq_jax.core.rng import stream_key


def flipped_bits(
    size: tuple[int, ...], share: float, seed: int, step: jax.Array
) -> jax.Array | None:
    """Draws which bits of its tokens the decoder gets wrong in a training step.

    Args:
      size: of the bits of the global batch, padding included: examples, frames, rows, columns, L.
      share: probability that a bit is flipped, each by itself.
      seed: of the run.
      step: of the run, int32 scalar.

    Returns:
      uint8 0/1 of this size; None where none is flipped.
    """
    if not share:
        return None
    return jax.random.bernoulli(stream_key(seed, "flip", step), share, size).astype(jnp.uint8)
