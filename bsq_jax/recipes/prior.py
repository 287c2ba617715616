"""The recipe of a prior: its workdir also holds the tokenizer whose tokens it knows."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import describe_devices, gather_strings
from bsq_jax.data.batches import Batches
from bsq_jax.data.factory import make_data_config
from bsq_jax.data.pipeline import (
    batch_frames,
    eval_batches,
    eval_examples,
    open_source,
    train_batches,
)
from bsq_jax.data.records import SPLITS
from bsq_jax.data.tokens import SCHEME, TokenSet, read_description, token_batches
from bsq_jax.evaluate_prior import PriorEvaluator, evaluate_prior, prior_table
from bsq_jax.export import identity, is_export, save_export
from bsq_jax.initial import (
    TOKENIZER_FOLDER,
    Initial,
    check_same_model,
    load_initial,
    start_from,
)
from bsq_jax.models.factory import make_prior, make_tokenizer
from bsq_jax.optim import make_optimizer, make_schedule
from bsq_jax.tasks.prior import PriorTask
from bsq_jax.tasks.state import TrainState
from bsq_jax.workdir import has_checkpoints


class PriorRecipe:
    """See `bsq_jax.recipes.Recipe`."""

    shown: tuple[str, ...] = ("loss", "saved")

    def __init__(self, config: ConfigDict, workdir: pathlib.Path, mesh: jax.sharding.Mesh):
        """Puts a run together.

        Args:
          config: a finalised config whose model is that of the tokenizer.
          workdir: of the run.
          mesh: of the run.

        Raises:
          UserError: the tokenizer is missing, damaged or another one.
        """
        self._config, self._workdir, self._mesh = config, workdir, mesh
        self._data = make_data_config(config)
        name, tokenizer = self._load_tokenizer()
        model = make_tokenizer(config)
        self.task = PriorTask(
            model=make_prior(config),
            tokenizer=model,
            tokenizer_params=tokenizer.weights[name],
            optimizer=make_optimizer(config),
            schedule=make_schedule(config),
            ema_decay=config.optimizer.ema,
            accumulate=config.train.accumulate,
            seed=config.seed,
        )
        self._tokens = self._open_tokens()

    def _load_tokenizer(self) -> tuple[str, Initial]:
        """The tokenizer in the workdir, where that is what the prior was trained with."""
        inside = self._workdir / TOKENIZER_FOLDER
        # Process 0 decides for all: it alone writes there.
        mine = ["inside"] if is_export(inside) and jax.process_index() == 0 else []
        path = inside if gather_strings(mine) else pathlib.Path(self._config.prior.tokenizer)
        if path != inside and has_checkpoints(self._workdir):
            raise UserError(
                f"{inside} is missing: without the tokenizer that this prior was trained on it "
                "cannot go on, put it back or give another --workdir"
            )
        initial = load_initial(path, ("raw", "ema"))
        check_same_model(_tokenizer_of(self._config), initial, path, flag="prior.tokenizer")
        return ("ema" if "ema" in initial.weights else "raw"), initial

    def _open_tokens(self) -> TokenSet | None:
        """The token set that ``data.source`` names, if it names one."""
        if not self._data.source.startswith(SCHEME):
            return None
        tokens = read_description(self._data.source.removeprefix(SCHEME))
        mine = identity(_tokenizer_of(self._config), self.task.tokenizer_params)
        if tokens.model != mine.hex():
            raise UserError(
                f"{tokens.folder} holds tokens of another tokenizer ({tokens.model[:16]}) than "
                f"prior.tokenizer ({mine.hex()[:16]}): tokenize with that one"
            )
        return tokens

    @property
    def unit(self) -> str:
        """See `bsq_jax.recipes.Recipe`."""
        frames = self._tokens.frames if self._tokens else max(batch_frames(self._data))
        return "images" if frames == 1 else "clips"

    def check(self) -> None:
        """See `bsq_jax.recipes.Recipe`."""
        if not self._tokens:
            for split in SPLITS:
                open_source(self._data, split)
        _ = self._evaluator

    def batches(self, start: int, index: int, count: int) -> Batches:
        """See `bsq_jax.recipes.Recipe`."""
        shard = {"shard_index": index, "shard_count": count, "start_step": start}
        size = self._config.train.batch_size
        if self._tokens:
            return token_batches(self._tokens, "train", self._data, global_batch=size, **shard)
        return train_batches(self._data, global_batch=size, **shard)

    def new_state(self) -> tuple[TrainState, str]:
        """See `bsq_jax.recipes.Recipe`; also puts the tokenizer into the workdir."""
        name, tokenizer = self._load_tokenizer()
        if jax.process_index() == 0:
            weights = {name: tokenizer.weights[name]}
            save_export(
                self._workdir / TOKENIZER_FOLDER, tokenizer.config, weights, origin=tokenizer.origin
            )
        state, path = self.task.init_state(self._mesh), self._config.train.init
        if not path:
            return state, ""
        initial = load_initial(path)
        check_same_model(self._config, initial, path, flag="train.init")
        state, origin = start_from(state, self.task.abstract_state(self._mesh), initial.weights)
        return state, f"from {path}: {origin}"

    def greeting(self, state: TrainState, first: int) -> list[str]:
        """See `bsq_jax.recipes.Recipe`."""
        config, shape = self._config, self.task.model.shape
        count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        steps = int(shape.steps.max()) + 1
        begin = f"resuming at step {first}" if first else "starting"
        return [
            f"{config.name}: a prior of {count / 1e6:.1f}M parameters over tiles of {shape.rows}x"
            f"{shape.columns} tokens of {shape.bits} bits, {steps} steps a frame, on "
            f"{describe_devices(self._mesh)}; {begin}"
        ]

    @functools.cached_property
    def _evaluator(self) -> PriorEvaluator:
        tokens, data, size = self._tokens, self._data, self._config.eval.batch_size
        if tokens:
            frames = tokens.frames
            make = functools.partial(token_batches, tokens, "val", data)
        else:
            examples = eval_examples(data)
            frames = examples.frames
            make = functools.partial(eval_batches, data, examples=examples)
        return PriorEvaluator(
            self.task, make, self._mesh, batch_size=size, frames=frames, pixels=data.crop
        )

    def evaluate(
        self, weights: Mapping[str, Any], step: int, *, pictures: bool, suffix: str = ""
    ) -> dict[str, Any]:
        """See `bsq_jax.recipes.Recipe`; there is nothing to draw."""
        del pictures
        return evaluate_prior(
            self._evaluator,
            weights,
            self._workdir,
            name=self._config.name,
            step=step,
            data=self._data,
            suffix=suffix,
        )

    def table(self, report: Mapping[str, Any]) -> str:
        """See `bsq_jax.recipes.Recipe`."""
        return prior_table(report)


def _tokenizer_of(config: ConfigDict) -> ConfigDict:
    """A prior's config as that of its tokenizer."""
    config = config.copy_and_resolve_references()
    config.task = "tokenizer"
    return config
