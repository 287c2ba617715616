"""Vector quantization (van den Oord et al. 2017): the nearest code of a learned codebook."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.core.clips import weighted_mean
from bsq_jax.core.sharding import whole
from bsq_jax.quantizers.base import Penalty, Quantizer
from bsq_jax.quantizers.bits import from_index, to_index
from bsq_jax.quantizers.bsq import to_sphere
from bsq_jax.quantizers.search import nearest_code


class VectorQuantizer(Quantizer):
    """Quantizes latents to the nearest code of a codebook, the parameter ``codebook``.

    A token is the number of its code. The codes of a new codebook are as long as those of BSQ,
    about 1, in random directions: as far from 0 as the latents of a new network, so that many of
    them are nearest to some. (Codes within +-1/K, as in published code, are near 0 for all
    latents alike, and a few outer ones win.)

    Attributes:
      size: codes of the codebook, K.
      width: channels of the latents and codes.
      cosine: latents and codes are compared, and codes decoded, on the unit sphere.
      averaged: codes are moving averages that the training step computes: there is no codebook
        loss, without which they have no gradient.
      commitment_weight: beta, weight of the squared distance of latents to their codes.
    """

    size: int
    width: int
    cosine: bool
    averaged: bool
    commitment_weight: float

    def setup(self) -> None:
        """Makes the codebook."""
        init: Any = _unit_codes if self.cosine else _codes
        init = nn.with_logical_partitioning(init, ("codes", None))
        self.codebook = self.param("codebook", init, (self.size, self.width))

    @property
    def bits(self) -> int:
        """ceil(log2 K)."""
        return (self.size - 1).bit_length()

    @property
    def channels(self) -> int:
        """Those of a code."""
        return self.width

    @property
    def codes(self) -> int:
        """K."""
        return self.size

    @property
    def learned(self) -> int:
        """One codebook."""
        return 1

    @property
    def step(self) -> float:
        """K^(-1 / channels): a code's cell has one K-th of the volume of what was quantized."""
        return float(self.size ** (-1 / self.width))

    def project(self, latents: jax.Array) -> jax.Array:
        """The latents, or their directions."""
        return to_sphere(latents) if self.cosine else latents

    def nearest(self, points: jax.Array) -> jax.Array:
        """The bits of the code at the least distance, of the first one of several."""
        return from_index(nearest_code(points, self._codes), self.bits)

    def decode(self, bits: jax.Array) -> jax.Array:
        """The codes of the numbers; those that name none give the last."""
        return jnp.take(self._codes, to_index(bits), axis=0, mode="clip")

    def penalty(self, points: jax.Array, codes: jax.Array, weights: jax.Array | None) -> Penalty:
        """The squared distance, summed over channels, as a loss of codes and one of latents."""

        def distance(moved: jax.Array, kept: jax.Array) -> jax.Array:
            error = jnp.sum(jnp.square(moved - jax.lax.stop_gradient(kept)), axis=-1)
            return weighted_mean(error, weights)

        losses = {"commitment": distance(points, codes)}
        loss = self.commitment_weight * losses["commitment"]
        if not self.averaged:
            losses["codebook"] = distance(codes, points)
            loss = loss + losses["codebook"]
        return losses, loss

    @property
    def _codes(self) -> jax.Array:
        """The codebook, ``[codes, channels]``, on every device."""
        codebook = whole(self.codebook)
        return to_sphere(codebook) if self.cosine else codebook


def _codes(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random codes of a length of about 1."""
    return jax.random.normal(key, shape, jnp.float32) / np.float32(np.sqrt(shape[-1]))


def _unit_codes(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random codes of length 1."""
    return to_sphere(_codes(key, shape))
