"""What training minimises: pure functions of arrays."""

from bsq_jax.losses.adversarial import (
    KINDS,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    lecam,
    r1_penalty,
)
from bsq_jax.losses.reconstruction import l1, l2, ramp

__all__ = [
    "KINDS",
    "adaptive_weight",
    "discriminator_loss",
    "generator_loss",
    "l1",
    "l2",
    "lecam",
    "r1_penalty",
    "ramp",
]
