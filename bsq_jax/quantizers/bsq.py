"""Binary spherical quantization (paper, section 3.1): project to the sphere, keep the signs."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.core.array_checks import check_array
from bsq_jax.core.clips import weighted_mean
from bsq_jax.quantizers import entropy


class Quantized(NamedTuple):
    """What a quantizer returns.

    Attributes:
      quantized: float32 ``[..., L]``, carries gradients to the latents.
      bits: uint8 0/1 ``[..., L]``, the token.
      losses: unweighted terms of the quantizer's loss, scalars.
      loss: their weighted sum, the scalar that training adds.
    """

    quantized: jax.Array
    bits: jax.Array
    losses: dict[str, jax.Array]
    loss: jax.Array


@jax.custom_jvp
def straight_through_sign(unit: jax.Array) -> jax.Array:
    """Sign with the identity as its derivative; zero counts as -1 (the rule is ``u > 0``)."""
    return jnp.where(unit > 0, 1.0, -1.0).astype(unit.dtype)


@straight_through_sign.defjvp
def _straight_through_sign_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return straight_through_sign(*primals), tangents[0]


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


@dataclasses.dataclass(frozen=True)
class BinarySphericalQuantizer:
    """Quantizes latents to corners of the hypercube inscribed in the unit sphere.

    Has no parameters and no codebook. Everything is computed in float32 whatever precision the
    network runs in.

    Attributes:
      group_size: bits a group in the codebook entropy. 1 costs O(L); L is exact.
      inv_temperature: sharpness of the soft assignment.
      token_weight: gamma0, weight of the mean entropy of a token (pushed down).
      codebook_weight: gamma, weight of the entropy of the average (pushed up).
      commitment_weight: beta, weight of the squared distance to the chosen corner.
    """

    group_size: int
    inv_temperature: float
    token_weight: float
    codebook_weight: float
    commitment_weight: float

    def __call__(self, latents: jax.Array, weights: jax.Array | None = None) -> Quantized:
        """Quantizes latents.

        Args:
          latents: ``[..., L]`` of any float type.
          weights: of the tokens in the losses, see `entropy`; None: all count alike.

        Raises:
          ValueError: latents that are not floats or have no axis.
        """
        check_array("latents", latents, "L", leading=True)
        return self.quantize_unit(to_sphere(latents.astype(jnp.float32)), weights)

    def quantize_unit(self, unit: jax.Array, weights: jax.Array | None = None) -> Quantized:
        """Quantizes points that lie on the unit sphere already, float32 ``[..., L]``."""
        channels = unit.shape[-1]
        quantized = straight_through_sign(unit) / np.float32(np.sqrt(channels))
        bits = (unit > 0).astype(jnp.uint8)

        logits = entropy.soft_logits(unit, self.inv_temperature)
        error = jnp.sum(jnp.square(jax.lax.stop_gradient(quantized) - unit), axis=-1)
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
        loss = penalty + self.commitment_weight * losses["commitment"]

        return Quantized(quantized, bits, losses, loss)

    def codes(self, bits: jax.Array, length: int) -> jax.Array:
        """What the decoder is given for tokens: the corners that `Quantized.quantized` holds.

        Args:
          bits: 0/1, ``[..., L]``, or the first bits of tokens.
          length: L.

        Returns:
          float32 ``[..., L]``, 0 where bits are missing.
        """
        return to_corners(bits, length)
