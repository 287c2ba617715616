"""Reconstruction losses: pure functions of pixels ``[batch, time, height, width, channel]``.

Frames may be weighted, ``[batch, time]``: padding has the weight zero.
"""

import jax
import jax.numpy as jnp

from bsq_jax.core.clips import weighted_mean


def l1(target: jax.Array, prediction: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Mean absolute error, a scalar, in the units of the pixels ([-1, 1])."""
    return weighted_mean(jnp.abs(target - prediction), weights)


def l2(target: jax.Array, prediction: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Mean squared error, a scalar."""
    return weighted_mean(jnp.square(target - prediction), weights)


def ramp(step: jax.Array, start: float, steps: int) -> jax.Array:
    """Factor of a loss that falls linearly from `start` at step 0 to 1 at `steps`, then stays."""
    progress = jnp.clip(step / max(steps, 1), 0.0, 1.0)
    return start + (1.0 - start) * progress if steps else jnp.ones_like(progress)
