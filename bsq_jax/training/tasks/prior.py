"""The task of training a prior on the tokens of a frozen tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bsq_jax.core.clips import real_frames, weighted_mean
from bsq_jax.core.rng import stream_key
from bsq_jax.models.factory import Prior, make_prior
from bsq_jax.models.frozen_tokenizer import FrozenTokenizer
from bsq_jax.models.prior.token_bits import cross_entropy
from bsq_jax.quantizers.base import keep_first
from bsq_jax.training.accumulate import over_micro_batches
from bsq_jax.training.state import TrainableNetwork, TrainState
from bsq_jax.training.tasks import variable_bits
from bsq_jax.training.tasks.base import Batch, Metrics, shared_settings
from bsq_jax.training.tasks.on_tokens import TokensTask


@dataclasses.dataclass(frozen=True, kw_only=True)
class PriorTask(TokensTask):
    """``(state, batch, frozen) -> (state, metrics)`` for a prior.

    A batch has ``pixels`` uint8 ``[batch, time, height, width, 3]``, of which the frozen tokenizer
    makes tokens, or these: ``bits`` uint8 ``[batch, time, row, column, L]``. Their grids are of any
    size for priors with a reach, and tiles for others. As for tokenizers
    there may be ``frames`` int32 ``[batch]``, the number of real frames of each clip.

    Attributes:
      model: the network.
    """

    model: Prior

    # --- state ---

    @property
    def _network(self) -> TrainableNetwork:
        shape = self.model.shape

        def init() -> Any:
            grid = (1, 1) if shape.any_size else (shape.rows, shape.columns)
            signs = jnp.zeros((1, 1, *grid, shape.bits))
            return self.model.init(stream_key(self.seed, "init"), signs)["params"]

        return TrainableNetwork(init, self.optimizer)

    # --- training ---

    def kept_bits(self, examples: int, step: jax.Array) -> jax.Array | None:
        """How many bits of a token each clip keeps, int32 ``[examples]``; None: always all.

        As many as its tokenizer's decoder might have been given in training.
        """
        return variable_bits.kept_bits(self.tokenizer.model.shape, self.seed, examples, step)

    def _cost(self, params: Any, signs: jax.Array) -> jax.Array:
        """Bits that each sign costs, ``[batch, time, row, column, L]``."""
        logits: Any = self.model.apply({"params": params}, signs)
        return cross_entropy(logits, signs)

    def train_step(
        self, state: TrainState, batch: Batch, frozen: Mapping[str, Any]
    ) -> tuple[TrainState, Metrics]:
        """One optimizer step on one global batch."""
        bits, frames = self.tokenizer.grids(batch, frozen), batch.get("frames")
        kept = self.kept_bits(len(bits), state.step)
        # The loss is a mean over bits, so each example weighs as many as it has.
        counts = jnp.ones(len(bits)) if frames is None else frames.astype(jnp.float32)
        if kept is not None:
            counts *= kept

        def gradients_of(rows: tuple[jax.Array, Any, Any], _: jax.Array | None) -> tuple[Any, Any]:
            bits, frames, kept = rows
            signs = 2.0 * bits.astype(jnp.float32) - 1
            if kept is not None:
                signs = keep_first(signs, kept)
            weights = None
            if frames is not None:
                weights = real_frames(frames, signs.shape[1]).astype(jnp.float32)

            def loss(params: Any) -> jax.Array:
                cost = jnp.sum(self._cost(params, signs), axis=(2, 3, 4))
                there = jnp.sum(jnp.abs(signs), axis=(2, 3, 4))
                return weighted_mean(cost, weights) / weighted_mean(there, weights)

            value, gradients = jax.value_and_grad(loss)(state.params)
            return gradients, {"loss": value}

        gradients, watched = over_micro_batches(
            gradients_of, (bits, frames, kept), counts, self.accumulate
        )
        watched["saved"] = 1 - watched["loss"]
        after, of_optimizer = self._optimizer_step(state, gradients)
        return after, watched | of_optimizer

    # --- evaluation ---

    def evaluate_step(
        self, params: Any, batch: Batch, frozen: Mapping[str, Any]
    ) -> dict[str, jax.Array]:
        """Logits and bits of a batch.

        Returns:
          ``bits`` uint8 and ``logits`` int16, ``[batch, time, row, column, L]``, and ``cost``
          float32 ``[batch, time]``, the bits that each frame costs.
        """
        bits = self.tokenizer.grids(batch, frozen)
        signs = 2.0 * bits.astype(jnp.float32) - 1
        logits: Any = self.model.apply({"params": params}, signs)
        cost = jnp.sum(cross_entropy(logits, signs), axis=(2, 3, 4))
        return {"bits": bits, "logits": logits.astype(jnp.int16), "cost": cost}


def make_prior_task(config: ConfigDict, tokenizer: FrozenTokenizer) -> PriorTask:
    """The task that a finalised config describes, on the tokens of a tokenizer."""
    return PriorTask(
        model=make_prior(config),
        tokenizer=tokenizer,
        **shared_settings(config),
    )
