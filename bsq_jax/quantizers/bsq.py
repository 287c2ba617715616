"""Binary spherical quantization (paper, section 3.1): project to the sphere, keep the signs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.core.clips import weighted_mean
from bsq_jax.quantizers import entropy
from bsq_jax.quantizers.base import Penalty, Quantizer, keep_first


def to_sphere(latents: jax.Array) -> jax.Array:
    """Projects to the unit sphere over the last axis; the origin stays, with a zero gradient."""
    # The direction does not depend on the length, so a constant factor changes neither value nor
    # gradient, and squares of very long or short vectors cannot leave the range of floats.
    length = jax.lax.stop_gradient(jnp.max(jnp.abs(latents), axis=-1, keepdims=True))
    scaled = latents / jnp.where(length != 0, length, 1.0)
    square = jnp.sum(scaled * scaled, axis=-1, keepdims=True)
    unit = scaled * jax.lax.rsqrt(jnp.where(length != 0, square, 1.0))
    return jnp.where(length != 0, unit, 0.0)  # unequal, not greater: NaN stays NaN and is noticed


def to_corners(bits: jax.Array, length: int | None = None) -> jax.Array:
    """The corner of the hypercube that a token stands for: ``(2 bits - 1) / sqrt(L)``.

    Args:
      bits: 0/1, ``[..., L]``, or the first bits of tokens.
      length: L; None: as many as are given.

    Returns:
      float32 ``[..., L]``, 0 where bits are missing.
    """
    given = bits.shape[-1]
    length = given if length is None else length
    corners = (2 * bits.astype(jnp.float32) - 1) / np.sqrt(length).astype(np.float32)
    return jnp.pad(corners, ((0, 0),) * (bits.ndim - 1) + ((0, length - given),))


class BinarySphericalQuantizer(Quantizer):
    """Quantizes latents to corners of the hypercube inscribed in the unit sphere.

    Has no parameters and no codebook: all patterns of bits are codes, and the first bits of a token
    decode to a corner whose other coordinates are zero.

    Attributes:
      length: bits of a token, L.
      group_size: bits a group in the codebook entropy. 1 costs O(L); L is exact.
      inv_temperature: sharpness of the soft assignment.
      token_weight: gamma0, weight of the mean entropy of a token (pushed down).
      codebook_weight: gamma, weight of the entropy of the average (pushed up).
      commitment_weight: beta, weight of the squared distance to the chosen corner.
    """

    length: int
    group_size: int
    inv_temperature: float
    token_weight: float
    codebook_weight: float
    commitment_weight: float

    @property
    def bits(self) -> int:
        """L."""
        return self.length

    @property
    def channels(self) -> int:
        """One for each bit."""
        return self.length

    @property
    def prefixes(self) -> tuple[int, ...]:
        """All."""
        return tuple(range(1, self.length + 1))

    @property
    def slope(self) -> float:
        """The identity is the derivative of the sign, which is divided by sqrt(L) then."""
        return float(np.float32(np.sqrt(self.length)))

    @property
    def step(self) -> float:
        """One half: the signs of what is left are those of its place in a cell half as wide."""
        return 0.5

    def project(self, latents: jax.Array) -> jax.Array:
        """See `to_sphere`."""
        return to_sphere(latents)

    def nearest(self, points: jax.Array) -> jax.Array:
        """The signs; zero counts as -1 (the rule is ``u > 0``)."""
        return (points > 0).astype(jnp.uint8)

    def decode(self, bits: jax.Array) -> jax.Array:
        """See `to_corners`."""
        return to_corners(bits, self.length)

    def keep(self, codes: jax.Array, kept: jax.Array) -> jax.Array:
        """Zero where bits are missing."""
        return keep_first(codes, kept)

    def penalty(self, points: jax.Array, codes: jax.Array, weights: jax.Array | None) -> Penalty:
        """The entropy terms and the commitment."""
        logits = entropy.soft_logits(points, self.inv_temperature)
        error = jnp.sum(jnp.square(jax.lax.stop_gradient(codes) - points), axis=-1)
        losses = {
            "token_entropy": entropy.token_entropy(logits, weights),
            "codebook_entropy": entropy.codebook_entropy(logits, self.group_size, weights),
            "commitment": weighted_mean(error, weights),
        }
        # The division keeps the gradient's size when the assignment is made sharper.
        penalty = (
            self.token_weight * losses["token_entropy"]
            - self.codebook_weight * losses["codebook_entropy"]
        ) / self.inv_temperature
        return losses, penalty + self.commitment_weight * losses["commitment"]
