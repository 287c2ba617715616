"""What training minimises: pure functions of arrays."""

from bsq_jax.losses.adversarial import (
    KINDS,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    lecam,
    r1_penalty,
)
from bsq_jax.losses.base import FrozenNetwork, FrozenParams, ReconstructionLoss, weighted_sum
from bsq_jax.losses.factory import make_entropy_weight, make_losses
from bsq_jax.losses.perceptual import Perceptual
from bsq_jax.losses.reconstruction import L1, L2

__all__ = [
    "KINDS",
    "L1",
    "L2",
    "FrozenNetwork",
    "FrozenParams",
    "Perceptual",
    "ReconstructionLoss",
    "adaptive_weight",
    "discriminator_loss",
    "generator_loss",
    "lecam",
    "make_entropy_weight",
    "make_losses",
    "r1_penalty",
    "weighted_sum",
]
