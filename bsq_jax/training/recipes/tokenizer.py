"""The recipe of a tokenizer."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import describe_devices
from bsq_jax.data.batch_sizes import BatchSizes
from bsq_jax.data.batches import Batches
from bsq_jax.data.factory import make_data_config
from bsq_jax.data.mixed_sizes import TrainSizes, open_sizes
from bsq_jax.data.records import SPLITS
from bsq_jax.data.settings import DataConfig
from bsq_jax.data.sources import open_source
from bsq_jax.data.train_pipeline import batch_frames, train_batches
from bsq_jax.evaluation.factory import make_network_settings, make_wanted
from bsq_jax.evaluation.own import make_own_metrics
from bsq_jax.evaluation.report import Wanted, evaluate
from bsq_jax.evaluation.tokenizer import TokenizerEvaluator
from bsq_jax.evaluation.tokenizer_table import tokenizer_table
from bsq_jax.models.attention.choice import Choice
from bsq_jax.models.tokenizer import TokenizerModel
from bsq_jax.training.adapt_weights import ADAPTABLE, adapt
from bsq_jax.training.initial_state import start_from
from bsq_jax.training.recipes.mixed_sizes import check_same_sizes, run_lines, step_multiple
from bsq_jax.training.recipes.same_data import check_same_data, check_same_model_read, data_line
from bsq_jax.training.saved_models import check_same_model, load_saved_model
from bsq_jax.training.starter import starter_reconstruction
from bsq_jax.training.state import TrainState
from bsq_jax.training.tasks.tokenizer import make_tokenizer_task


class TokenizerRecipe:
    """See `bsq_jax.training.recipes.Recipe`."""

    shown: tuple[str, ...] = (
        *("loss", "psnr", "perceptual", "logits_real", "logits_fake"),
        *("token_entropy", "codebook_entropy", "bit_entropy", "learning_rate"),
    )

    def __init__(self, config: ConfigDict, workdir: pathlib.Path, mesh: jax.sharding.Mesh):
        """Puts a run together.

        Args:
          config: a finalised config.
          workdir: of the run.
          mesh: of the run.
        """
        self._config, self._workdir, self._mesh = config, workdir, mesh
        self.task = make_tokenizer_task(config)
        self._data_lines: list[str] = []
        own = [each.name for each in self.task.losses[len(config.loss.terms) * -1 :]]
        self.shown += tuple(own if config.loss.terms else ())

    @functools.cached_property
    def _data(self) -> DataConfig:
        return make_data_config(self._config)

    @functools.cached_property
    def _sizes(self) -> TrainSizes | None:
        """The training records by size, where there are several."""
        return open_sizes(self._data) if self._data.sizes else None

    @functools.cached_property
    def _lengths(self) -> tuple[int, ...]:
        return batch_frames(self._data)

    @property
    def unit(self) -> str:
        """See `bsq_jax.training.recipes.Recipe`."""
        return "images" if self._lengths == (1,) else "clips"

    def new_state(self) -> tuple[TrainState, str]:
        """See `bsq_jax.training.recipes.Recipe`."""
        path = self._config.train.init
        if not path:
            return self.task.init_state(self._mesh), ""
        initial = load_saved_model(path)
        check_same_model_read(initial, path)
        check_same_model(self._config, initial, path, flag="train.init", adaptable=ADAPTABLE)
        weights, adapted = adapt(initial, self._config)
        state, abstract = self.task.init_state(self._mesh), self.task.abstract_state(self._mesh)
        state, origin = start_from(state, abstract, weights, self.task.codebooks)
        return state, f"from {path}: {'; '.join([origin, *adapted])}"

    def batches(
        self, start: int, index: int, count: int, earlier: BatchSizes | None = None
    ) -> Batches:
        """See `bsq_jax.training.recipes.Recipe`."""
        return train_batches(
            self._data,
            global_batch=self._config.train.batch_size,
            shard_index=index,
            shard_count=count,
            start_step=start,
            earlier=earlier,
            sizes=self._sizes,
            multiple=step_multiple(self._config, self._mesh),
        )

    def greeting(self, state: TrainState, first: int) -> list[str]:
        """See `bsq_jax.training.recipes.Recipe`."""
        config = self._config
        count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        adversary = ""
        if state.adversary is not None:
            size = sum(leaf.size for leaf in jax.tree.leaves(state.adversary.params))
            adversary = f" and a discriminator of {size / 1e6:.1f}M"
        begin = f"resuming at step {first}" if first else "starting"
        return [
            f"{config.name}: {count / 1e6:.1f}M parameters{adversary}, "
            f"{config.model.bits} bits a token{_stages(config)}, "
            f"{config.model.dtype} on {describe_devices(self._mesh)}; {begin}",
            _attention(self.task.model, self._lengths),
            *self._data_lines,
            *run_lines(self._config, self._mesh, self._data, self._sizes, self._lengths),
        ]

    @functools.cached_property
    def _evaluator(self) -> TokenizerEvaluator:
        return TokenizerEvaluator(
            self.task,
            self._data,
            self._mesh,
            batch_size=self._config.eval.batch_size,
            networks=make_network_settings(self._config),
            own=make_own_metrics(self._config.eval.metrics),
            beside=starter_reconstruction() if self._config.eval.starter else None,
        )

    @property
    def evaluated_examples(self) -> float:
        """See `bsq_jax.training.recipes.Recipe`."""
        return self._evaluator.loop.examples

    def check(self) -> None:
        """See `bsq_jax.training.recipes.Recipe`."""
        config = self._config
        sources = [open_source(self._data, split) for split in SPLITS]
        check_same_data(sources)
        self._data_lines = [data_line(*sources)]
        judges_clips = config.loss.adversarial and config.discriminator.name == "stylegan3d"
        if judges_clips and self._lengths == (1,):
            raise UserError(
                "discriminator stylegan3d is for clips, and the data are single frames: "
                "set discriminator.name=stylegan, or loss.adversarial=0"
            )
        if self._sizes is not None:
            check_same_sizes(self._sizes)
        _ = self._evaluator

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
        return tokenizer_table(report)


def _stages(config: ConfigDict) -> str:
    """How the bits of a residual token are made up, in words."""
    stages = config.quantizer.stages
    return "" if stages == 1 else f" ({stages} stages of {config.model.bits // stages})"


def _attention(model: TokenizerModel, lengths: Sequence[int]) -> str:
    """Which implementation of attention computes clips of which lengths, in a line."""
    used: dict[Choice, list[str]] = {}
    for frames in lengths:
        # An image model sees the frames of a clip one by one.
        choice = model.attention_used(1 if model.shape.frames == 1 else frames, padded=True)
        used.setdefault(choice, []).append(str(frames))
    parts = []
    for choice, clips in used.items():
        whom = f" for clips of {', '.join(clips)} frames" if len(used) > 1 else ""
        why = f" ({choice.why})" if choice.why else ""
        parts.append(choice.name + whom.replace("clips of 1 frames", "single frames") + why)
    return f"attention ({model.attention}): {'; '.join(parts)}"
