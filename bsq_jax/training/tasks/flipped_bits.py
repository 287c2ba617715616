"""Wrong bits in training, so that a decoder learns to bear them (Infinity, arXiv 2412.04431)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bsq_jax.core.rng import stream_key
from bsq_jax.models.tokenizer import TokenizerShape


def flipped_bits(
    shape: TokenizerShape, share: float, seed: int, examples: int, frames: int, step: jax.Array
) -> jax.Array | None:
    """Draws which bits of its tokens the decoder gets wrong in a training step.

    Args:
      shape: of the tokenizer.
      share: probability that a bit is flipped, each by itself.
      seed: of the run.
      examples: size of the global batch.
      frames: of each clip, padding included.
      step: of the run, int32 scalar.

    Returns:
      uint8 0/1 ``[examples, frames, row, column, L]``; None where none is flipped.
    """
    if not share:
        return None
    size = (examples, frames, *shape.grid, shape.bits)
    return jax.random.bernoulli(stream_key(seed, "flip", step), share, size).astype(jnp.uint8)
