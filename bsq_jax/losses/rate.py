"""The rate of tokens: how many bits a prior's code of them has, differentiable by the latents."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class CodeLength(NamedTuple):
    """Bits of each token, float32 ``[...]``.

    Attributes:
      coded: of the chosen levels; has a gradient to the prior alone.
      soft: the same at whole levels and linear between two of them; has a gradient to the latents
        alone.
    """

    coded: jax.Array
    soft: jax.Array


def code_length(logits: jax.Array, levels: jax.Array, count: int) -> CodeLength:
    """The code length of tokens, or of the first stages of tokens.

    A channel's level is one of N, and the first stages of a residual quantizer name which of
    `count` groups of neighbouring levels it is in: a group's probability is the sum of theirs.

    Between two levels the soft length is interpolated, so its derivative is the difference of the
    lengths of the two that a latent lies between: what it would save to choose the other one. (The
    expected length under uniform noise, as in Balle et al., arXiv 1611.01704, has this derivative
    in the mean, too; here the decoder sees no noise.)

    Args:
      logits: of the levels, ``[..., channel, N]``.
      levels: where the latents lie, ``[..., channel]``, see `Quantizer.level`.
      count: how many groups of levels are told apart, a divisor of N; N for whole tokens.
    """
    size = logits.shape[-1] // count
    grouped = jax.nn.log_softmax(logits).reshape(*logits.shape[:-1], count, size)
    lengths = jax.nn.logsumexp(grouped, axis=-1) / np.float32(-np.log(2))
    place = (levels + 0.5) / size - 0.5
    chosen = jnp.clip(jnp.round(place), 0, count - 1).astype(jnp.int32)
    below = jnp.clip(jnp.floor(place), 0, count - 2)
    share = place - below
    # A latent beyond the outer levels has the slope of the outermost cell.
    share = jnp.clip(share, -1.0, 2.0)
    fixed, below = jax.lax.stop_gradient(lengths), below.astype(jnp.int32)
    lower, upper = _at(fixed, below), _at(fixed, below + 1)
    soft = jnp.sum(lower + (upper - lower) * share, axis=-1)
    return CodeLength(jnp.sum(_at(lengths, chosen), axis=-1), soft)


def _at(lengths: jax.Array, level: jax.Array) -> jax.Array:
    """``[..., channel]`` of ``[..., channel, N]``."""
    return jnp.take_along_axis(lengths, level[..., None], axis=-1)[..., 0]
