"""What the tasks on the tokens of a frozen tokenizer have in common."""

from __future__ import annotations

import dataclasses
from typing import Any

from jax.sharding import Mesh

from bsq_jax.models.frozen_tokenizer import FrozenTokenizer
from bsq_jax.training.tasks.base import TrainingTask


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokensTask(TrainingTask):
    """A task that trains one network on the tokens of a frozen tokenizer.

    Attributes:
      tokenizer: makes the tokens.
    """

    tokenizer: FrozenTokenizer

    def load_frozen(self, mesh: Mesh) -> dict[str, Any]:
        """The tokenizer's parameters, on every device."""
        return self.tokenizer.load(mesh)

    def abstract_frozen(self, mesh: Mesh) -> dict[str, Any]:
        """Shapes and shardings of what `load_frozen` gives; allocates nothing."""
        return self.tokenizer.abstract(mesh)
