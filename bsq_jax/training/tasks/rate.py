"""The rate in the loss: distortion + weight x bits a pixel, as learned compression is trained.

The rate is the code length of the tokens under a small prior (`bsq_jax.models.level_prior`) that
learns beside the tokenizer, in a step of its own optimizer; exports do not have it. Tokens that are
dear to code then have to be worth it, and plain areas, whose tokens their neighbours foretell, cost
little. The loss is the Lagrangian of Balle et al. (arXiv 1611.01704).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange

from bsq_jax.core.clips import real_frames, weighted_mean
from bsq_jax.core.errors import UserError
from bsq_jax.core.rng import stream_key
from bsq_jax.losses.rate import code_length
from bsq_jax.models.level_prior import LevelPrior
from bsq_jax.models.tokenizer import TokenizerModel
from bsq_jax.quantizers import Quantized
from bsq_jax.training.optimizer import make_optimizer
from bsq_jax.training.state import RateState, TrainableNetwork, optimizer_step

if TYPE_CHECKING:
    from ml_collections import ConfigDict


class Rate(NamedTuple):
    """Of a (micro-)batch, scalars, means over its tokens.

    Attributes:
      loss: what training adds.
      bits_per_pixel: of whole tokens, as coded.
    """

    loss: jax.Array
    bits_per_pixel: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateTraining:
    """The small prior and its training. All methods are pure.

    Attributes:
      prior: the network.
      optimizer: of it.
      weight: of the rate, by step.
      growth: how much more a bit counts for each stage that a token was cut short by.
      stages: of a token.
      bits: of a stage.
      patch: pixels of a patch of a frame.
      patch_time: frames that a token is of, but in the first frame of tokens.
      seed: of the run.
    """

    prior: LevelPrior
    optimizer: optax.GradientTransformation
    weight: optax.Schedule
    growth: float
    stages: int
    bits: int
    patch: int
    patch_time: int
    seed: int

    @property
    def network(self) -> TrainableNetwork:
        """The prior and its optimizer."""

        def init() -> Any:
            levels = jnp.zeros((1, 2, 2, self.prior.channels), jnp.int32)
            return self.prior.init(stream_key(self.seed, "init rate"), levels)["params"]

        return TrainableNetwork(init, self.optimizer)

    def rate(
        self,
        params: Any,
        quantized: Quantized,
        step: jax.Array,
        kept: jax.Array | None,
        weights: jax.Array | None,
    ) -> Rate:
        """The rate of tokens.

        Args:
          params: of the prior.
          quantized: tokens ``[batch, time, row, column, ...]``; each frame is coded by itself.
          step: of the run.
          kept: int32 ``[batch]``, bits of a token that the decoder gets; None: all.
          weights: of the frames of tokens, ``[batch, time]``; None: all count alike.
        """
        assert quantized.levels is not None
        batch, most = len(quantized.bits), self.prior.levels
        levels = rearrange(quantized.levels, "b t ... -> (b t) ...")
        chosen = jnp.clip(jnp.round(levels), 0, most - 1).astype(jnp.int32)
        logits = self.prior.apply({"params": params}, chosen)
        assert isinstance(logits, jax.Array)

        def of_frames(lengths: jax.Array) -> jax.Array:
            """Bits a token of each frame, ``[batch, time]``."""
            return jnp.mean(jnp.sum(lengths, axis=-1), axis=(1, 2)).reshape(batch, -1)

        whole = code_length(logits, levels, most)
        coded, soft = of_frames(whole.coded), of_frames(whole.soft)
        if kept is not None and self.stages == 1:  # a bit is a channel, and the first are kept
            there = real_frames(jnp.repeat(kept, coded.shape[1]), self.bits)
            soft = of_frames(whole.soft * there[:, None, None])
        elif kept is not None:
            of_stage = round(most ** (1 / self.stages))
            for stages in range(1, self.stages):
                cut = of_frames(code_length(logits, levels, of_stage**stages).soft)
                cut *= self.growth ** (self.stages - stages)
                soft = jnp.where((kept == stages * self.bits)[:, None], cut, soft)
        frames = jnp.full((1, coded.shape[1]), self.patch_time).at[0, 0].set(1)
        frames = jnp.broadcast_to(frames, coded.shape)
        pixels = self.patch * weighted_mean(frames.astype(jnp.float32), weights)
        bits = weighted_mean(coded, weights)
        loss = self.weight(step) * weighted_mean(soft, weights) / pixels
        # The prior learns at the same pace whatever the weight.
        return Rate(loss + (bits - jax.lax.stop_gradient(bits)), bits / pixels)

    def update(self, state: RateState, gradients: Any) -> RateState:
        """The prior after a step of its optimizer."""
        return RateState(*optimizer_step(state.params, gradients, self.optimizer, state.opt_state))


def make_rate_training(config: ConfigDict, model: TokenizerModel) -> RateTraining | None:
    """What ``config.loss.rate`` describes; None where it is 0.

    Raises:
      UserError: the quantizer has no levels by channel.
    """
    loss, quantizer = config.loss, model.quantizer
    if not loss.rate:
        return None
    levels = quantizer.scalar_levels
    if not levels:
        raise UserError(
            f"loss.rate={loss.rate:g} is for quantizers that choose a level of each channel by "
            "itself: bsq, lfq, fsq with equal levels, and stages of these; not "
            f"{config.quantizer.name}"
        )
    high, wide = model.shape.patch
    ramp = optax.linear_schedule(0.0, loss.rate, loss.rate_ramp_steps)
    return RateTraining(
        prior=LevelPrior(quantizer.channels, levels),
        optimizer=make_optimizer(
            config, learning_rate=loss.rate_learning_rate, clip="global", name="adamw"
        ),
        weight=ramp if loss.rate_ramp_steps else optax.constant_schedule(loss.rate),
        growth=loss.rate_growth,
        stages=quantizer.layout.stages,
        bits=quantizer.layout.bits,
        patch=high * wide,
        patch_time=model.shape.patch_time,
        seed=config.seed,
    )
