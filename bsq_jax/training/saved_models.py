"""Models as they lie in an export or a workdir: their configs, their weights, whether they fit."""

from __future__ import annotations

import copy
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from bsq_jax.config import (
    COMPUTE_KEYS,
    LEARNING_RATE_PER_EXAMPLE,
    finalize,
    from_json,
    model_identity,
)
from bsq_jax.config.own_parts import join_extensions
from bsq_jax.config.values import differing_keys
from bsq_jax.core.errors import UserError
from bsq_jax.core.hub_address import hub_address
from bsq_jax.core.paths import local_path
from bsq_jax.training.export import SETS, is_export, load_export
from bsq_jax.training.hub import TOKENIZER_FOLDER, model_folder
from bsq_jax.training.schedule import Schedule
from bsq_jax.training.workdir import CONFIG_FILE, open_checkpoints, read_config, read_meta

__all__ = [
    "TOKENIZER_FOLDER",
    "SavedModel",
    "check_same_model",
    "exported_tokenizer",
    "kept_steps",
    "load_saved_model",
    "origin_words",
    "read_initial_config",
    "read_saved_config",
    "run_name",
    "will_be_removed",
    "with_tokenizer",
]


class SavedModel(NamedTuple):
    """The weights of a model in host memory, with its config.

    Attributes:
      config: the config they belong to.
      weights: nested dicts of numpy arrays by name: ``raw``, ``ema``, ``discriminator``, as far as
        they exist.
      origin: where they come from, for the log; ``step`` and ``name``, that of the run, where they
        are known.
    """

    config: ConfigDict
    weights: dict[str, Any]
    origin: dict[str, Any]

    @property
    def step(self) -> int:
        """The training step of the weights; 0 where it is not known."""
        step = self.origin.get("step", 0)
        return step if isinstance(step, int) else 0


def read_saved_config(path: str | os.PathLike[str]) -> ConfigDict:
    """The config of an export or a workdir, or of an export on the hub.

    The tokenizer of an exported model of tokens is the export in it, whatever path its maker had.

    Raises:
      UserError: it is neither of the two, or damaged, or an export without that tokenizer.
    """
    folder = model_folder(path)
    if not is_export(folder):
        return read_config(folder)
    config = load_export(folder, ())[0]
    if config.task != "tokenizer":
        config[config.task].tokenizer = str(exported_tokenizer(folder))
    return config


def exported_tokenizer(path: str | os.PathLike[str]) -> pathlib.Path:
    """The tokenizer below the workdir or export of what is trained on its tokens.

    It is an export itself: a workdir in its place, whose code would be called, is refused.

    Raises:
      UserError: it is missing.
    """
    inside = local_path(path) / TOKENIZER_FOLDER
    if not is_export(inside):
        raise UserError(
            f"{inside} is missing or no export: the exported tokenizer of the tokens belongs there"
        )
    return inside


def read_initial_config(path: str | os.PathLike[str]) -> ConfigDict:
    """`read_saved_config` for a new run: a learning rate that followed the batch follows the next.

    Raises:
      UserError: as `read_saved_config`.
    """
    config = read_saved_config(path)
    if config.optimizer.learning_rate == LEARNING_RATE_PER_EXAMPLE * config.train.batch_size:
        config.optimizer.learning_rate = None
    return config


def with_tokenizer(config: ConfigDict, workdir: str | os.PathLike[str]) -> ConfigDict:
    """The config of a model of tokens with the model of its tokenizer, which it need not repeat.

    Args:
      config: of any task.
      workdir: of the run; the tokenizer that lies in it counts more than the config's.

    Raises:
      UserError: there is no tokenizer, or it is damaged.
    """
    if config.task == "tokenizer":
        return config
    if is_export(workdir):
        path = exported_tokenizer(workdir)
    else:
        inside = local_path(workdir) / TOKENIZER_FOLDER
        path = inside if is_export(inside) else config[config.task].tokenizer
    if not path:
        return config  # finalize says so
    saved = read_saved_config(path)
    if saved.task != "tokenizer":
        raise UserError(f"{path} ({config.task}.tokenizer) holds a {saved.task}, not a tokenizer")
    config = copy.deepcopy(config)  # with the types of settings that take a number or a pair
    config.extensions = join_extensions(config.extensions, saved.extensions, _extensions(workdir))
    computed = {key: config.model[key] for key in COMPUTE_KEYS}
    config.model.update(saved.model.copy_and_resolve_references())
    config.model.update(computed)
    config.quantizer.update(saved.quantizer.copy_and_resolve_references())
    return config


def _extensions(workdir: str | os.PathLike[str]) -> str:
    """``config.extensions`` of a run that began before; exports have none."""
    began = (local_path(workdir) / CONFIG_FILE).is_file() and not is_export(workdir)
    return str(read_config(workdir).extensions) if began else ""


