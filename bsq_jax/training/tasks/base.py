"""What the tasks of training have in common: their optimizer, their state, their step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import optax
from jax.sharding import Mesh

from bsq_jax.training.optimizer import make_optimizer, make_schedule, norm
from bsq_jax.training.state import (
    Codebooks,
    TrainableNetwork,
    TrainState,
    abstract_state,
    initial_state,
    next_state,
)

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """A network that is trained, and how. All methods are pure.

    A subclass adds ``train_step(state, batch, frozen) -> (state, metrics)``.

    Attributes:
      optimizer: optax transformation of the gradients.
      schedule: learning rate by step, for the log.
      ema_decay: decay of the averaged parameters; 0 keeps none.
      ema_warmup: let the decay start small, for runs that start from random parameters.
      accumulate: micro-batches a step.
      seed: the run's seed.
    """

    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    ema_decay: float
    ema_warmup: bool
    accumulate: int
    seed: int

    @property
    def _network(self) -> TrainableNetwork:
        """The network that is trained."""
        raise NotImplementedError

    @property
    def _discriminator(self) -> TrainableNetwork | None:
        """The network that is trained against it, if there is one."""
        return None

    @property
    def _codebooks(self) -> Codebooks | None:
        """The learned codebooks of the network, if there are any."""
        return None

    @property
    def _rate(self) -> TrainableNetwork | None:
        """The prior of the rate in its loss, if there is one."""
        return None

    def abstract_state(self, mesh: Mesh) -> TrainState:
        """Shapes and shardings of the state on `mesh`; allocates nothing."""
        return abstract_state(
            self._network,
            mesh,
            ema=self.ema_decay > 0,
            discriminator=self._discriminator,
            codebooks=self._codebooks,
            rate=self._rate,
        )

    def init_state(self, mesh: Mesh) -> TrainState:
        """The state at step 0, sharded over `mesh`, the same numbers on any mesh."""
        abstract = self.abstract_state(mesh)
        return initial_state(
            self._network,
            abstract,
            discriminator=self._discriminator,
            codebooks=self._codebooks,
            rate=self._rate,
        )

    def _optimizer_step(
        self, state: TrainState, gradients: Any, amend: Callable[[Any], Any] | None = None
    ) -> tuple[TrainState, Metrics]:
        """The state after a step with these gradients, and the metrics of the optimizer.

        Args:
          state: before the step.
          gradients: of the network's parameters.
          amend: see `next_state`.
        """
        metrics = {
            "gradient_norm": norm(gradients),
            "learning_rate": self.schedule(state.step),
        }
        after = next_state(
            state,
            gradients,
            self.optimizer,
            self.ema_decay,
            ema_warmup=self.ema_warmup,
            amend=amend,
        )
        return after, metrics


def shared_settings(config: ConfigDict) -> dict[str, Any]:
    """The fields of `TrainingTask` that a finalised config describes, by name."""
    return {
        "optimizer": make_optimizer(config),
        "schedule": make_schedule(config),
        "ema_decay": config.optimizer.ema,
        # The average of a run that starts from another one's is not to be forgotten.
        "ema_warmup": not config.train.init,
        "accumulate": config.train.accumulate,
        "seed": config.seed,
    }
