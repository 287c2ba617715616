"""The rate of tokens: how many bits a prior's code of them has, differentiable by the latents."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class CodeLength(NamedTuple):
    """Bits of each channel of tokens, float32 ``[..., channel]``.

    Attributes:
      coded: of the chosen levels; has a gradient to the prior alone.
      soft: the same value, with the derivative by the latents of what is linear between levels.
    """

    coded: jax.Array
    soft: jax.Array


def code_length(logits: jax.Array, levels: jax.Array, count: int) -> CodeLength:
    """The code length of tokens, or of the first stages of tokens.

    A channel's level is one of N, and the first stages of a residual quantizer name which of
    `count` groups of neighbouring levels it is in: a group's probability is the sum of theirs.

    The derivative by a latent is the difference of the lengths of the two levels that it lies
    between: what it would save to choose the other one. Beyond the outer levels it is that of the
    outermost two, as far as their cells go, and then 0, so that nothing is gained far outside. (The
    expected length under uniform noise, as in Balle et al., arXiv 1611.01704, has this derivative
    in the mean, too; here the decoder sees no noise.)

    Args:
      logits: of the levels, ``[..., channel, N]``.
      levels: where the latents lie, ``[..., channel]``, see `Quantizer.level`.
      count: how many groups of levels are told apart, a divisor of N, 2 or more; N for whole
        tokens.
    """
    assert count > 1
    size = logits.shape[-1] // count
    grouped = jax.nn.log_softmax(logits).reshape(*logits.shape[:-1], count, size)
    lengths = jax.nn.logsumexp(grouped, axis=-1) / np.float32(-np.log(2))
    place = (levels + 0.5) / size - 0.5
    chosen = jnp.clip(jnp.round(place), 0, count - 1).astype(jnp.int32)
    coded = _at(lengths, chosen)
    below = jnp.clip(jnp.floor(place), 0, count - 2)
    share = jnp.clip(place - below, -0.5, 1.5)
    fixed, below = jax.lax.stop_gradient(lengths), below.astype(jnp.int32)
    slope = (_at(fixed, below + 1) - _at(fixed, below)) * share
    value = jax.lax.stop_gradient(coded)
    return CodeLength(coded, value + (slope - jax.lax.stop_gradient(slope)))


def _at(lengths: jax.Array, level: jax.Array) -> jax.Array:
    """``[..., channel]`` of ``[..., channel, N]``."""
    return jnp.take_along_axis(lengths, level[..., None], axis=-1)[..., 0]
