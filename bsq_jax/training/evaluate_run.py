"""Evaluates a trained model by itself: the command ``evaluate``."""

from __future__ import annotations

import hashlib
import json
import pathlib
import sys
from typing import Any

import jax
from ml_collections import ConfigDict

from bsq_jax.config import from_json
from bsq_jax.core.sharding import make_mesh
from bsq_jax.core.target import full_precision
from bsq_jax.data.factory import make_data_config
from bsq_jax.evaluation.report import weight_sets
from bsq_jax.training.export import is_export
from bsq_jax.training.initial_state import place
from bsq_jax.training.recipes import Recipe, make_recipe
from bsq_jax.training.saved_models import check_same_model, load_saved_model
from bsq_jax.training.workdir import check_resumable, open_checkpoints, read_meta

# Settings of the data that an evaluation's numbers depend on.
_DATA_KEYS = (
    *("source", "val_source", "eval_filter", "eval_resize", "eval_crop"),
    *("frames", "stride", "eval_clips"),
)


def evaluate(config: ConfigDict, workdir: pathlib.Path) -> int:
    """Evaluates an export, or the newest complete checkpoint of a workdir; prints the table.

    Args:
      config: a finalised config.
      workdir: the export or workdir.

    Returns:
      Exit status 0.

    Raises:
      UserError: there are no weights, they are damaged, or belong to another model.
    """
    load = _load_export if is_export(workdir) else _load_checkpoint
    recipe, weights, step, saved = load(config, workdir)
    with full_precision(config.model.dtype):
        report = recipe.evaluate(weights, step, pictures=True, suffix=file_suffix(config, saved))
    print_report(recipe, report)
    return 0


def file_suffix(config: ConfigDict, saved: ConfigDict) -> str:
    """What the names of an evaluation's files end in.

    Args:
      config: of the evaluation.
      saved: of the run.

    Returns:
      Nothing if the evaluation measures what the run's own does. On other data or in another
      precision a short hash of these settings, so that the files of the run's evaluation stay.
    """
    own, asked = ([*_measured(settings), settings.model.dtype] for settings in (saved, config))
    if own == asked:
        return ""
    return "_" + hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]


def _measured(config: ConfigDict) -> list[Any]:
    """The values of the settings of the data that an evaluation's numbers depend on."""
    data = make_data_config(config)
    sizes = [data.sizes] if data.eval_crop == "bucket" else []
    return [getattr(data, key) for key in _DATA_KEYS] + sizes


def print_report(recipe: Recipe, report: dict[str, Any]) -> None:
    """Prints an evaluation's table and the files it wrote (process 0 alone)."""
    if jax.process_index():
        return
    print()
    print(recipe.table(report))
    print(f"report: {report['path']}")
    for kind in ("picture", "video"):
        for path in report[f"{kind}s"]:
            print(f"{kind}: {path}")
    sys.stdout.flush()


_Loaded = tuple[Recipe, dict[str, Any], int, ConfigDict]  # with weights, their step and config


def _load_export(config: ConfigDict, folder: pathlib.Path) -> _Loaded:
    saved = load_saved_model(folder, ("raw", "ema"))
    check_same_model(config, saved, folder)
    mesh = make_mesh(**config.mesh.to_dict())
    recipe = make_recipe(_without_discriminator(config), folder, mesh)
    wanted = recipe.task.abstract_state(mesh).params
    weights = {name: place(tree, wanted) for name, tree in saved.weights.items()}
    return recipe, weights, saved.step, saved.config


def _load_checkpoint(config: ConfigDict, workdir: pathlib.Path) -> _Loaded:
    mesh = make_mesh(**config.mesh.to_dict())
    recipe = make_recipe(config, workdir, mesh)
    with open_checkpoints(workdir) as checkpointer:
        check_resumable(config, read_meta(checkpointer, workdir), workdir)
        restored = checkpointer.restore_latest(recipe.task.abstract_state(mesh))
        assert restored is not None
        _, state, meta = restored
    weights = weight_sets(state.params, state.ema)
    saved = from_json(meta["config"], f"the checkpoint in {workdir}")
    return recipe, weights, int(state.step), saved


def _without_discriminator(config: ConfigDict) -> ConfigDict:
    """The same without a discriminator, which an export need not have."""
    config = config.copy_and_resolve_references()
    config.loss.adversarial = 0.0
    return config
