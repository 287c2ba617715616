"""The generator's losses from a config."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import optax

from bsq_jax.core.errors import UserError
from bsq_jax.evaluation.networks.lpips import MIN_SIDE
from bsq_jax.losses.base import ReconstructionLoss
from bsq_jax.losses.own import make_own_loss
from bsq_jax.losses.perceptual import Perceptual
from bsq_jax.losses.reconstruction import L1, L2

if TYPE_CHECKING:
    from ml_collections import ConfigDict


# Metrics of a training step that have these names already.
TAKEN = frozenset(
    {"step", "time", "prefix", "broken_records", "images_per_second", "clips_per_second"}
    | {"tokens_per_second"}
    | {"data_wait", "tflops_per_device", "mfu"}
    | {"loss", "quantizer_loss", "psnr", "squared_error", "learning_rate", "gradient_norm"}
    | {"adversarial", "adversarial_weight", "discriminator", "discriminator_gradient_norm"}
    | {"logits_real", "logits_fake", "r1", "lecam"}
    | {"commitment", "codebook", "token_entropy", "codebook_entropy"}
    | {"bit_mean", "bit_entropy", "bit_entropy_min", "group_usage", "usage", "perplexity"}
    | {"bits_per_pixel", "rate_gradient_norm"}
    | {"codes_seen", "code_shares", "codes_dead", "codes_restarted"}
)


def make_losses(config: ConfigDict) -> tuple[ReconstructionLoss, ...]:
    """The losses of reconstructions that ``config.loss`` describes.

    One of weight 0 is still computed, for the log, unless it needs a frozen network, which costs.

    Args:
      config: a finalised config.

    Raises:
      UserError: a term of the user's own cannot be made, or has the name of another metric; frames
        of the training are too small for LPIPS.
    """
    loss = config.loss
    if loss.perceptual:
        _check_perceptual(config)
    losses: tuple[ReconstructionLoss, ...] = (
        L1(loss.l1),
        L2(loss.l2),
        Perceptual(
            loss.perceptual,
            jnp.dtype(config.model.dtype),
            loss.perceptual_network,
            loss.perceptual_start,
        ),
        *map(make_own_loss, loss.terms),
    )
    names = [each.name for each in losses]
    for name in names:
        if names.count(name) > 1 or name in TAKEN:
            raise UserError(
                f"loss.terms: the name {name!r} of a term is that of another metric: give it one "
                "of its own"
            )
    return tuple(each for each in losses if each.weight or each.needs is None)


def _check_perceptual(config: ConfigDict) -> None:
    """Refuses frames that are smaller than the network of LPIPS takes."""
    from bsq_jax.config.sizes import trained_sizes  # only here, for ml_collections

    network = config.loss.perceptual_network
    least = MIN_SIDE[network]
    for height, width in trained_sizes(config):
        if min(height, width) < least:
            raise UserError(
                f"loss.perceptual is LPIPS, which with {network} needs frames of at least {least} "
                f"pixels a side, not {height}x{width}: set loss.perceptual=0, or leave smaller "
                "sizes out of data.sizes and model.image_size"
            )


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
