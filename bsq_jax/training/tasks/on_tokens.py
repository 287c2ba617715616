"""The state of a task on the tokens of a frozen tokenizer."""

from __future__ import annotations

from typing import Any

import optax
from jax.sharding import Mesh

from bsq_jax.models.frozen_tokenizer import FrozenTokenizer
from bsq_jax.training.state import Player, TrainState, abstract_state, initial_state, next_state


class TokensTask:
    """The state of a task that trains one network on the tokens of a frozen tokenizer.

    Attributes:
      tokenizer: makes the tokens.
      optimizer: optax transformation of the gradients.
      ema_decay: decay of the averaged parameters; 0 keeps none.
      ema_warmup: let the decay start small, for runs that start from random parameters.
    """

    tokenizer: FrozenTokenizer
    optimizer: optax.GradientTransformation
    ema_decay: float
    ema_warmup: bool

    @property
    def _player(self) -> Player:
        raise NotImplementedError

    def abstract_state(self, mesh: Mesh) -> TrainState:
        """Shapes and shardings of the state on `mesh`; allocates nothing."""
        return abstract_state(self._player, mesh, ema=self.ema_decay > 0)

    def init_state(self, mesh: Mesh) -> TrainState:
        """The state at step 0."""
        return initial_state(self._player, self.abstract_state(mesh))

    def _next(self, state: TrainState, gradients: Any) -> TrainState:
        """The state after a step with these gradients."""
        return next_state(
            state, gradients, self.optimizer, self.ema_decay, ema_warmup=self.ema_warmup
        )

    def load_frozen(self, mesh: Mesh) -> dict[str, Any]:
        """The tokenizer's parameters, on every device."""
        return self.tokenizer.load(mesh)

    def abstract_frozen(self, mesh: Mesh) -> dict[str, Any]:
        """Shapes and shardings of what `load_frozen` gives; allocates nothing."""
        return self.tokenizer.abstract(mesh)
