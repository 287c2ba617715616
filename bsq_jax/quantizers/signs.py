"""What quantizers to signs have in common: the corners of a hypercube are their codes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.core.clips import weighted_mean
from bsq_jax.quantizers import entropy
from bsq_jax.quantizers.base import Penalty, Quantizer, keep_first


def to_corners(bits: jax.Array, length: int | None = None, slope: float | None = None) -> jax.Array:
    """The corner of the hypercube that a token stands for: ``(2 bits - 1) / slope``.

    Args:
      bits: 0/1, ``[..., L]``, or the first bits of tokens.
      length: L; None: as many as are given.
      slope: one over the size of a coordinate; None: sqrt(L), corners in the unit sphere.

    Returns:
      float32 ``[..., L]``, 0 where bits are missing.
    """
    given = bits.shape[-1]
    length = given if length is None else length
    slope = np.sqrt(length) if slope is None else slope
    corners = (2 * bits.astype(jnp.float32) - 1) / np.float32(slope)
    return jnp.pad(corners, ((0, 0),) * (bits.ndim - 1) + ((0, length - given),))


class SignQuantizer(Quantizer):
    """Quantizes points to the corners ``+-1 / slope`` of a hypercube.

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
    def step(self) -> float:
        """One half: the signs of what is left are those of its place in a cell half as wide."""
        return 0.5

    @property
    def scalar_levels(self) -> int:
        """Two."""
        return 2

    @property
    def outer_level(self) -> float:
        """A coordinate of a corner."""
        return 1 / self.slope

    def level(self, points: jax.Array) -> jax.Array:
        """0 at the negative coordinate of a corner, 1 at the positive one."""
        return (points * self.slope + 1) / 2

    def nearest(self, points: jax.Array) -> jax.Array:
        """The signs; zero counts as -1 (the rule is ``u > 0``)."""
        return (points > 0).astype(jnp.uint8)

    def decode(self, bits: jax.Array) -> jax.Array:
        """See `to_corners`."""
        return to_corners(bits, self.length, self.slope)

    def keep(self, codes: jax.Array, kept: jax.Array) -> jax.Array:
        """Zero where bits are missing."""
        return keep_first(codes, kept)

    def penalty(self, points: jax.Array, codes: jax.Array, weights: jax.Array | None) -> Penalty:
        """The entropy terms and the commitment."""
        logits = entropy.soft_logits(points, self.inv_temperature, self.slope)
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
