"""Binary spherical quantization (paper, section 3.1): project to the sphere, keep the signs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.quantizers.signs import SignQuantizer


def to_sphere(latents: jax.Array) -> jax.Array:
    """Projects to the unit sphere over the last axis; the origin stays, with a zero gradient."""
    # The direction does not depend on the length, so a constant factor changes neither value nor
    # gradient, and squares of very long or short vectors cannot leave the range of floats.
    length = jax.lax.stop_gradient(jnp.max(jnp.abs(latents), axis=-1, keepdims=True))
    scaled = latents / jnp.where(length != 0, length, 1.0)
    square = jnp.sum(scaled * scaled, axis=-1, keepdims=True)
    unit = scaled * jax.lax.rsqrt(jnp.where(length != 0, square, 1.0))
    return jnp.where(length != 0, unit, 0.0)  # unequal, not greater: NaN stays NaN and is noticed


class BinarySphericalQuantizer(SignQuantizer):
    """Quantizes latents to corners of the hypercube inscribed in the unit sphere."""

    @property
    def slope(self) -> float:
        """The identity is the derivative of the sign, which is divided by sqrt(L) then."""
        return float(np.float32(np.sqrt(self.length)))

    def project(self, latents: jax.Array) -> jax.Array:
        """See `to_sphere`."""
        return to_sphere(latents)
