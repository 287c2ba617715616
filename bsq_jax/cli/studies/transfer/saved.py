"""The saved model that the study of transfer measures, and its evaluation on a set of pictures."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from bsq_jax.cli.studies.settings import set_values
from bsq_jax.config import finalize
from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import make_mesh
from bsq_jax.core.target import full_precision
from bsq_jax.data.tokens import TOKENS_SCHEME
from bsq_jax.training.export import identity, is_export
from bsq_jax.training.hub import model_folder
from bsq_jax.training.initial_state import place
from bsq_jax.training.recipes import make_recipe
from bsq_jax.training.saved_models import (
    TOKENIZER_FOLDER,
    load_saved_model,
    read_saved_config,
    with_tokenizer,
)
from bsq_jax.training.starter import unnamed_model


class Measured(NamedTuple):
    """A tokenizer or a prior.

    Attributes:
      config: its own, to be changed for a set.
      weights: the averaged ones where there are some; numpy arrays.
      name: ``ema`` or ``raw``, which of them these are.
      step: of the training; 0 where it is not known.
      identity: tells the model from all others.
    """

    config: ConfigDict
    weights: Any
    name: str
    step: int
    identity: str


def load_parts(model: str | None, overrides: Sequence[str]) -> dict[str, Measured]:
    """What is measured: ``tokenizer`` and, of a model with a prior, ``prior``.

    Args:
      model: workdir, export or ``hf://`` address of either; None: the starter model.
      overrides: settings of both, each ``KEY=VALUE``.

    Raises:
      UserError: there is no such model, it is of another kind, or an override is wrong.
    """
    folder = unnamed_model() if model is None else model_folder(model)
    config = read_saved_config(folder)
    if config.task == "tokenizer":
        return {"tokenizer": _load(folder, folder, overrides)}
    if config.task != "prior":
        raise UserError(f"{folder} holds a {config.task}: name a tokenizer, or a prior")
    inside = folder / TOKENIZER_FOLDER
    tokenizer = inside if is_export(inside) else model_folder(config.prior.tokenizer)
    return {
        "tokenizer": _load(tokenizer, tokenizer, overrides),
        "prior": _load(folder, tokenizer, overrides),
    }


def _load(folder: pathlib.Path, tokenizer: pathlib.Path, overrides: Sequence[str]) -> Measured:
    for name in ("ema", "raw"):
        saved = load_saved_model(folder, (name,))
        if name in saved.weights:
            break
    weights = saved.weights[name]
    config = with_tokenizer(read_saved_config(folder), folder).copy_and_resolve_references()
    if config.task == "prior":
        config.prior.tokenizer = str(tokenizer)
        if config.data.source.startswith(TOKENS_SCHEME):  # which are no pictures
            config.data.update(source="photos", val_source="")
    config.model.dtype = "float32"  # as `evaluate`
    config.loss.adversarial = 0.0  # exports need not have a discriminator
    config.eval.update(frechet=False, neighbours=0)
    set_values(config, overrides)
    return Measured(
        finalize(config), weights, name, saved.step, identity(saved.config, weights).hex()
    )


def set_config(part: Measured, source: str, inception: str) -> ConfigDict:
    """The config of an evaluation on a set.

    Args:
      part: what is measured.
      source: of the pictures; empty: the model's own.
      inception: file of weights; empty: none.

    Raises:
      UserError: a setting is wrong.
    """
    config = part.config.copy_and_resolve_references()
    if source:
        config.data.val_source = source
    config.eval.inception = inception
    return finalize(config)


def evaluate(part: Measured, config: ConfigDict, folder: pathlib.Path) -> dict[str, Any]:
    """Measures a set as ``bsq-jax evaluate`` does, and writes the report and pictures.

    Args:
      part: what is measured.
      config: from `set_config`.
      folder: for the report and the pictures.

    Returns:
      ``results``, the metrics, and ``measured``, what they are of.

    Raises:
      UserError: the set cannot be read.
    """
    mesh = make_mesh(**config.mesh.to_dict())
    recipe = make_recipe(config, folder, mesh)
    weights = {part.name: place(part.weights, recipe.task.abstract_state(mesh).params)}
    with full_precision(config.model.dtype):
        report = recipe.evaluate(weights, part.step, pictures=True)
    return {"results": report["results"][part.name], "measured": report["measured"]}
