"""The second player: what the discriminator does in one training step.

Both players are updated from one forward pass of the generator. The order is: the generator's
gradient is taken against the discriminator as it was before the step, the discriminator's gradient
at the reconstructions of the generator as it was before the step; then both move. Alternating
updates in which the discriminator sees the same reconstructions, as in the published code, give the
same numbers.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from bsq_jax import losses
from bsq_jax.core.clips import hold_last, weighted_mean
from bsq_jax.core.errors import UserError
from bsq_jax.training.state import Adversary


class Play(NamedTuple):
    """What the discriminator makes of a batch.

    Attributes:
      pixel_gradient: of the generator's adversarial loss, unweighted, with respect to the
        reconstructions, float32 ``[batch, time, height, width, 3]``.
      gradients: of the discriminator's loss, with respect to its parameters.
      watched: scalars by name.
    """

    pixel_gradient: jax.Array
    gradients: Any
    watched: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class AdversarialRules:
    """The discriminator and how it is trained. All methods are pure.

    Attributes:
      discriminator: maps pixels to logits ``[batch, samples, ...]``; a sample is a frame or a clip.
      optimizer: optax transformation of the discriminator's gradients.
      weight: weight of the generator's adversarial loss.
      kind: ``non_saturating`` or ``hinge``.
      start: step from which both players play; before it the discriminator rests, at no cost.
      adaptive: scale `weight` by the ratio of the gradients at the generator's last layer.
      r1: gamma of the R1 penalty, which counts gamma / 2; 0 for none.
      r1_every: steps between penalties, each of this many times the weight (lazy regularisation,
        Karras et al. 2020). The other steps do not pay for it.
      lecam: weight of the LeCAM regulariser.
      lecam_decay: decay of its averaged logits.
      clip_frames: the one length that a discriminator of whole clips takes; shorter clips are held
        at their last real frame, reconstructions too. 0 for discriminators of frames.
    """

    discriminator: nn.Module
    optimizer: optax.GradientTransformation
    weight: float = 0.1
    kind: str = "non_saturating"
    start: int = 0
    adaptive: bool = False
    r1: float = 10.0
    r1_every: int = 16
    lecam: float = 0.0
    lecam_decay: float = 0.999
    clip_frames: int = 0

    def logits(self, params: Any, pixels: jax.Array) -> jax.Array:
        """Logits of float pixels ``[batch, time, height, width, 3]``."""
        return jnp.asarray(self.discriminator.apply({"params": params}, pixels))

    def play(
        self,
        adversary: Adversary,
        real: jax.Array,
        fake: jax.Array,
        step: jax.Array,
        weights: jax.Array | None = None,
    ) -> Play:
        """Both players' losses and gradients for a batch; nothing is updated.

        Args:
          adversary: the discriminator's state.
          real: float pixels ``[batch, time, height, width, 3]``, padded with the last real frame.
          fake: their reconstructions; padding is that of `real`.
          step: of the run.
          weights: 1 for real frames and 0 for padding, ``[batch, time]``; None without padding. A
            discriminator of clips judges them whole.

        Raises:
          UserError: clips are longer than a discriminator of clips takes.
        """
        if not self.start:
            return self._play(adversary, real, fake, step, weights)

        def rest(*arguments: Any) -> Play:
            shapes = jax.eval_shape(self._play, *arguments)
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        arguments = (adversary, real, fake, step, weights)
        return jax.lax.cond(step >= self.start, self._play, rest, *arguments)

    def _hold(self, pixels: jax.Array, weights: jax.Array | None) -> jax.Array:
        """Clips made as long as a discriminator of clips wants them, each by its last real frame.

        Reconstructions are held at a reconstruction: a cut to the original would give them away.
        """
        missing = self.clip_frames - pixels.shape[1]
        if missing < 0:
            raise UserError(
                f"the discriminator judges clips of {self.clip_frames} frames, but the data have "
                f"{pixels.shape[1]}: raise model.frames or choose another discriminator.name"
            )
        if weights is not None:
            pixels = hold_last(pixels, jnp.sum(weights > 0, axis=1))
        return jnp.concatenate([pixels, jnp.repeat(pixels[:, -1:], missing, axis=1)], axis=1)

    def _play(
        self,
        adversary: Adversary,
        real: jax.Array,
        fake: jax.Array,
        step: jax.Array,
        weights: jax.Array | None,
    ) -> Play:
        pull_held = None
        if self.clip_frames:
            real = self._hold(real, weights)
            fake, pull_held = jax.vjp(lambda pixels: self._hold(pixels, weights), fake)
            weights = None
        # One forward pass of the reconstructions serves both players' gradients.
        fake_logits, pull_fake = jax.vjp(self.logits, adversary.params, fake)
        real_logits, pull_real = jax.vjp(lambda p: self.logits(p, real), adversary.params)

        generator_loss, cotangent = jax.value_and_grad(
            lambda logits: losses.generator_loss(self.kind, logits, weights)
        )(fake_logits)
        _, pixel_gradient = pull_fake(cotangent)
        if pull_held is not None:
            (pixel_gradient,) = pull_held(pixel_gradient)

        def discriminator_loss(real: jax.Array, fake: jax.Array) -> tuple[jax.Array, jax.Array]:
            loss = losses.discriminator_loss(self.kind, real, fake, weights)
            lecam = losses.lecam(real, fake, adversary.anchors, weights)
            return loss + self.lecam * lecam if self.lecam else loss, lecam

        (loss, lecam), (real_cotangent, fake_cotangent) = jax.value_and_grad(
            discriminator_loss, argnums=(0, 1), has_aux=True
        )(real_logits, fake_logits)
        gradients = jax.tree.map(
            jnp.add, pull_real(real_cotangent)[0], pull_fake(fake_cotangent)[0]
        )
        gradients, r1 = self._add_r1(gradients, adversary, real, step, weights)
        watched = {
            "adversarial": generator_loss,
            "discriminator": loss,
            "logits_real": weighted_mean(real_logits, weights),
            "logits_fake": weighted_mean(fake_logits, weights),
        }
        if self.r1:
            watched["r1"] = r1
        if self.lecam:
            watched["lecam"] = lecam
        return Play(pixel_gradient, gradients, watched)

    def _add_r1(
        self,
        gradients: Any,
        adversary: Adversary,
        real: jax.Array,
        step: jax.Array,
        weights: jax.Array | None,
    ) -> tuple[Any, jax.Array]:
        """Adds the penalty's gradient on the steps that have one, inside the one program."""
        if not self.r1:
            return gradients, adversary.r1

        def penalise(gradients: Any) -> tuple[Any, jax.Array]:
            def penalty(params: Any) -> jax.Array:
                return losses.r1_penalty(lambda pixels: self.logits(params, pixels), real, weights)

            r1, extra = jax.value_and_grad(penalty)(adversary.params)
            factor = 0.5 * self.r1 * self.r1_every
            return jax.tree.map(lambda g, e: g + factor * e, gradients, extra), r1

        return jax.lax.cond(
            step % self.r1_every == 0, penalise, lambda g: (g, adversary.r1), gradients
        )

    def update(
        self, adversary: Adversary, gradients: Any, watched: dict[str, jax.Array], step: jax.Array
    ) -> Adversary:
        """The discriminator after its step; the same before `start`.

        Args:
          adversary: its state.
          gradients: those of `play`, averaged over micro-batches.
          watched: likewise.
          step: of the run.
        """

        def move(adversary: Adversary) -> Adversary:
            updates, opt_state = self.optimizer.update(
                gradients, adversary.opt_state, adversary.params
            )
            params = optax.apply_updates(adversary.params, updates)
            logits = jnp.stack([watched["logits_real"], watched["logits_fake"]])
            anchors = self.lecam_decay * adversary.anchors + (1 - self.lecam_decay) * logits
            return Adversary(params, opt_state, anchors, watched.get("r1", adversary.r1))

        if not self.start:
            return move(adversary)
        return jax.lax.cond(step >= self.start, move, lambda same: same, adversary)
