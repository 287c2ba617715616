"""Bytes to floats and back: the one definition that training, evaluation and the API share."""

import jax
import jax.numpy as jnp
import numpy as np


def to_float(pixels: jax.Array) -> jax.Array:
    """uint8 0..255 to float32 in [-1, 1]: ``x / 127.5 - 1``."""
    return pixels.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(pixels: jax.Array) -> jax.Array:
    """Floats, clamped to [-1, 1], to uint8: ``(x + 1) * 127.5`` rounded half to even."""
    clamped = jnp.clip(pixels.astype(jnp.float32), -1.0, 1.0)
    return jnp.round((clamped + 1.0) * 127.5).astype(jnp.uint8)


def pixels_to_bytes(pixels: np.ndarray) -> np.ndarray:
    """`to_uint8` of float32 on the host."""
    clamped = np.clip(pixels, np.float32(-1), np.float32(1))
    return np.round((clamped + np.float32(1)) * np.float32(127.5)).astype(np.uint8)
