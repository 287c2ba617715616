"""What the recipes of models of tokens share: the tokenizer beside them, and where tokens are from.

The workdir of such a run also holds the tokenizer whose tokens the model knows.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
from ml_collections import ConfigDict

from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import batch_shards, gather_strings
from bsq_jax.data.batch_sizes import BatchSizes
from bsq_jax.data.batches import Batches
from bsq_jax.data.eval_pipeline import eval_batches, eval_examples
from bsq_jax.data.factory import make_data_config
from bsq_jax.data.mixed_sizes import TrainSizes, open_sizes
from bsq_jax.data.records import SPLITS, classes_of
from bsq_jax.data.sources import open_source, same_place
from bsq_jax.data.tokens import TOKENS_SCHEME, TokenSet, read_description, token_batches
from bsq_jax.data.train_pipeline import batch_frames, train_batches
from bsq_jax.evaluation.loop import Validation
from bsq_jax.models.factory import make_tokenizer
from bsq_jax.models.frozen_tokenizer import FrozenTokenizer
from bsq_jax.quantizers.layout import TokenLayout
from bsq_jax.training.export import identity, is_export, save_export
from bsq_jax.training.initial_state import start_from
from bsq_jax.training.recipes.mixed_sizes import check_same_sizes, run_lines, step_multiple
from bsq_jax.training.recipes.same_data import check_same_data, check_same_model_read, data_line
from bsq_jax.training.saved_models import (
    TOKENIZER_FOLDER,
    SavedModel,
    check_same_model,
    load_saved_model,
    origin_words,
)
from bsq_jax.training.state import TrainState
from bsq_jax.training.workdir import has_checkpoints

Task = TypeVar("Task")


class TokensRecipe(Generic[Task]):
    """What does not depend on the model; see `bsq_jax.training.recipes.Recipe`.

    Attributes:
      task: what one step is.
    """

    task: Task

    def __init__(
        self,
        config: ConfigDict,
        workdir: pathlib.Path,
        mesh: jax.sharding.Mesh,
        make_task: Callable[[FrozenTokenizer], Task],
    ):
        """Puts a run together.

        Args:
          config: a finalised config whose model is that of the tokenizer.
          workdir: of the run.
          mesh: of the run.
          make_task: makes the task from its tokenizer.

        Raises:
          UserError: the tokenizer is missing, damaged or another one.
        """
        self._config, self._workdir, self._mesh = config, workdir, mesh
        self._data = make_data_config(config)
        name, tokenizer = self._load_tokenizer()
        self._origin = tokenizer.origin
        self._tokenizer_source = str(tokenizer.config.data.source)
        self._frozen = FrozenTokenizer(make_tokenizer(config), tokenizer.weights[name])
        self.task = make_task(self._frozen)
        self._tokens = self._open_tokens()
        self._data_lines: list[str] = []

    @property
    def _layout(self) -> TokenLayout:
        """Of the tokenizer's tokens."""
        return self._frozen.model.quantizer.layout

    @property
    def _flag(self) -> str:
        """The key that names the tokenizer."""
        return f"{self._config.task}.tokenizer"

    def _load_tokenizer(self) -> tuple[str, SavedModel]:
        """The tokenizer in the workdir, where that is what the model was trained with."""
        inside = self._workdir / TOKENIZER_FOLDER
        # Process 0 decides for all: it alone writes there.
        mine = ["inside"] if is_export(inside) and jax.process_index() == 0 else []
        given = self._config[self._config.task].tokenizer
        path = inside if gather_strings(mine) else given
        if path != inside and has_checkpoints(self._workdir):
            raise UserError(
                f"{inside} is missing: without the tokenizer that this model was trained on it "
                "cannot go on, put it back or give another --workdir"
            )
        initial = load_saved_model(path, ("raw", "ema"))
        check_same_model_read(initial, path)
        check_same_model(_tokenizer_of(self._config), initial, path, flag=self._flag)
        return ("ema" if "ema" in initial.weights else "raw"), initial

    def _open_tokens(self) -> TokenSet | None:
        """The token set that ``data.source`` names, if it names one."""
        if not self._data.source.startswith(TOKENS_SCHEME):
            return None
        if self._data.val_source:
            raise UserError(
                f"data.val_source={self._data.val_source} is not read with "
                f"data.source={self._data.source}: a token set has its own validation clips, set "
                "data.val_source= to nothing"
            )
        tokens = read_description(self._data.source.removeprefix(TOKENS_SCHEME))
        mine = identity(_tokenizer_of(self._config), self._frozen.params)
        if tokens.model != mine.hex():
            theirs = origin_words(tokens.tokenizer, tokens.model[:16])
            raise UserError(
                f"{tokens.folder} holds tokens of another tokenizer ({theirs}) than {self._flag} "
                f"({origin_words(self._origin, mine.hex()[:16])}): tokenize with that one, or give "
                f"as {self._flag} an export of the one that made the tokens"
            )
        shape = self._frozen.model.shape
        if (tokens.grid, tokens.bits) != (tuple(shape.grid), shape.bits):
            raise UserError(
                f"{tokens.folder} says that it holds tokens of {tokens.bits} bits in "
                f"{tokens.grid[0]}x{tokens.grid[1]} (rows x columns), the tokenizer's are of "
                f"{shape.bits} in {shape.grid[0]}x{shape.grid[1]}: tokenize again"
            )
        return tokens

    @functools.cached_property
    def _classes(self) -> tuple[str, ...]:
        """Names of the classes of the training data."""
        if self._tokens:
            return self._tokens.classes
        return classes_of(open_source(self._data, "train"))

    @property
    def unit(self) -> str:
        """See `bsq_jax.training.recipes.Recipe`."""
        frames = self._tokens.frames if self._tokens else max(batch_frames(self._data))
        return "images" if frames == 1 else "clips"

    @functools.cached_property
    def _sizes(self) -> TrainSizes | None:
        """The training records by size, where there are several."""
        return open_sizes(self._data) if self._data.sizes else None

    def _open_splits(self) -> None:
        if not self._tokens:
            sources = [open_source(self._data, split) for split in SPLITS]
            check_same_data(sources)
            self._data_lines = [data_line(*sources), *self._other_data()]
        if self._sizes is not None:
            check_same_sizes(self._sizes)

    def _other_data(self) -> list[str]:
        """A line if the tokenizer's data were others than those of this model."""
        learned_from = self._tokenizer_source
        if not learned_from or same_place(learned_from) == same_place(self._data.source):
            return []
        return [
            f"the tokenizer's data.source is {learned_from}, that of this model "
            f"{self._data.source}: set data.source if they should be the same"
        ]

    def _run_lines(self) -> list[str]:
        """What the log says of the data, of sizes and of programs."""
        lengths = (self._tokens.frames,) if self._tokens else batch_frames(self._data)
        sizes = run_lines(self._config, self._mesh, self._data, self._sizes, lengths)
        return [*self._data_lines, *sizes]

    def batches(
        self, start: int, index: int, count: int, earlier: BatchSizes | None = None
    ) -> Batches:
        """See `bsq_jax.training.recipes.Recipe`."""
        train: Callable[..., Batches] = functools.partial(
            train_batches, sizes=self._sizes, multiple=step_multiple(self._config, self._mesh)
        )
        if self._tokens:
            train = functools.partial(
                token_batches, self._tokens, "train", names_code=self._layout.names_code
            )
        return train(
            self._data,
            global_batch=self._config.train.batch_size,
            shard_index=index,
            shard_count=count,
            start_step=start,
            earlier=earlier,
        )

    def new_state(self) -> tuple[TrainState, str]:
        """See `bsq_jax.training.recipes.Recipe`; also puts the tokenizer into the workdir."""
        name, tokenizer = self._load_tokenizer()
        if jax.process_index() == 0:
            weights = {name: tokenizer.weights[name]}
            save_export(
                self._workdir / TOKENIZER_FOLDER, tokenizer.config, weights, origin=tokenizer.origin
            )
        task: Any = self.task
        state, path = task.init_state(self._mesh), self._config.train.init
        if not path:
            return state, ""
        initial = load_saved_model(path)
        check_same_model_read(initial, path)
        check_same_model(self._config, initial, path, flag="train.init")
        state, origin = start_from(state, task.abstract_state(self._mesh), initial.weights)
        return state, f"from {path}: {origin}"

    @functools.cached_property
    def _validation(self) -> Validation:
        tokens, data = self._tokens, self._data
        if tokens:
            names_code = self._layout.names_code
            make = functools.partial(token_batches, tokens, "val", data, names_code=names_code)
            return Validation(make, tokens.frames, tokens.counts["val"])
        examples = eval_examples(data)
        multiple = batch_shards(self._mesh)
        make = functools.partial(eval_batches, data, examples=examples, multiple=multiple)
        return Validation(make, examples.frames, len(examples.records))


def _tokenizer_of(config: ConfigDict) -> ConfigDict:
    """The config of a model of tokens as that of its tokenizer."""
    config = config.copy_and_resolve_references()
    config.task = "tokenizer"
    return config
