"""The task of training a prior on the tokens of a frozen tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from bsq_jax.core.clips import real_frames, weighted_mean
from bsq_jax.core.rng import stream_key
from bsq_jax.models.factory import make_prior
from bsq_jax.models.frozen_tokenizer import Batch, FrozenTokenizer
from bsq_jax.models.prior.model import PriorModel, cross_entropy
from bsq_jax.training.accumulate import over_micro_batches
from bsq_jax.training.optimizer import make_optimizer, make_schedule
from bsq_jax.training.state import Player, TrainState
from bsq_jax.training.tasks.on_tokens import TokensTask
from bsq_jax.training.tasks.tokenizer import draw_kept, keep_bits


@dataclasses.dataclass(frozen=True)
class PriorTask(TokensTask):
    """``(state, batch, frozen) -> (state, metrics)`` for a prior.

    A batch has ``pixels`` uint8 ``[batch, time, height, width, 3]``, of which the frozen tokenizer
    makes tokens, or these: ``bits`` uint8 ``[batch, time, row, column, L]``. As for tokenizers
    there may be ``frames`` int32 ``[batch]``, the number of real frames of each clip.

    Attributes:
      model: the network.
      tokenizer: makes the tokens.
      optimizer: optax transformation of the gradients.
      schedule: learning rate by step, for the log.
      ema_decay: decay of the averaged parameters; 0 keeps none.
      ema_warmup: let the decay start small, for runs that start from random parameters.
      accumulate: micro-batches a step.
      seed: the run's seed.
    """

    model: PriorModel
    tokenizer: FrozenTokenizer
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    ema_decay: float = 0.0
    ema_warmup: bool = True
    accumulate: int = 1
    seed: int = 0

    # --- state ---

    @property
    def _player(self) -> Player:
        shape = self.model.shape

        def init() -> Any:
            signs = jnp.zeros((1, 1, shape.tokens, shape.bits))
            return self.model.init(stream_key(self.seed, "init"), signs)["params"]

        return init, self.optimizer

    # --- training ---

    def kept_bits(self, examples: int, step: jax.Array) -> jax.Array | None:
        """How many bits of a token each clip keeps, int32 ``[examples]``; None: always all.

        As many as its tokenizer might have been left, see `draw_kept`.
        """
        shape = self.tokenizer.model.shape
        if not shape.min_bits:
            return None
        return draw_kept(stream_key(self.seed, "bits", step), examples, shape)

    def _cost(self, params: Any, signs: jax.Array) -> jax.Array:
        """Bits that each sign costs, ``[batch, time, token, L]``."""
        logits: Any = self.model.apply({"params": params}, signs)
        return cross_entropy(logits, signs)

    def train_step(
        self, state: TrainState, batch: Batch, frozen: Mapping[str, Any]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One optimiser step on one global batch."""
        bits, frames = self.tokenizer.tokens(batch, frozen), batch.get("frames")
        kept = self.kept_bits(len(bits), state.step)
        # The loss is a mean over bits, so each example weighs as many as it has.
        counts = jnp.ones(len(bits)) if frames is None else frames.astype(jnp.float32)
        if kept is not None:
            counts *= kept

        def gradients_of(rows: tuple[jax.Array, Any, Any], _: jax.Array | None) -> tuple[Any, Any]:
            bits, frames, kept = rows
            signs = 2.0 * bits.astype(jnp.float32) - 1
            if kept is not None:
                signs = keep_bits(signs, kept)
            weights = None
            if frames is not None:
                weights = real_frames(frames, signs.shape[1]).astype(jnp.float32)

            def loss(params: Any) -> jax.Array:
                cost = jnp.sum(self._cost(params, signs), axis=(2, 3))
                there = jnp.sum(jnp.abs(signs), axis=(2, 3))
                return weighted_mean(cost, weights) / weighted_mean(there, weights)

            value, gradients = jax.value_and_grad(loss)(state.params)
            return gradients, {"loss": value}

        gradients, watched = over_micro_batches(
            gradients_of, (bits, frames, kept), counts, self.accumulate
        )
        watched["saved"] = 1 - watched["loss"]
        watched["gradient_norm"] = optax.tree.norm(gradients)
        watched["learning_rate"] = self.schedule(state.step)
        return self._next(state, gradients), watched

    # --- evaluation ---

    def evaluate_step(
        self, params: Any, batch: Batch, frozen: Mapping[str, Any]
    ) -> dict[str, jax.Array]:
        """Logits and bits of a batch.

        Returns:
          ``bits`` uint8 and ``logits`` int16, ``[batch, time, token, L]``, and ``cost`` float32
          ``[batch, time]``, the bits that each frame costs.
        """
        bits = self.tokenizer.tokens(batch, frozen)
        signs = 2.0 * bits.astype(jnp.float32) - 1
        logits: Any = self.model.apply({"params": params}, signs)
        cost = jnp.sum(cross_entropy(logits, signs), axis=(2, 3))
        return {"bits": bits, "logits": logits.astype(jnp.int16), "cost": cost}


def make_prior_task(config: ConfigDict, tokenizer: FrozenTokenizer) -> PriorTask:
    """The task that a finalised config describes, on the tokens of a tokenizer."""
    return PriorTask(
        model=make_prior(config),
        tokenizer=tokenizer,
        optimizer=make_optimizer(config),
        schedule=make_schedule(config),
        ema_decay=config.optimizer.ema,
        ema_warmup=not config.train.init,  # an average that comes along is not to be forgotten
        accumulate=config.train.accumulate,
        seed=config.seed,
    )
