"""The task of training a tokenizer: what one step and one evaluation step are.

One forward pass of the generator serves all losses: each gives its gradient with respect to the
reconstruction, their weighted sum goes back through the generator once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jax.sharding import Mesh

from bsq_jax import losses
from bsq_jax.core.clips import hold_last, real_frames, weighted_mean, with_axes
from bsq_jax.core.pixels import to_float, to_uint8
from bsq_jax.core.rng import stream_key
from bsq_jax.core.sharding import abstract_replicated, replicate
from bsq_jax.evaluation.networks.lpips import abstract_lpips, load_lpips, lpips_layers
from bsq_jax.models.factory import make_discriminator, make_tokenizer
from bsq_jax.models.tokenizer import TokenizerModel, TokenizerOutput, TokenizerShape
from bsq_jax.quantizers.health import code_counts, health_of
from bsq_jax.training.accumulate import over_micro_batches
from bsq_jax.training.optimizer import (
    make_discriminator_optimizer,
    make_optimizer,
    make_schedule,
    update_ema,
)
from bsq_jax.training.state import Adversary, Player, TrainState, abstract_state, initial_state
from bsq_jax.training.tasks.adversarial import AdversarialRules

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]
Frozen = Mapping[str, Any]  # parameters of frozen networks by name

PERCEPTUAL = "vgg16"  # the network of the perceptual loss, and its name among the frozen ones


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights of the generator's loss terms.

    ``l1``, ``l2`` and ``entropy`` of weight 0 are watched and have no gradient; ``perceptual`` of
    weight 0 is left out, because it costs.

    Attributes:
      l1: mean absolute error.
      l2: mean squared error.
      perceptual: LPIPS with VGG16 features.
      entropy: the quantiser's loss, after the ramp.
      entropy_ramp_start: factor of `entropy` at step 0.
      entropy_ramp_steps: steps over which the factor falls to 1.
    """

    l1: float = 1.0
    l2: float = 0.0
    perceptual: float = 0.0
    entropy: float = 0.1
    entropy_ramp_start: float = 3.0
    entropy_ramp_steps: int = 2000


