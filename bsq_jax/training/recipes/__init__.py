"""Recipes: for each kind of model what a run of it is made of."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
from ml_collections import ConfigDict

from bsq_jax.data.batch_sizes import BatchSizes
from bsq_jax.data.batches import Batches
from bsq_jax.training.recipes.masked_lm import MaskedLmRecipe
from bsq_jax.training.recipes.prior import PriorRecipe
from bsq_jax.training.recipes.tokenizer import TokenizerRecipe
from bsq_jax.training.state import TrainState

__all__ = ["Recipe", "make_recipe"]


class Recipe(Protocol):
    """What a run is made of.

    Attributes:
      task: what one step is, see `bsq_jax.training.loop`.
      shown: metrics of a step that progress lines show.
    """

    task: Any
    shown: tuple[str, ...]

    @property
    def unit(self) -> str:
        """What a row of a batch is called."""
        ...

    @property
    def evaluated_examples(self) -> float:
        """Training examples that take about as long as measuring one set of weights."""
        ...

    def new_state(self) -> tuple[TrainState, str]:
        """The state that a new run starts from, and where it comes from, if there is more to say.

        Raises:
          UserError: the weights to start from are missing, damaged or of another model.
        """
        ...

    def check(self) -> None:
        """Opens what the run and its evaluation need: what is missing is told before training.

        Raises:
          UserError: the data do not suit the model or cannot be read, or weights of a network.
        """
        ...

    def batches(
        self, start: int, index: int, count: int, earlier: BatchSizes | None = None
    ) -> Batches:
        """Training batches from step `start` on, of host `index` of `count`.

        `earlier` are the batch sizes of the steps before; None: all were as now.

        Raises:
          UserError: the data cannot be read.
        """
        ...

    def greeting(self, state: TrainState, first: int) -> list[str]:
        """Lines for the log when training begins at step `first`."""
        ...

    def evaluate(
        self, weights: Mapping[str, Any], step: int, *, pictures: bool, suffix: str = ""
    ) -> dict[str, Any]:
        """Measures sets of weights on the validation split, and writes a report into the workdir.

        Args:
          weights: parameters by name, on the mesh.
          step: training step of the weights.
          pictures: whether to make pictures.
          suffix: put before the ending of all file names, to keep evaluations on other data apart.

        Returns:
          The report: a result for each set under ``results``, its file under ``path``, and the
          paths of what was drawn under ``pictures`` and ``videos``.

        Raises:
          UserError: the data cannot be read or the workdir not written.
        """
        ...

    def table(self, report: Mapping[str, Any]) -> str:
        """The report as text for a terminal."""
        ...


def make_recipe(config: ConfigDict, workdir: pathlib.Path, mesh: jax.sharding.Mesh) -> Recipe:
    """The recipe that ``config.task`` names.

    Raises:
      UserError: the data cannot be read, or the weights of a frozen network.
    """
    kinds: dict[str, Callable[..., Recipe]] = {
        "tokenizer": TokenizerRecipe,
        "prior": PriorRecipe,
        "masked_lm": MaskedLmRecipe,
    }
    return kinds[config.task](config, workdir, mesh)
