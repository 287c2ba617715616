"""The adversarial part of a training step: the discriminator, and the generator's loss against it.

Generator and discriminator are updated from one forward pass of the generator. The order is: the
generator's gradient is taken against the discriminator as it was before the step, the
discriminator's gradient at the reconstructions of the generator as it was before the step; then
both are updated. Alternating updates in which the discriminator sees the same reconstructions, as
in the published code, give the same numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from bsq_jax import losses
from bsq_jax.core.clips import hold_last, weighted_mean
from bsq_jax.core.errors import UserError
from bsq_jax.models.discriminators import PatchGanDiscriminator
from bsq_jax.models.discriminators.patchgan import map_side
from bsq_jax.models.factory import make_discriminator
from bsq_jax.training.optimizer import make_discriminator_optimizer
from bsq_jax.training.state import DiscriminatorState, optimizer_step

if TYPE_CHECKING:
    from ml_collections import ConfigDict


class AdversarialGradients(NamedTuple):
    """What the discriminator makes of a batch.

    Attributes:
      pixels: gradient of the generator's adversarial loss with respect to the reconstructions,
        float32 ``[batch, time, height, width, 3]``.
      discriminator: gradient of the discriminator's loss with respect to its parameters.
      metrics: scalars by name; ``adversarial`` is the generator's loss, unweighted.
    """

    pixels: jax.Array
    discriminator: Any
    metrics: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class AdversarialTraining:
    """The discriminator and how it is trained. All methods are pure.

    Attributes:
      discriminator: maps pixels to logits ``[batch, samples, ...]``; a sample is a frame or a clip.
      optimizer: optax transformation of the discriminator's gradients.
      weight: weight of the generator's adversarial loss.
      kind: ``non_saturating`` or ``hinge``.
      start: step from which the discriminator is trained and the generator has its loss; before it
        neither is computed.
      adaptive: scale `weight` by the ratio of the gradients at the generator's last layer.
      r1: gamma of the R1 penalty, which counts gamma / 2; 0 for none.
      r1_every: steps between penalties, each of this many times the weight (lazy regularisation,
        Karras et al. 2020). The other steps do not pay for it.
      lecam: weight of the LeCAM regulariser.
      lecam_decay: decay of its averaged logits.
      clip_frames: the one length that a discriminator of whole clips takes; shorter clips are held
        at their last real frame, reconstructions too. 0 for discriminators of frames.
      patches: logits of a sample of the model's size. The R1 penalty is of their sum and grows with
        their number, so for frames of other sizes it is divided by how many times as many they
        have: `r1` then weighs all sizes alike.
    """

    discriminator: nn.Module
    optimizer: optax.GradientTransformation
    weight: float
    kind: str
    start: int
    adaptive: bool
    r1: float
    r1_every: int
    lecam: float
    lecam_decay: float
    clip_frames: int
    patches: int = 1

    def logits(self, params: Any, pixels: jax.Array) -> jax.Array:
        """Logits of float pixels ``[batch, time, height, width, 3]``."""
        return jnp.asarray(self.discriminator.apply({"params": params}, pixels))

    def gradients(
        self,
        state: DiscriminatorState,
        real: jax.Array,
        fake: jax.Array,
        step: jax.Array,
        weights: jax.Array | None = None,
    ) -> AdversarialGradients:
        """Losses and gradients of generator and discriminator; all zero before `start`.

        Args:
          state: the discriminator's.
          real: float pixels ``[batch, time, height, width, 3]``, padded with the last real frame.
          fake: their reconstructions; padding is that of `real`.
          step: of the run.
          weights: 1 for real frames and 0 for padding, ``[batch, time]``; None without padding. A
            discriminator of clips has one logit for a clip, so it uses only their lengths.

        Raises:
          UserError: clips are longer than a discriminator of clips takes.
        """
        if not self.start:
            return self._gradients(state, real, fake, step, weights)

        def zeros(*arguments: Any) -> AdversarialGradients:
            shapes = jax.eval_shape(self._gradients, *arguments)
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        arguments = (state, real, fake, step, weights)
        return jax.lax.cond(step >= self.start, self._gradients, zeros, *arguments)

    def generator_weight(
        self,
        step: jax.Array,
        reconstruction_gradient: jax.Array,
        adversarial_gradient: jax.Array,
        last_layer: Callable[[jax.Array], jax.Array],
    ) -> jax.Array:
        """Weight of the generator's adversarial loss at a step, a float32 scalar.

        Args:
          step: of the run; before `start` the weight is 0.
          reconstruction_gradient: of the other losses with respect to the reconstructions,
            ``[batch, time, height, width, 3]``; only an `adaptive` weight uses it.
          adversarial_gradient: of the adversarial loss, likewise.
          last_layer: maps a gradient with respect to the reconstructions to that with respect to
            the weights of the generator's last layer.
        """
        weight = jnp.where(step >= self.start, jnp.float32(self.weight), 0.0)
        if self.adaptive:
            weight *= losses.adaptive_weight(
                last_layer(reconstruction_gradient), last_layer(adversarial_gradient)
            )
        return weight

    def counted_by_frames(
        self,
        found: AdversarialGradients,
        frames: jax.Array | None,
        mean_frames: jax.Array | None,
    ) -> AdversarialGradients:
        """What `gradients` found for a micro-batch, to be averaged by the numbers of real frames.

        What a discriminator of clips gives is a mean over clips, so it is multiplied by what turns
        a micro-batch's share of the frames into its share of the clips.

        Args:
          found: of the micro-batch.
          frames: int32 ``[batch]``, real frames of each of its clips; None: all are.
          mean_frames: mean number of real frames of a clip in the whole batch, a scalar; None where
            the micro-batch is the whole batch.
        """
        if not self.clip_frames or frames is None or mean_frames is None:
            return found
        factor = mean_frames / jnp.mean(frames.astype(jnp.float32))
        return jax.tree.map(lambda leaf: factor * leaf, found)

    def _hold(self, pixels: jax.Array, weights: jax.Array | None) -> jax.Array:
        """Clips made as long as a discriminator of clips takes, by repeating the last real frame.

        Reconstructions repeat a reconstruction: a cut to the original would give them away.
        """
        missing = self.clip_frames - pixels.shape[1]
        if missing < 0:
            raise UserError(
                f"the discriminator takes clips of {self.clip_frames} frames, but the data have "
                f"{pixels.shape[1]}: raise model.frames or choose another discriminator.name"
            )
        if weights is not None:
            pixels = hold_last(pixels, jnp.sum(weights > 0, axis=1))
        return jnp.concatenate([pixels, jnp.repeat(pixels[:, -1:], missing, axis=1)], axis=1)

    def _gradients(
        self,
        state: DiscriminatorState,
        real: jax.Array,
        fake: jax.Array,
        step: jax.Array,
        weights: jax.Array | None,
    ) -> AdversarialGradients:
        pull_held = None
        if self.clip_frames:
            real = self._hold(real, weights)
            fake, pull_held = jax.vjp(lambda pixels: self._hold(pixels, weights), fake)
            weights = None
        # One forward pass of the reconstructions serves the gradients of both networks.
        fake_logits, pull_fake = jax.vjp(self.logits, state.params, fake)
        real_logits, pull_real = jax.vjp(lambda p: self.logits(p, real), state.params)

        generator_loss, cotangent = jax.value_and_grad(
            lambda logits: losses.generator_loss(self.kind, logits, weights)
        )(fake_logits)
        _, pixel_gradient = pull_fake(cotangent)
        if pull_held is not None:
            (pixel_gradient,) = pull_held(pixel_gradient)

        def discriminator_loss(real: jax.Array, fake: jax.Array) -> tuple[jax.Array, jax.Array]:
            loss = losses.discriminator_loss(self.kind, real, fake, weights)
            lecam = losses.lecam(real, fake, state.anchors, weights)
            return loss + self.lecam * lecam if self.lecam else loss, lecam

        (loss, lecam), (real_cotangent, fake_cotangent) = jax.value_and_grad(
            discriminator_loss, argnums=(0, 1), has_aux=True
        )(real_logits, fake_logits)
        gradients = jax.tree.map(
            jnp.add, pull_real(real_cotangent)[0], pull_fake(fake_cotangent)[0]
        )
        gradients, r1 = self._add_r1(gradients, state, real, step, weights)
        metrics = {
            "adversarial": generator_loss,
            "discriminator": loss,
            "logits_real": weighted_mean(real_logits, weights),
            "logits_fake": weighted_mean(fake_logits, weights),
        }
        if self.r1:
            metrics["r1"] = r1
        if self.lecam:
            metrics["lecam"] = lecam
        return AdversarialGradients(pixel_gradient, gradients, metrics)

    def _add_r1(
        self,
        gradients: Any,
        state: DiscriminatorState,
        real: jax.Array,
        step: jax.Array,
        weights: jax.Array | None,
    ) -> tuple[Any, jax.Array]:
        """Adds the penalty's gradient on the steps that have one, inside the one program."""
        if not self.r1:
            return gradients, state.r1

        patches = math.prod(jax.eval_shape(self.logits, state.params, real).shape[2:])

        def penalise(gradients: Any) -> tuple[Any, jax.Array]:
            def penalty(params: Any) -> jax.Array:
                r1 = losses.r1_penalty(lambda pixels: self.logits(params, pixels), real, weights)
                return r1 if patches == self.patches else r1 * (self.patches / patches)

            r1, extra = jax.value_and_grad(penalty)(state.params)
            factor = 0.5 * self.r1 * self.r1_every
            return jax.tree.map(lambda g, e: g + factor * e, gradients, extra), r1

        return jax.lax.cond(step % self.r1_every == 0, penalise, lambda g: (g, state.r1), gradients)

    def update(
        self,
        state: DiscriminatorState,
        gradients: Any,
        metrics: dict[str, jax.Array],
        step: jax.Array,
    ) -> DiscriminatorState:
        """The discriminator's state after its step; the same before `start`.

        Args:
          state: the discriminator's.
          gradients: with respect to its parameters, those of `gradients`, averaged over
            micro-batches.
          metrics: likewise.
          step: of the run.
        """

        def move(state: DiscriminatorState) -> DiscriminatorState:
            params, opt_state = optimizer_step(
                state.params, gradients, self.optimizer, state.opt_state
            )
            logits = jnp.stack([metrics["logits_real"], metrics["logits_fake"]])
            anchors = self.lecam_decay * state.anchors + (1 - self.lecam_decay) * logits
            return DiscriminatorState(params, opt_state, anchors, metrics.get("r1", state.r1))

        if not self.start:
            return move(state)
        return jax.lax.cond(step >= self.start, move, lambda same: same, state)


def make_adversarial_training(config: ConfigDict) -> AdversarialTraining | None:
    """The discriminator that a finalised config describes, and its training; None for none.

    Raises:
      UserError: the discriminator cannot take the frames of ``config.model``.
    """
    loss = config.loss
    if not loss.adversarial:
        return None
    discriminator = make_discriminator(config)
    patches = 1
    if isinstance(discriminator, PatchGanDiscriminator):
        patches = math.prod(
            map_side(side, discriminator.layers) for side in config.model.image_size
        )
    return AdversarialTraining(
        discriminator=discriminator,
        optimizer=make_discriminator_optimizer(config),
        weight=loss.adversarial,
        kind=loss.adversarial_kind,
        start=loss.adversarial_start,
        adaptive=loss.adaptive,
        r1=loss.r1,
        r1_every=loss.r1_every,
        lecam=loss.lecam,
        lecam_decay=loss.lecam_decay,
        clip_frames=config.model.frames if config.discriminator.name == "stylegan3d" else 0,
        patches=patches,
    )
