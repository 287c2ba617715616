"""A loss that compares edges."""

import jax.numpy as jnp


def edges(original, reconstruction):
    """Mean absolute error of the differences between neighboring pixels.

    Args:
      original: float pixels in [-1, 1], ``[batch, time, height, width, 3]``.
      reconstruction: the same shape; not clamped to [-1, 1].

    Returns:
      ``[batch, time]``, a value for each frame.
    """
    error = reconstruction - original
    down = jnp.abs(jnp.diff(error, axis=2))
    right = jnp.abs(jnp.diff(error, axis=3))
    return down.mean(axis=(2, 3, 4)) + right.mean(axis=(2, 3, 4))