def load_saved_model(
    path: str | os.PathLike[str], names: Collection[str] = SETS, *, step: int | None = None
) -> SavedModel:
    """Reads the weights of an export, or of a complete checkpoint of a workdir.

    Args:
      path: the folder, or an address of the hub (`bsq_jax.training.hub`).
      names: which sets to read; those that are not there are left out.
      step: of the checkpoint of a workdir; None: the newest complete one.

    Raises:
      UserError: it is neither of the two, or damaged, or does not hold this step.
    """
    folder = model_folder(path)
    if is_export(folder):
        config, weights, origin = load_export(folder, names)
        if step is not None and origin.get("step") != step:
            raise UserError(
                f"{folder} is an export of step {origin.get('step', 'unknown')}, not of {step}"
            )
        return SavedModel(finalize(config), weights, origin)
    read_config(folder)  # says so where this is no workdir at all
    with open_checkpoints(folder) as checkpoints:
        if step is not None and step not in (kept := checkpoints.kept_steps()):
            steps = ", ".join(map(str, kept[::-1])) or "none"
            raise UserError(f"{folder} does not keep step {step} (it keeps: {steps})")
        meta = read_meta(checkpoints, folder, step)
        config = finalize(from_json(meta["config"], f"the checkpoint in {folder}"))
        fields = {"raw": "params"}
        if config.optimizer.ema:
            fields["ema"] = "ema"
        if config.task == "tokenizer" and config.loss.adversarial:
            fields["discriminator"] = "adversary"
        fields = {name: field for name, field in fields.items() if name in names}
        if not fields:
            found = checkpoints.latest_step() if step is None else step
            return SavedModel(config, {}, {"name": run_name(folder), "step": found})
        found, state, _ = checkpoints.restore_partial(list(fields.values()), step)
    weights = {name: state[field] for name, field in fields.items()}
    if "discriminator" in weights:
        weights["discriminator"] = weights["discriminator"]["params"]
    return SavedModel(config, weights, {"name": run_name(folder), "step": found})


def run_name(path: str | os.PathLike[str]) -> str:
    """What a run is called: the name of its workdir, or of its repository on the hub."""
    if address := hub_address(path):
        return address.name
    folder = local_path(path)
    return folder.name or folder.absolute().name or str(folder)


def origin_words(origin: Mapping[str, Any], fingerprint: str) -> str:
    """Which model it is, for a message: ``step 300 of quickstart, 64b5d2c0``."""
    known = [f"step {origin['step']}"] if "step" in origin else []
    known += [f"of {origin['name']}"] if "name" in origin else []
    return ", ".join(filter(None, (" ".join(known), fingerprint)))


def kept_steps(path: str | os.PathLike[str]) -> list[int]:
    """Steps of which a workdir keeps a checkpoint, increasing; none of an export."""
    folder = model_folder(path)
    if is_export(folder):
        return []
    with open_checkpoints(folder) as checkpoints:
        return checkpoints.kept_steps()[::-1]


def will_be_removed(path: str | os.PathLike[str], step: int) -> str:
    """Why the checkpoint of a step will not stay in a workdir, for a message; empty if it stays.

    A run keeps its newest checkpoints, ``train.keep`` of them, and saves one more for each time
    that it is interrupted, of which one is allowed for.

    Raises:
      UserError: it is neither a workdir nor an export.
    """
    config, kept = read_saved_config(path), kept_steps(path)
    train = config.train
    if not kept or kept[-1] >= train.steps:  # an export, or a run that has ended
        return ""
    later = Schedule.of(config).left(kept[-1] + 1).saves + sum(other > step for other in kept)
    if later + 1 < train.keep:
        return ""
    return (
        f"this run goes on to step {train.steps} and keeps its last "
        f"{train.keep} checkpoint{'s' * (train.keep > 1)}"
    )


def check_same_model(
    config: ConfigDict,
    initial: SavedModel,
    path: str | os.PathLike[str],
    *,
    flag: str = "--workdir",
    adaptable: Collection[str] = (),
) -> None:
    """Refuses weights of another model than the config's.

    Args:
      config: of the model that wants the weights.
      initial: the weights.
      path: where they come from, for the message.
      flag: what asked for them, for the message.
      adaptable: keys of ``model`` that may differ, because `adapt` follows.

    Raises:
      UserError: the message lists the differing keys.
    """
    identities = model_identity(initial.config), model_identity(config)
    for identity in identities:
        for key in adaptable:
            del identity["model"][key]
    if differ := differing_keys(*identities):
        text = f"{path} ({flag}) holds another model ({'; '.join(differ)}): "
        text += "give the same model config"
        if adaptable:
            keys = [f"model.{key}" for key in adaptable]
            text += f" (only {', '.join(keys[:-1])} and {keys[-1]} may differ)"
        raise UserError(text)
