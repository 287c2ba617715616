"""LPIPS as a loss."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from bsq_jax.core.clips import weighted_mean
from bsq_jax.evaluation.networks.lpips import abstract_lpips, load_lpips, lpips_layers
from bsq_jax.losses.base import FrozenNetwork, FrozenParams, ReconstructionLoss, check_batch

_NET = "vgg16"


@dataclasses.dataclass(frozen=True)
class Perceptual(ReconstructionLoss):
    """LPIPS with the features of VGG16, see `bsq_jax.evaluation.networks.lpips`.

    Attributes:
      dtype: type of the convolutions, float32 or bfloat16.
    """

    name = "perceptual"
    needs = FrozenNetwork(
        _NET, functools.partial(load_lpips, _NET), functools.partial(abstract_lpips, _NET)
    )

    dtype: jax.typing.DTypeLike

    def __call__(
        self,
        original: jax.Array,
        reconstruction: jax.Array,
        weights: jax.Array | None,
        frozen: FrozenParams,
    ) -> jax.Array:
        """See `ReconstructionLoss`; `frozen` holds the weights of LPIPS with VGG16.

        Raises:
          UserError: frames are smaller than VGG16 needs.
        """
        check_batch(original, reconstruction, weights)
        layers = lpips_layers(frozen[_NET], original, reconstruction, net=_NET, dtype=self.dtype)
        return weighted_mean(jnp.sum(layers, axis=-1), weights)
