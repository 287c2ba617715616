"""The task of training a tokenizer: what one step and one evaluation step are.

One forward pass of the generator serves all losses: each gives its gradient with respect to the
reconstruction, their weighted sum goes back through the generator once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from bsq_jax.core.clips import with_axes
from bsq_jax.core.pixels import to_float, to_uint8
from bsq_jax.core.rng import stream_key
from bsq_jax.core.sharding import abstract_replicated, replicate
from bsq_jax.losses import (
    FrozenParams,
    ReconstructionLoss,
    make_entropy_weight,
    make_losses,
    weighted_sum,
)
from bsq_jax.models.factory import make_tokenizer
from bsq_jax.models.tokenizer import TokenizerModel, TokenizerOutput
from bsq_jax.quantizers import Quantized
from bsq_jax.training.accumulate import over_micro_batches
from bsq_jax.training.state import DiscriminatorState, TrainableNetwork, TrainState
from bsq_jax.training.tasks import flipped_bits, forward, step_metrics, variable_bits
from bsq_jax.training.tasks.adversarial import AdversarialTraining, make_adversarial_training
from bsq_jax.training.tasks.base import Batch, Metrics, TrainingTask, shared_settings
from bsq_jax.training.tasks.codebooks import CodebookTraining, Draw, make_codebook_training
from bsq_jax.training.tasks.rate import RateTraining, make_rate_training

if TYPE_CHECKING:
    from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerTask(TrainingTask):
    """``(state, batch, frozen) -> (state, metrics)`` for a tokenizer.

    A batch is ``{"pixels": uint8 [batch, time, height, width, 3], "frames": int32 [batch]}``: so
    many frames of each clip are real, the rest is padding that no loss counts. Without ``frames``
    all are real. All methods are pure; the train loop jits them with donated, sharded state, so
    every mean over the batch is a mean over the real frames of the GLOBAL batch.

    Micro-batches are averaged by their numbers of real frames, and what a discriminator makes of
    whole clips by their numbers of clips. The codebook entropy, the adaptive weight and the
    statistics of the discriminator's minibatch are those of a micro-batch.

    Attributes:
      model: the network, the generator of adversarial training.
      losses: of reconstructions.
      entropy_weight: weight of the quantizer's loss by step, whether it has entropy terms or not.
      adversarial: the discriminator and its training; None for none.
      flip: share of the bits that the decoder gets wrong in training.
      codebooks: the learned codebooks and how they move; None where the quantizer has none.
      rate: the rate in the loss; None: it has none.
    """

    model: TokenizerModel
    losses: tuple[ReconstructionLoss, ...]
    entropy_weight: optax.Schedule
    adversarial: AdversarialTraining | None
    flip: float
    codebooks: CodebookTraining | None = None
    rate: RateTraining | None = None

    # --- state ---

    def _init(self, stream: str, model: Any) -> Any:
        shape = self.model.shape
        pixels = jnp.zeros((1, shape.frames, shape.image_height, shape.image_width, 3))
        return model.init(stream_key(self.seed, stream), pixels)["params"]

    @property
    def _network(self) -> TrainableNetwork:
        return TrainableNetwork(lambda: self._init("init", self.model), self.optimizer)

    @property
    def _discriminator(self) -> TrainableNetwork | None:
        training = self.adversarial
        if training is None:
            return None
        model = training.discriminator
        return TrainableNetwork(lambda: self._init("init discriminator", model), training.optimizer)

    @property
    def _codebooks(self) -> CodebookTraining | None:
        return self.codebooks

    @property
    def _rate(self) -> TrainableNetwork | None:
        return None if self.rate is None else self.rate.network

    def load_frozen(self, mesh: Mesh) -> FrozenParams:
        """Parameters of the frozen networks that the losses need, on every device.

        Raises:
          UserError: the weights are missing or damaged.
        """
        needed = {each.needs.name: each.needs for each in self.losses if each.needs}
        return {name: replicate(network.load(), mesh) for name, network in needed.items()}

    def abstract_frozen(self, mesh: Mesh) -> FrozenParams:
        """Shapes and shardings of what `load_frozen` gives; allocates nothing."""
        needed = {each.needs.name: each.needs for each in self.losses if each.needs}
        return {
            name: abstract_replicated(network.abstract(), mesh) for name, network in needed.items()
        }

    # --- training ---

    def reconstruct(
        self,
        params: Any,
        pixels: jax.Array,
        weights: jax.Array | None = None,
        kept: jax.Array | None = None,
        frames: jax.Array | None = None,
        flipped: jax.Array | None = None,
    ) -> TokenizerOutput:
        """The network's output for float pixels, see `bsq_jax.training.tasks.forward`."""
        return forward.reconstruct(self.model, params, pixels, weights, kept, frames, flipped)

    def kept_bits(self, examples: int, step: jax.Array) -> jax.Array | None:
        """How many bits of its tokens the decoder gets of each example, int32 ``[examples]``.

        None: always all. See `bsq_jax.training.tasks.variable_bits`.
        """
        return variable_bits.kept_bits(self.model.shape, self.seed, examples, step)

    def flipped_bits(self, pixels: jax.Array, step: jax.Array) -> jax.Array | None:
        """Which bits the decoder gets wrong, uint8 0/1 ``[batch, time, row, column, L]``.

        None: none. See `bsq_jax.training.tasks.flipped_bits`.
        """
        shape = self.model.shape
        times = len(pixels), shape.token_frames(pixels.shape[1])
        size = (*times, *forward.token_grid(shape, pixels), shape.bits)
        return flipped_bits.flipped_bits(size, self.flip, self.seed, step)

    def gradients(
        self,
        params: Any,
        discriminator: DiscriminatorState | None,
        pixels: jax.Array,
        frames: jax.Array | None,
        step: jax.Array,
        frozen: FrozenParams,
        kept: jax.Array | None = None,
        mean_frames: jax.Array | None = None,
        flipped: jax.Array | None = None,
        measure: Callable[[Quantized, jax.Array | None], Any] = lambda *_: None,
        rate: Any = None,
    ) -> tuple[Any, Any, Any, Any, Metrics]:
        """Gradients of generator and discriminator for one (micro-)batch.

        Args:
          params: the generator's parameters.
          discriminator: its state, if there is one.
          pixels: float pixels ``[batch, time, height, width, 3]``.
          frames: int32 ``[batch]``, real frames of each clip; None: all are.
          step: of the run.
          frozen: what `load_frozen` returned.
          kept: int32 ``[batch]``, bits of a token that the decoder gets, of `kept_bits`; None: all.
          mean_frames: mean number of real frames of a clip in the whole batch, a scalar, where this
            is a micro-batch of it; None: this is all.
          flipped: 0/1 ``[batch, time, row, column, L]``, of `flipped_bits`; None: none. The metrics
            and the quantizer's losses are those of the right bits.
          measure: takes what else is wanted from the tokens and the weights of their frames.
          rate: parameters of the prior of the rate, if there is one.

        Returns:
          ``(of the generator, of the discriminator or None, of the prior of the rate or None, what
          was measured, metrics)``. All metrics add up over micro-batches; `step_metrics.finish`
          makes those of the step.
        """
        pixels, weights = forward.with_plain_padding(pixels, frames)
        of_tokens = forward.token_weights(self.model.shape, weights)

        entropy_weight = self.entropy_weight(step)

        def generate(params: Any, rate: Any) -> tuple[tuple[jax.Array, jax.Array], Any]:
            output = self.reconstruct(params, pixels, of_tokens, kept, frames, flipped)
            fake, quantized = output.pixels, output.quantized
            if weights is not None:  # at the source, so that no loss has a gradient there
                fake = jnp.where(with_axes(weights, 5) > 0, fake, pixels)
            added, terms = entropy_weight * quantized.loss, {"quantizer_loss": quantized.loss}
            if self.rate is not None:
                found = self.rate.rate(rate, quantized, step, kept, of_tokens)
                added += found.loss
                terms["bits_per_pixel"] = found.bits_per_pixel
            return (fake, added), (quantized, terms)

        def pixel_loss(fake: jax.Array) -> tuple[jax.Array, Metrics]:
            return weighted_sum(self.losses, pixels, fake, weights, frozen, step)

        (fake, added), pull, (quantized, of_terms) = jax.vjp(generate, params, rate, has_aux=True)
        (loss, terms), pixel_gradient = jax.value_and_grad(pixel_loss, has_aux=True)(fake)
        loss += added
        watched = {**terms, **of_terms}
        discriminator_gradient = None
        if self.adversarial is not None:
            assert discriminator is not None

            # Only the last layer's gradient is used, so the rest of this one is never computed.
            def last_layer(pixel_gradient: jax.Array) -> jax.Array:
                gradient, _ = pull((pixel_gradient, jnp.zeros_like(added)))
                return gradient["decoder"]["head_out"]["kernel"]

            found = self.adversarial.gradients(discriminator, pixels, fake, step, weights)
            weight = self.adversarial.generator_weight(
                step, pixel_gradient, found.pixels, last_layer
            )
            if self.adversarial.adaptive:
                watched["adversarial_weight"] = weight
            found = self.adversarial.counted_by_frames(found, frames, mean_frames)
            pixel_gradient += weight * found.pixels
            loss += weight * found.metrics["adversarial"]
            watched |= found.metrics
            discriminator_gradient = found.discriminator
        gradient, rate_gradient = pull((pixel_gradient, jnp.ones_like(added)))
        layout = self.model.quantizer.layout
        watched |= step_metrics.reconstruction_metrics(
            quantized, layout, pixels, fake, weights, of_tokens
        )
        measured = measure(quantized, of_tokens)
        metrics = {**watched, "loss": loss}
        return gradient, discriminator_gradient, rate_gradient, measured, metrics

    def train_step(
        self, state: TrainState, batch: Batch, frozen: FrozenParams
    ) -> tuple[TrainState, Metrics]:
        """One optimizer step of generator and discriminator on one global batch."""
        all_frames, mean_frames = batch.get("frames"), None
        if all_frames is not None and self.accumulate > 1:
            mean_frames = jnp.mean(all_frames.astype(jnp.float32))

        pixels = batch["pixels"]
        draws = self._draws(state, pixels, all_frames)

        def gradients_of(rows: tuple[Any, ...], frames: jax.Array | None) -> Any:
            pixels, kept, flipped, numbers = rows

            def measure(quantized: Quantized, weights: jax.Array | None) -> Any:
                if self.codebooks is None:
                    return None
                return self.codebooks.statistics(state.params, quantized, weights, numbers, draws)

            return self.gradients(
                *(state.params, state.adversary, to_float(pixels), frames, state.step, frozen),
                kept=kept,
                mean_frames=mean_frames,
                flipped=flipped,
                measure=measure,
                rate=None if state.rate is None else state.rate.params,
            )

        kept = self.kept_bits(len(pixels), state.step)
        numbers = None if self.codebooks is None else jnp.arange(len(pixels))
        rows = pixels, kept, self.flipped_bits(pixels, state.step), numbers
        gradients, of_discriminator, of_rate, of_codebooks, watched = over_micro_batches(
            gradients_of, rows, all_frames, self.accumulate
        )
        watched = self._finished(watched, pixels, all_frames)
        amend = None
        if self.codebooks is not None:
            assert state.codebooks is not None
            changes = self.codebooks.change(state.params, state.codebooks, of_codebooks)
            amend = functools.partial(self.codebooks.put, changes=changes)
            state = dataclasses.replace(state, codebooks=tuple(each.state for each in changes))
            watched |= self.codebooks.metrics(changes)
        after, of_optimizer = self._optimizer_step(state, gradients, amend)
        if self.adversarial is not None:
            assert state.adversary is not None
            adversary = self.adversarial.update(
                state.adversary, of_discriminator, watched, state.step
            )
            after = dataclasses.replace(after, adversary=adversary)
            watched["discriminator_gradient_norm"] = optax.tree.norm(of_discriminator)
        if self.rate is not None:
            assert state.rate is not None
            after = dataclasses.replace(after, rate=self.rate.update(state.rate, of_rate))
            watched["rate_gradient_norm"] = optax.tree.norm(of_rate)
        return after, watched | of_optimizer

    def _finished(self, watched: Metrics, pixels: jax.Array, frames: jax.Array | None) -> Metrics:
        """The metrics of the step on a global batch, of their means over its real frames."""
        of_frame = math.prod(forward.token_grid(self.model.shape, pixels))
        times = self.model.shape.token_frames
        most = len(pixels) * times(pixels.shape[1]) * of_frame
        tokens = most if frames is None else jnp.sum(times(frames)) * of_frame
        return step_metrics.finish(watched, self.model.quantizer.layout, tokens, most)

    def _draws(
        self, state: TrainState, pixels: jax.Array, frames: jax.Array | None
    ) -> tuple[Draw, ...]:
        """Tokens of the global batch that may become codes, see `CodebookTraining.draw`."""
        if self.codebooks is None:
            return ()
        if frames is None:
            frames = jnp.full(len(pixels), pixels.shape[1], jnp.int32)
        of_frame = math.prod(forward.token_grid(self.model.shape, pixels))
        tokens = self.model.shape.token_frames(frames) * of_frame
        return self.codebooks.draw(state.params, tokens, state.step)

    # --- evaluation ---

    def evaluate_step(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """Reconstructs a batch, as pictures of 8 bits per channel.

        Returns:
          ``reconstruction`` uint8 ``[batch, time, height, width, 3]``, and ``bits`` uint8.
        """
        output = self.reconstruct(params, to_float(batch["pixels"]), frames=batch.get("frames"))
        return {"reconstruction": to_uint8(output.pixels), "bits": output.quantized.bits}


def make_tokenizer_task(config: ConfigDict) -> TokenizerTask:
    """The task that a finalised config describes."""
    # Only here: the task itself runs where ml_collections is not installed.
    from bsq_jax.config.quantizer import has_entropy_terms

    model = make_tokenizer(config)
    # What others have in their loss learns the codebook and holds the latents near their codes.
    entropy_weight = optax.constant_schedule(1.0)
    if has_entropy_terms(config):
        entropy_weight = make_entropy_weight(config)
    return TokenizerTask(
        model=model,
        losses=make_losses(config),
        entropy_weight=entropy_weight,
        adversarial=make_adversarial_training(config),
        flip=config.quantizer.flip,
        codebooks=make_codebook_training(config, model.quantizer),
        rate=make_rate_training(config, model),
        **shared_settings(config),
    )
