"""What a workdir holds: config, checkpoints, metrics, pictures, evaluation."""

from __future__ import annotations

import json
import logging
import os
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from bsq_jax.config import finalize, from_json, run_identity, to_json
from bsq_jax.core import checksums
from bsq_jax.core.checkpoint import Checkpointer
from bsq_jax.core.errors import UserError
from bsq_jax.core.paths import local_path
from bsq_jax.core.settings import differing_keys

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"


def open_checkpoints(workdir: str | os.PathLike[str], keep: int = 2) -> Checkpointer:
    """The checkpoints of a workdir.

    Raises:
      UserError: `workdir` is the address of a bucket, or `keep` is below 1.
    """
    return Checkpointer(local_path(workdir).absolute() / CHECKPOINTS, keep=keep)


def read_config(workdir: str | os.PathLike[str]) -> ConfigDict:
    """The config that a workdir was trained with.

    Raises:
      UserError: there is none, or it is damaged.
    """
    path = local_path(workdir) / CONFIG_FILE
    try:
        saved = json.loads(path.read_bytes())
    except OSError:
        raise UserError(
            f"{workdir} is not the workdir of a run: there is no {CONFIG_FILE} in it"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): restore it from a backup") from None
    if isinstance(saved, dict) and "sha256" in saved:
        raise UserError(
            f"{workdir} is an export, which Tokenizer.load reads: give the workdir it was made from"
        )
    return from_json(saved, str(path))


def write_config(workdir: str | os.PathLike[str], config: ConfigDict) -> None:
    """Saves the resolved config (process 0 alone)."""
    if jax.process_index():
        return
    folder = local_path(workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(to_json(config), indent=2) + "\n"
        checksums.write_atomic(folder / CONFIG_FILE, text.encode())
    except OSError as error:
        raise UserError(f"cannot write to workdir {folder}: {error.strerror}") from error


def check_resumable(config: ConfigDict, meta: dict[str, Any], workdir: pathlib.Path) -> None:
    """Refuses to go on with another model; names all other changes in the log.

    Raises:
      UserError: the checkpoint's model is another one; the message lists the differing keys.
    """
    saved = from_json(meta["config"], f"the checkpoint in {workdir}")
    if differ := differing_keys(run_identity(saved), run_identity(config)):
        text = f"{workdir} holds a run of another model ({'; '.join(differ)}): "
        text += "give the same model config, or another --workdir"
        if all(key.startswith("discriminator.") for key in differ):
            text += f" with --config.train.init={workdir} to go on from these weights"
        raise UserError(text)
    if changed := differing_keys(to_json(saved), to_json(config)):
        logging.getLogger(__name__).warning(
            "settings that differ from the checkpoint's: %s", "; ".join(changed)
        )


def load_weights(
    workdir: str | os.PathLike[str], weights: str
) -> tuple[ConfigDict, dict[str, Any], dict[str, Any]]:
    """Reads one set of parameters from the newest complete checkpoint of a workdir.

    Args:
      workdir: the folder of a run.
      weights: ``raw``, ``ema``, or ``auto`` for the average where one is kept.

    Returns:
      ``(config, params, origin)``; params as nested dict of numpy arrays.

    Raises:
      UserError: there is no complete checkpoint, or it has no such weights.
    """
    read_config(workdir)  # says so where this is no workdir at all
    with open_checkpoints(workdir) as checkpoints:
        meta = checkpoints.read_meta()
        if meta is None:
            raise UserError(f"there is no checkpoint in {workdir}: train first")
        config = finalize(from_json(meta["config"], f"the checkpoint in {workdir}"))
        if weights == "auto":
            weights = "ema" if config.optimizer.ema else "raw"
        field = {"raw": "params", "ema": "ema"}[weights]
        if weights == "ema" and not config.optimizer.ema:
            raise UserError(f"{workdir} keeps no averaged weights: load with weights='raw'")
        step, state, _ = checkpoints.restore_partial([field])
    return config, state[field], {"weights": weights, "step": step}