@dataclasses.dataclass(frozen=True)
class TokenizerTask:
    """``(state, batch, frozen) -> (state, metrics)`` for a tokenizer.

    A batch is ``{"pixels": uint8 [batch, time, height, width, 3], "frames": int32 [batch]}``: so
    many frames of each clip are real, the rest is padding that no loss counts. Without ``frames``
    all are real. All methods are pure; the train loop jits them with donated, sharded state, so
    every mean over the batch is a mean over the real frames of the GLOBAL batch.

    Attributes:
      model: the network.
      optimizer: optax transformation of the gradients.
      schedule: learning rate by step, for the log.
      weights: weights of the loss terms.
      adversarial: the discriminator and its rules; None for none.
      ema_decay: decay of the averaged parameters; 0 keeps none.
      ema_warmup: let the decay start small, for runs that start from random parameters.
      accumulate: micro-batches a step, averaged by their numbers of real frames, and what a
        discriminator makes of whole clips by their numbers of clips. The codebook entropy, the
        adaptive weight and the statistics of the discriminator's minibatch are those of a
        micro-batch.
      seed: the run's seed.
    """

    model: TokenizerModel
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    weights: LossWeights = LossWeights()
    adversarial: AdversarialRules | None = None
    ema_decay: float = 0.0
    ema_warmup: bool = True
    accumulate: int = 1
    seed: int = 0

    # --- state ---

    def _player(self, name: str, model: Any, optimizer: optax.GradientTransformation) -> Player:
        shape = self.model.shape

        def init() -> Any:
            pixels = jnp.zeros((1, shape.frames, shape.image_height, shape.image_width, 3))
            return model.init(stream_key(self.seed, name), pixels)["params"]

        return init, optimizer

    @property
    def _generator(self) -> Player:
        return self._player("init", self.model, self.optimizer)

    @property
    def _discriminator(self) -> Player | None:
        rules = self.adversarial
        if rules is None:
            return None
        return self._player("init discriminator", rules.discriminator, rules.optimizer)

    def abstract_state(self, mesh: Mesh) -> TrainState:
        """Shapes and shardings of the state on `mesh`; allocates nothing."""
        ema = self.ema_decay > 0
        return abstract_state(self._generator, mesh, ema=ema, adversary=self._discriminator)

    def init_state(self, mesh: Mesh) -> TrainState:
        """The state at step 0, sharded over `mesh`, the same numbers on any mesh."""
        abstract = self.abstract_state(mesh)
        return initial_state(self._generator, abstract, adversary=self._discriminator)

    def load_frozen(self, mesh: Mesh) -> Frozen:
        """Parameters of the frozen networks that the losses look through, on every device.

        Raises:
          UserError: the weights are missing or damaged.
        """
        if not self.weights.perceptual:
            return {}
        return {PERCEPTUAL: replicate(load_lpips(PERCEPTUAL), mesh)}

    def abstract_frozen(self, mesh: Mesh) -> Frozen:
        """Shapes and shardings of what `load_frozen` gives; allocates nothing."""
        if not self.weights.perceptual:
            return {}
        return {PERCEPTUAL: abstract_replicated(abstract_lpips(PERCEPTUAL), mesh)}

    # --- training ---

    def _apply(self, params: Any, x: jax.Array, method: str, frames: jax.Array | None) -> jax.Array:
        """A method of the network, ``[batch, time, ...]`` to the same.

        An image model sees the frames of a clip one by one.
        """
        batch, time = x.shape[:2]
        by_frame = self.model.shape.frames == 1 and time > 1
        if by_frame:
            x, frames = rearrange(x, "b t ... -> (b t) 1 ..."), None
        y = cast(jax.Array, self.model.apply({"params": params}, x, frames, method=method))
        return y.reshape(batch, time, *y.shape[2:]) if by_frame else y

    def reconstruct(
        self,
        params: Any,
        pixels: jax.Array,
        weights: jax.Array | None = None,
        kept: jax.Array | None = None,
        frames: jax.Array | None = None,
    ) -> TokenizerOutput:
        """The network's output for float pixels.

        Args:
          params: the network's parameters.
          pixels: ``[batch, time, height, width, 3]``.
          weights: of the frames in the quantiser's losses, ``[batch, time]``; None: all alike.
          kept: int32 ``[batch]``, bits of a token that the decoder gets; None: all.
          frames: int32 ``[batch]``, real frames of each clip, which see no padding; None: all are.
        """
        quantized = self.model.quantizer(self._apply(params, pixels, "latents", frames), weights)
        corners = quantized.quantized
        if kept is not None:
            corners = keep_bits(corners, kept)
        decoded = self._apply(params, corners, "decode_quantized", frames)
        return TokenizerOutput(decoded, quantized)

    def kept_bits(self, examples: int, step: jax.Array) -> jax.Array | None:
        """How many bits of its tokens the decoder gets of each example, int32 ``[examples]``.

        All for about half of them, and from ``min_bits`` on for the others, so that the first bits
        learn to say what matters most. None for models without ``min_bits``: always all.
        """
        shape = self.model.shape
        if not shape.min_bits:
            return None
        return draw_kept(stream_key(self.seed, "bits", step), examples, shape)

    def pixel_loss(
        self,
        reconstruction: jax.Array,
        pixels: jax.Array,
        frozen: Frozen,
        weights: jax.Array | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """Weighted reconstruction and perceptual losses, and their terms.

        The reconstruction is not clamped: a clamp would remove the gradient of every pixel outside
        [-1, 1]. Frames may have weights ``[batch, time]``.
        """
        terms = {
            "l1": losses.l1(pixels, reconstruction, weights),
            "l2": losses.l2(pixels, reconstruction, weights),
        }
        if self.weights.perceptual:
            shares = lpips_layers(
                frozen[PERCEPTUAL], pixels, reconstruction, net=PERCEPTUAL, dtype=self.model.dtype
            )
            terms["perceptual"] = weighted_mean(jnp.sum(shares, axis=-1), weights)
        loss = jnp.float32(0)
        for name, value in terms.items():
            if getattr(self.weights, name):
                loss += getattr(self.weights, name) * value
        return loss, terms

    def entropy_weight(self, step: jax.Array) -> jax.Array:
        """Weight of the quantiser's loss at a step."""
        weights = self.weights
        ramp = losses.ramp(step, weights.entropy_ramp_start, weights.entropy_ramp_steps)
        return weights.entropy * ramp

    def gradients(
        self,
        params: Any,
        adversary: Adversary | None,
        pixels: jax.Array,
        frames: jax.Array | None,
        step: jax.Array,
        frozen: Frozen,
        kept: jax.Array | None = None,
        mean_frames: jax.Array | None = None,
    ) -> tuple[Any, Any, Metrics]:
        """Gradients of both players for one batch, from one forward pass of the generator.

        Args:
          params: the generator's parameters.
          adversary: the discriminator's state, if there is one.
          pixels: float pixels ``[batch, time, height, width, 3]``.
          frames: int32 ``[batch]``, real frames of each clip; None: all are.
          step: of the run.
          frozen: what `load_frozen` returned.
          kept: int32 ``[batch]``, bits of a token that the decoder gets, of `kept_bits`; None: all.
          mean_frames: mean number of real frames of a clip in the whole batch, a scalar, where this
            is a micro-batch of it; None: this is all.

        Returns:
          ``(of the generator, of the discriminator or None, metrics)``. All metrics add up over
          micro-batches; `finish` makes those of the step from them.
        """
        weights = None
        if frames is not None and pixels.shape[1] > 1:  # of single frames none is padding
            weights = real_frames(frames, pixels.shape[1]).astype(jnp.float32)
            # Discriminators see the padding, so that it must not matter what it holds.
            pixels = hold_last(pixels, frames)

        def forward(params: Any) -> tuple[tuple[jax.Array, jax.Array], Any]:
            output = self.reconstruct(params, pixels, weights, kept, frames)
            fake = output.pixels
            if weights is not None:  # at the source, so that no loss has a gradient there
                fake = jnp.where(with_axes(weights, 5) > 0, fake, pixels)
            return (fake, output.quantized.loss), output.quantized

        (fake, entropy), pull, quantized = jax.vjp(forward, params, has_aux=True)
        (loss, terms), pixel_gradient = jax.value_and_grad(self.pixel_loss, has_aux=True)(
            fake, pixels, frozen, weights
        )
        entropy_weight = self.entropy_weight(step)
        loss += entropy_weight * entropy
        watched = {**terms, "entropy": entropy}

        second = None
        if self.adversarial is not None:
            assert adversary is not None
            play = self.adversarial.play(adversary, pixels, fake, step, weights)
            of_clips = jnp.float32(1)
            if self.adversarial.clip_frames and frames is not None and mean_frames is not None:
                # Micro-batches are joined by their numbers of frames, but these are means over
                # clips: this turns the share of the frames into that of the clips.
                of_clips = mean_frames / jnp.mean(frames.astype(jnp.float32))
            playing = step >= self.adversarial.start
            weight = jnp.where(playing, jnp.float32(self.adversarial.weight), 0.0)
            if self.adversarial.adaptive:
                # Only the last layer's gradient is used, so the rest of these is never computed.
                last, none = lambda g: g["decoder"]["head_out"]["kernel"], jnp.zeros_like(entropy)
                weight *= losses.adaptive_weight(
                    last(pull((pixel_gradient, none))[0]),
                    last(pull((play.pixel_gradient, none))[0]),
                )
                watched["adversarial_weight"] = weight
            play = jax.tree.map(lambda leaf: of_clips * leaf, play)
            pixel_gradient += weight * play.pixel_gradient
            loss += weight * play.watched["adversarial"]
            watched |= play.watched
            second = play.gradients

        (first,) = pull((pixel_gradient, entropy_weight))
        watched |= {
            "loss": loss,
            **quantized.losses,
            **code_counts(quantized.bits, weights),
            "squared_error": losses.l2(pixels, jnp.clip(fake, -1.0, 1.0), weights),
        }
        return first, second, watched

    @staticmethod
    def finish(watched: Metrics) -> Metrics:
        """The metrics of a step from those of `gradients`, averaged over its micro-batches.

        What is no mean, such as ``psnr``, is computed here, once, from means over the whole batch.
        """
        counts = {name: watched[name] for name in ("bit_mean", "codes_seen")}
        error = jnp.maximum(watched["squared_error"], 1e-10)
        rest = {k: v for k, v in watched.items() if k not in (*counts, "squared_error")}
        # PSNR of the batch as a whole; evaluation averages over pictures.
        return {**rest, **health_of(counts), "psnr": 10.0 * jnp.log10(4.0 / error)}

    def train_step(
        self, state: TrainState, batch: Batch, frozen: Frozen
    ) -> tuple[TrainState, Metrics]:
        """One optimiser step of each player on one global batch."""
        all_frames, mean_frames = batch.get("frames"), None
        if all_frames is not None and self.accumulate > 1:
            mean_frames = jnp.mean(all_frames.astype(jnp.float32))

        def gradients_of(
            rows: tuple[jax.Array, jax.Array | None], frames: jax.Array | None
        ) -> tuple[Any, Any, Metrics]:
            pixels, kept = rows
            players = state.params, state.adversary
            return self.gradients(
                *players, to_float(pixels), frames, state.step, frozen, kept, mean_frames
            )

        rows = batch["pixels"], self.kept_bits(len(batch["pixels"]), state.step)
        gradients, second, watched = over_micro_batches(
            gradients_of, rows, all_frames, self.accumulate
        )
        watched = self.finish(watched)
        updates, opt_state = self.optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema, adversary = state.ema, state.adversary
        if ema is not None:
            ema = update_ema(ema, params, state.step, self.ema_decay, warmup=self.ema_warmup)
        if self.adversarial is not None:
            assert adversary is not None
            adversary = self.adversarial.update(adversary, second, watched, state.step)
            watched["discriminator_gradient_norm"] = optax.tree.norm(second)
        watched["gradient_norm"] = optax.tree.norm(gradients)
        watched["learning_rate"] = self.schedule(state.step)
        return TrainState(state.step + 1, params, ema, opt_state, adversary), watched

    # --- evaluation ---

    def evaluate_step(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """Reconstructs a batch, as pictures of 8 bits per channel.

        Returns:
          ``reconstruction`` uint8 ``[batch, time, height, width, 3]``, and ``bits`` uint8.
        """
        output = self.reconstruct(params, to_float(batch["pixels"]), frames=batch.get("frames"))
        return {"reconstruction": to_uint8(output.pixels), "bits": output.quantized.bits}


def draw_kept(key: jax.Array, examples: int, shape: TokenizerShape) -> jax.Array:
    """Numbers of bits, int32 ``[examples]``: about half all, the others uniform from min_bits."""
    lowest = shape.min_bits - (shape.bits - shape.min_bits)
    drawn = jax.random.randint(key, (examples,), lowest, shape.bits + 1)
    return jnp.where(drawn < shape.min_bits, shape.bits, drawn)


def keep_bits(values: jax.Array, kept: jax.Array) -> jax.Array:
    """Zeros after the first `kept` ``[batch]`` bits of tokens ``[batch, ..., L]``."""
    there = real_frames(kept, values.shape[-1])
    there = there.reshape(len(there), *(1,) * (values.ndim - 2), there.shape[-1])
    return jnp.where(there, values, 0.0)


def make_tokenizer_task(config: ConfigDict) -> TokenizerTask:
    """The task that a finalised config describes."""
    loss = config.loss
    adversarial = None
    if loss.adversarial:
        adversarial = AdversarialRules(
            discriminator=make_discriminator(config),
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
        )
    return TokenizerTask(
        model=make_tokenizer(config),
        optimizer=make_optimizer(config),
        schedule=make_schedule(config),
        weights=LossWeights(
            l1=loss.l1,
            l2=loss.l2,
            perceptual=loss.perceptual,
            entropy=loss.entropy,
            entropy_ramp_start=loss.entropy_ramp_start,
            entropy_ramp_steps=loss.entropy_ramp_steps,
        ),
        adversarial=adversarial,
        ema_decay=config.optimizer.ema,
        ema_warmup=not config.train.init,  # an average that comes along is not to be forgotten
        accumulate=config.train.accumulate,
        seed=config.seed,
    )
