"""The recipe of a prior."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from bsq_jax.core.sharding import describe_devices
from bsq_jax.data.tokens import measured
from bsq_jax.evaluation.prior import PriorEvaluator, prior_table
from bsq_jax.evaluation.report import Wanted, evaluate
from bsq_jax.training.recipes.on_tokens import TokensRecipe
from bsq_jax.training.state import TrainState
from bsq_jax.training.tasks.prior import PriorTask, make_prior_task


class PriorRecipe(TokensRecipe[PriorTask]):
    """See `bsq_jax.training.recipes.Recipe`."""

    shown: tuple[str, ...] = ("loss", "saved", "learning_rate")

    def __init__(self, config: ConfigDict, workdir: pathlib.Path, mesh: jax.sharding.Mesh):
        """Puts a run together, see `TokensRecipe`."""
        super().__init__(config, workdir, mesh, functools.partial(make_prior_task, config))

    def check(self) -> None:
        """See `bsq_jax.training.recipes.Recipe`."""
        self._open_splits()
        _ = self._evaluator

    def greeting(self, state: TrainState, first: int) -> list[str]:
        """See `bsq_jax.training.recipes.Recipe`."""
        config, shape = self._config, self.task.model.shape
        count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        rows, columns = self.task.tokenizer.model.shape.grid
        steps = int(shape.steps(rows, columns).max()) + 1
        seen = f"tiles of {shape.rows}x{shape.columns} tokens"
        if shape.any_size:
            seen = f"neighbourhoods of {shape.distances[0]}x{shape.distances[1]} tokens"
        begin = f"resuming at step {first}" if first else "starting"
        return [
            f"{config.name}: a prior of {count / 1e6:.1f}M parameters over {seen} of "
            f"{shape.bits} bits, {steps} steps for {rows}x{columns} tokens, on "
            f"{describe_devices(self._mesh)}; {begin}",
            *self._run_lines(),
        ]

    @functools.cached_property
    def _evaluator(self) -> PriorEvaluator:
        shape = self.task.tokenizer.model.shape
        pixels = shape.image_height * shape.image_width // (shape.grid[0] * shape.grid[1])
        return PriorEvaluator(
            self.task,
            self._validation,
            self._mesh,
            batch_size=self._config.eval.batch_size,
            pixels=pixels,
            measured=measured(self._data, self._tokens),
        )

    @property
    def evaluated_examples(self) -> float:
        """See `bsq_jax.training.recipes.Recipe`."""
        return self._validation.examples

    def evaluate(
        self, weights: Mapping[str, Any], step: int, *, pictures: bool, suffix: str = ""
    ) -> dict[str, Any]:
        """See `bsq_jax.training.recipes.Recipe`; there is nothing to draw."""
        del pictures
        return evaluate(
            self._evaluator,
            weights,
            self._workdir,
            name=self._workdir.resolve().name,
            step=step,
            wanted=Wanted(),
            suffix=suffix,
        )

    def table(self, report: Mapping[str, Any]) -> str:
        """See `bsq_jax.training.recipes.Recipe`."""
        return prior_table(report)
