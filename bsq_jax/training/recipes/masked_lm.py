"""The recipe of a masked language model."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import describe_devices
from bsq_jax.data.tokens import measured
from bsq_jax.evaluation.factory import make_network_settings, make_wanted
from bsq_jax.evaluation.masked_lm import MaskedLmEvaluator, Samples, masked_lm_table
from bsq_jax.evaluation.report import Wanted, evaluate
from bsq_jax.models.attention.causality import Causality
from bsq_jax.models.attention.choice import choose_implementation
from bsq_jax.models.masked_lm.sampler import Sampler, Sampling
from bsq_jax.training.recipes.on_tokens import TokensRecipe
from bsq_jax.training.state import TrainState
from bsq_jax.training.tasks.masked_lm import MaskedLmTask, make_masked_lm_task


class MaskedLmRecipe(TokensRecipe[MaskedLmTask]):
    """See `bsq_jax.training.recipes.Recipe`."""

    shown: tuple[str, ...] = ("loss", "cross_entropy", "accuracy", "learning_rate")

    def __init__(self, config: ConfigDict, workdir: pathlib.Path, mesh: jax.sharding.Mesh):
        """Puts a run together, see `TokensRecipe`."""
        make_task = functools.partial(make_masked_lm_task, config)
        super().__init__(config, workdir, mesh, make_task)

    def check(self) -> None:
        """See `bsq_jax.training.recipes.Recipe`."""
        self._open_splits()
        wanted, found = self._config.masked_lm.classes, len(self._classes)
        if wanted and wanted != found:
            raise UserError(
                f"{self._data.source} has {found or 'no'} classes, but masked_lm.classes is "
                f"{wanted}: set it to {found}"
            )
        frames = self._tokens.frames if self._tokens else self._validation.frames
        if frames > self._config.masked_lm.frames:
            raise UserError(
                f"{self._data.source} has clips of {frames} frames, but masked_lm.frames is "
                f"{self._config.masked_lm.frames}: give both the same"
            )
        _ = self._evaluator

    def greeting(self, state: TrainState, first: int) -> list[str]:
        """See `bsq_jax.training.recipes.Recipe`."""
        config, shape = self._config, self.task.model.shape
        count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        begin = f"resuming at step {first}" if first else "starting"
        told = f"{shape.classes} classes" if shape.classes else "no classes"
        return [
            f"{config.name}: a masked language model of {count / 1e6:.1f}M parameters over "
            f"{shape.rows}x{shape.columns} tokens of {shape.bits} bits in {shape.groups} group(s), "
            f"{told}, on {describe_devices(self._mesh)}; {begin}",
            self._attention(),
            *self._run_lines(),
        ]

    def _attention(self) -> str:
        """Which implementation of attention computes the clips, and why, in a line."""
        shape, compute = self.task.model.shape, self.task.model.compute
        name, why = choose_implementation(
            compute.attention,
            Causality(),
            shape.frames,
            shape.tokens,
            compute.dtype,
            channels=shape.width // shape.heads,
        )
        return f"attention ({compute.attention}): {name}{f' ({why})' if why else ''}"

    @functools.cached_property
    def _evaluator(self) -> MaskedLmEvaluator:
        config = self._config
        sampling = Sampling(**config.sampling.to_dict(), unit=config.masked_lm.mask_unit)
        samples = Samples(
            Sampler(self.task.model, self.task.tokenizer, sampling, self._mesh),
            number=config.eval.samples,
            classes=self._classes if config.masked_lm.classes else (),
            settings=config.sampling.to_dict(),
        )
        return MaskedLmEvaluator(
            self.task,
            samples,
            self._validation,
            self._mesh,
            batch_size=config.eval.batch_size,
            size=self._data.crop,
            networks=make_network_settings(config),
            measured=measured(self._data, self._tokens),
        )

    @property
    def evaluated_examples(self) -> float:
        """See `bsq_jax.training.recipes.Recipe`."""
        # A sample takes a forward pass in each step of sampling, a third of a training step.
        samples = self._config.eval.samples * self._config.sampling.steps / 3
        return self._validation.examples + samples

    def evaluate(
        self, weights: Mapping[str, Any], step: int, *, pictures: bool, suffix: str = ""
    ) -> dict[str, Any]:
        """See `bsq_jax.training.recipes.Recipe`."""
        return evaluate(
            self._evaluator,
            weights,
            self._workdir,
            name=self._workdir.resolve().name,
            step=step,
            wanted=make_wanted(self._config) if pictures else Wanted(),
            suffix=suffix,
        )

    def table(self, report: Mapping[str, Any]) -> str:
        """See `bsq_jax.training.recipes.Recipe`."""
        return masked_lm_table(report)
