"""The generator's losses from a config."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import optax

from bsq_jax.losses.base import ReconstructionLoss
from bsq_jax.losses.perceptual import Perceptual
from bsq_jax.losses.reconstruction import L1, L2

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def make_losses(config: ConfigDict) -> tuple[ReconstructionLoss, ...]:
    """The losses of reconstructions that ``config.loss`` describes.

    One of weight 0 is still computed, for the log, unless it needs a frozen network, which costs.

    Args:
      config: a finalised config.
    """
    loss = config.loss
    losses: tuple[ReconstructionLoss, ...] = (
        L1(loss.l1),
        L2(loss.l2),
        Perceptual(loss.perceptual, jnp.dtype(config.model.dtype)),
    )
    return tuple(each for each in losses if each.weight or each.needs is None)


def make_entropy_weight(config: ConfigDict) -> optax.Schedule:
    """The weight by step of a loss with entropy terms: ``config.loss.entropy`` after a ramp.

    It falls linearly from ``entropy_ramp_start`` times that at step 0 to once at step
    ``entropy_ramp_steps``, and stays. The loss is computed at weight 0 too, for the log.

    Args:
      config: a finalised config.
    """
    loss = config.loss
    if not loss.entropy_ramp_steps:
        return optax.constant_schedule(loss.entropy)
    return optax.linear_schedule(
        loss.entropy * loss.entropy_ramp_start, loss.entropy, loss.entropy_ramp_steps
    )
