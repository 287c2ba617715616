"""Where a training run begins: at step 0, or at its newest checkpoint."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from bsq_jax.config import from_json
from bsq_jax.data.batch_sizes import BatchSizes
from bsq_jax.training.checkpoint import Checkpointer
from bsq_jax.training.recipes import Recipe
from bsq_jax.training.state import TrainState
from bsq_jax.training.workdir import check_resumable


@dataclasses.dataclass(frozen=True)
class RunStart:
    """Where a run begins.

    Attributes:
      state: the state on the mesh.
      step: of the state; 0 for a new run.
      batch_sizes: of the steps up to this one, and of those after it.
      note: what the log says of it, or nothing.
      saved: config of the checkpoint that it is from; None for a new run.
      history: metrics of the steps before, see `Monitor.history`.
    """

    state: TrainState
    step: int
    batch_sizes: BatchSizes
    note: str = ""
    saved: ConfigDict | None = None
    history: tuple[dict[str, Any], ...] = ()

    def with_batch_size(self, config: ConfigDict, multiple: int) -> RunStart:
        """The same for a run that goes on with another batch size, which is noted.

        Args:
          config: a finalised config.
          multiple: what batches of other sizes are a multiple of, see `recipes.mixed_sizes`.
        """
        batch_size = config.train.batch_size
        sizes = self.batch_sizes.going_on(self.step, batch_size, multiple)
        if sizes == self.batch_sizes:
            return self
        note = (
            f"batch size {self.batch_sizes.parts[-1][1]} -> {batch_size}: the data go on after the "
            f"{sizes.examples(self.step):,d} examples seen so far"
        )
        if config.data.sizes:
            note = (
                f"batch size {batch_size}, of each size a multiple of {multiple}: the data of each "
                "go on after the examples seen so far"
            )
        return dataclasses.replace(self, batch_sizes=sizes, note=note)


def begin(config: ConfigDict, recipe: Recipe, multiple: int) -> RunStart:
    """Step 0 of a new run.

    Args:
      config: a finalised config.
      recipe: of the run.
      multiple: see `RunStart.with_batch_size`.

    Raises:
      UserError: the weights of ``train.init`` are missing, damaged or of another model.
    """
    state, note = recipe.new_state()
    sizes = BatchSizes(()).going_on(0, config.train.batch_size, multiple)
    return RunStart(state, int(state.step), sizes, note)


def resume(
    config: ConfigDict,
    recipe: Recipe,
    workdir: pathlib.Path,
    mesh: jax.sharding.Mesh,
    checkpointer: Checkpointer,
    meta: dict[str, Any],
) -> RunStart:
    """The newest complete checkpoint of a run.

    Args:
      config: a finalised config.
      recipe: of the run.
      workdir: of the run.
      mesh: of the run.
      checkpointer: of the workdir.
      meta: of that checkpoint.

    Raises:
      UserError: the checkpoint is of another model.
    """
    check_resumable(config, meta, workdir)
    restored = checkpointer.restore_latest(recipe.task.abstract_state(mesh))
    assert restored is not None
    _, state, meta = restored
    origin = f"the checkpoint in {workdir}"
    saved = from_json(meta["config"], origin)
    # Checkpoints of old versions do not have it: their runs could not change their batch size.
    sizes = meta.get("batch_sizes", [[0, saved.train.batch_size]])
    return RunStart(
        state,
        int(state.step),
        BatchSizes.read(sizes, origin),
        saved=saved,
        history=tuple(meta["history"]),
    )
