"""A metric of colors."""

import jax.numpy as jnp


def colorfulness(original, reconstruction):
    """Colorfulness error (0 is best).

    The difference of what Hasler and Suesstrunk (2003) call colorfulness; that of a photograph is
    between 0 (gray) and about 110.

    Args:
      original: uint8 pixels ``[batch, time, height, width, 3]``.
      reconstruction: the same shape.

    Returns:
      ``[batch, time]``, a value for each frame.
    """
    return jnp.abs(_colorfulness(reconstruction) - _colorfulness(original))


def _colorfulness(pixels):
    red, green, blue = jnp.moveaxis(pixels.astype(jnp.float32), -1, 0)
    opponents = jnp.stack([red - green, (red + green) / 2 - blue])
    deviation = jnp.linalg.norm(opponents.std(axis=(-2, -1)), axis=0)
    mean = jnp.linalg.norm(opponents.mean(axis=(-2, -1)), axis=0)
    return deviation + 0.3 * mean
