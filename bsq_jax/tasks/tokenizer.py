"""The task of training a tokenizer: what one step and one evaluation step are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bsq_jax import losses, metrics
from bsq_jax.core.pixels import to_float, to_uint8
from bsq_jax.core.rng import stream_key
from bsq_jax.models.factory import make_tokenizer
from bsq_jax.models.tokenizer import TokenizerModel, TokenizerOutput
from bsq_jax.optim import make_optimizer, make_schedule, update_ema
from bsq_jax.quantizers.health import bit_health
from bsq_jax.tasks.state import TrainState, abstract_state, initial_state

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights of the generator's loss terms; a term of weight 0 is watched and has no gradient.

    Attributes:
      l1: mean absolute error.
      l2: mean squared error.
      entropy: the quantiser's loss, after the ramp.
      entropy_ramp_start: factor of `entropy` at step 0.
      entropy_ramp_steps: steps over which the factor falls to 1.
    """

    l1: float = 1.0
    l2: float = 0.0
    entropy: float = 0.1
    entropy_ramp_start: float = 3.0
    entropy_ramp_steps: int = 2000


@dataclasses.dataclass(frozen=True)
class TokenizerTask:
    """``(state, batch) -> (state, metrics)`` for a tokenizer.

    A batch is ``{"pixels": uint8 [batch, time, height, width, 3]}``. All methods are pure; the
    train loop jits them with donated, sharded state, so every mean over the batch is a mean over
    the GLOBAL batch.

    Attributes:
      model: the network.
      optimizer: optax transformation of the gradients.
      schedule: learning rate by step, for the log.
      weights: weights of the loss terms.
      ema_decay: decay of the averaged parameters; 0 keeps none.
      accumulate: micro-batches a step. The codebook entropy is that of a micro-batch.
      seed: the run's seed.
    """

    model: TokenizerModel
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    weights: LossWeights = LossWeights()
    ema_decay: float = 0.0
    accumulate: int = 1
    seed: int = 0

    # --- state ---

    def _init_params(self) -> Any:
        shape = self.model.shape
        pixels = jnp.zeros((1, shape.frames, shape.image_height, shape.image_width, 3))
        return self.model.init(stream_key(self.seed, "init"), pixels)["params"]

    def abstract_state(self, mesh: Mesh) -> TrainState:
        """Shapes and shardings of the state on `mesh`; allocates nothing."""
        return abstract_state(self._init_params, self.optimizer, mesh, ema=self.ema_decay > 0)

    def init_state(self, mesh: Mesh) -> TrainState:
        """The state at step 0, sharded over `mesh`, the same numbers on any mesh."""
        return initial_state(self._init_params, self.optimizer, self.abstract_state(mesh))

    # --- training ---

    def reconstruct(self, params: Any, pixels: jax.Array) -> TokenizerOutput:
        """The network's output for float pixels."""
        return cast(TokenizerOutput, self.model.apply({"params": params}, pixels))

    def loss(self, params: Any, pixels: jax.Array, step: jax.Array) -> tuple[jax.Array, Metrics]:
        """The generator's loss of float pixels, and its terms.

        Perceptual and adversarial terms belong here: they are functions of (pixels, output).
        """
        weights = self.weights
        output = self.reconstruct(params, pixels)
        # Not clamped: a clamp would remove the gradient of every pixel outside [-1, 1].
        terms = {
            "l1": losses.l1(pixels, output.pixels),
            "l2": losses.l2(pixels, output.pixels),
            "entropy": output.quantized.loss,
        }
        entropy_weight = weights.entropy * losses.ramp(
            step, weights.entropy_ramp_start, weights.entropy_ramp_steps
        )
        loss = jnp.float32(0)
        for name, factor in (("l1", weights.l1), ("l2", weights.l2), ("entropy", entropy_weight)):
            if getattr(weights, name):
                loss += factor * terms[name]
        clamped = jnp.clip(output.pixels, -1.0, 1.0)
        watched = {
            "loss": loss,
            **terms,
            **output.quantized.losses,
            **bit_health(output.quantized.bits),
            # Of the batch as a whole; evaluation averages over pictures.
            "psnr": 10.0 * jnp.log10(4.0 / jnp.maximum(losses.l2(pixels, clamped), 1e-10)),
        }
        return loss, jax.lax.stop_gradient(watched)

    def _gradients(self, params: Any, batch: Batch, step: jax.Array) -> tuple[Any, Metrics]:
        gradient = jax.grad(self.loss, has_aux=True)
        if self.accumulate == 1:
            return gradient(params, to_float(batch["pixels"]), step)

        def micro_batches(x: jax.Array) -> jax.Array:
            # Strided, so that each device's rows stay on it.
            split = x.reshape(x.shape[0] // self.accumulate, self.accumulate, *x.shape[1:])
            return jnp.swapaxes(split, 0, 1)

        def add(total: Any, pixels: jax.Array) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradient(params, to_float(pixels), step)), None

        pixels = micro_batches(batch["pixels"])
        shapes = jax.eval_shape(gradient, params, to_float(pixels[0]), step)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, pixels)
        return jax.tree.map(lambda leaf: leaf / self.accumulate, total)

    def train_step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One optimiser step on one global batch."""
        gradients, watched = self._gradients(state.params, batch, state.step)
        updates, opt_state = self.optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = update_ema(ema, params, state.step, self.ema_decay)
        watched["gradient_norm"] = optax.tree.norm(gradients)
        watched["learning_rate"] = self.schedule(state.step)
        return TrainState(state.step + 1, params, ema, opt_state), watched

    # --- evaluation ---

    def evaluate_step(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """Reconstructs a batch and measures each example.

        Returns:
          ``reconstruction`` uint8 ``[batch, time, height, width, 3]``; ``bits`` uint8; and per
          example ``[batch]`` the metrics ``psnr``, where the pictures are large enough ``ssim`` and
          ``ms_ssim``, and ``oracle_psnr``: that of the best one-colour-per-patch picture.
        """
        output = self.reconstruct(params, to_float(batch["pixels"]))
        reconstruction = to_uint8(output.pixels)
        measured = measure(batch["pixels"], reconstruction, self.model.shape.patch_size)
        return {"reconstruction": reconstruction, "bits": output.quantized.bits, **measured}


def measure(original: jax.Array, reconstruction: jax.Array, patch: int) -> dict[str, jax.Array]:
    """Metrics ``[batch]`` of uint8 pixels ``[batch, time, height, width, 3]``."""
    measured = {
        "psnr": metrics.psnr(original, reconstruction),
        "oracle_psnr": metrics.psnr(original, jnp.round(metrics.patch_mean(original, patch))),
    }
    side = min(original.shape[2:4])
    if side >= metrics.SSIM_MIN_SIDE:
        measured["ssim"] = metrics.ssim(original, reconstruction)
    if side >= metrics.MS_SSIM_MIN_SIDE:
        measured["ms_ssim"] = metrics.ms_ssim(original, reconstruction)
    return measured


def make_tokenizer_task(config: ConfigDict) -> TokenizerTask:
    """The task that a finalised config describes."""
    return TokenizerTask(
        model=make_tokenizer(config),
        optimizer=make_optimizer(config),
        schedule=make_schedule(config),
        weights=LossWeights(**config.loss.to_dict()),
        ema_decay=config.optimizer.ema,
        accumulate=config.train.accumulate,
        seed=config.seed,
    )
