"""Tokens of variable length: decoders that get only the first bits of a token.

A model with ``min_bits`` is trained with all bits of the tokens of about half the examples, and
with the first ``min_bits`` or more of the others, as many as its quantizer can decode, so that the
first bits carry what matters most.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bsq_jax.core.rng import stream_key
from bsq_jax.models.tokenizer_shape import TokenizerShape


def kept_bits(shape: TokenizerShape, seed: int, examples: int, step: jax.Array) -> jax.Array | None:
    """Draws how many bits of its tokens each example of a training step keeps.

    Args:
      shape: of the tokenizer.
      seed: of the run.
      examples: size of the global batch.
      step: of the run, int32 scalar.

    Returns:
      int32 ``[examples]``; None for tokenizers without ``min_bits``, which always keep all.
    """
    if not shape.min_bits:
        return None
    return draw_kept(stream_key(seed, "bits", step), examples, shape.prefixes)


def draw_kept(key: jax.Array, examples: int, prefixes: tuple[int, ...]) -> jax.Array:
    """Numbers of bits, int32 ``[examples]``: of about half all, of the others uniform ones."""
    last = len(prefixes) - 1
    drawn = jax.random.randint(key, (examples,), -last, last + 1)
    return jnp.asarray(prefixes, jnp.int32)[jnp.where(drawn < 0, last, drawn)]
