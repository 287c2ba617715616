"""What a workdir holds: config, checkpoints, metrics, pictures, evaluation."""

from __future__ import annotations

import json
import logging
import os
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from bsq_jax.config import from_json, run_identity, to_json
from bsq_jax.config.values import differing_keys
from bsq_jax.core.errors import UserError
from bsq_jax.core.files import write_atomic
from bsq_jax.core.paths import local_path
from bsq_jax.training import checksums
from bsq_jax.training.checkpoint import Checkpointer

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"


def open_checkpoints(workdir: str | os.PathLike[str], keep: int = 2) -> Checkpointer:
    """The checkpoints of a workdir.

    Raises:
      UserError: `workdir` is the address of a bucket, or `keep` is below 1.
    """
    return Checkpointer(local_path(workdir).absolute() / CHECKPOINTS, keep=keep)


def has_checkpoints(workdir: str | os.PathLike[str]) -> bool:
    """Whether there is a checkpoint in a workdir, complete or not."""
    folder = local_path(workdir) / CHECKPOINTS
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


def goes_on(workdir: str | os.PathLike[str]) -> str:
    """What the same command would do after a failure, by the checkpoints that are on the disk."""
    tables = (local_path(workdir) / CHECKPOINTS).glob(f"*/{checksums.NAME}")
    steps = [int(path.parent.name) for path in tables if path.parent.name.isdecimal()]
    if not steps:
        return "no step had been saved, the same command begins anew"
    return f"the same command goes on from step {max(steps)}"


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
    return from_json(saved, str(path))


def write_config(workdir: str | os.PathLike[str], config: ConfigDict) -> None:
    """Saves the resolved config (process 0 alone)."""
    if jax.process_index():
        return
    folder = local_path(workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(to_json(config), indent=2) + "\n"
        write_atomic(folder / CONFIG_FILE, text.encode())
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
        if all(
            key.startswith(("discriminator.", "quantizer.learning", "optimizer.")) for key in differ
        ):
            text += f" with --config.train.init={workdir} to go on from these weights"
        raise UserError(text)
    if changed := differing_keys(to_json(saved), to_json(config)):
        logging.getLogger(__name__).warning(
            "settings that differ from the checkpoint's: %s", "; ".join(changed)
        )


def with_saved_init(
    config: ConfigDict, meta: dict[str, Any], workdir: str | os.PathLike[str]
) -> ConfigDict:
    """A resumed run's config with ``train.init`` as the run began, which its averages depend on.

    Raises:
      UserError: the config asks for other weights to begin from.
    """
    began = from_json(meta["config"], f"the checkpoint in {workdir}").train.init
    if config.train.init not in ("", began):
        raise UserError(
            f"{workdir} holds a run that began from {began or 'random weights'}, not from "
            f"train.init={config.train.init}: leave train.init out, or give another --workdir"
        )
    config = config.copy_and_resolve_references()
    config.train.init = began
    return config.lock()


def read_meta(
    checkpoints: Checkpointer, workdir: str | os.PathLike[str], step: int | None = None
) -> dict[str, Any]:
    """The ``meta`` of the checkpoint of a step, or of the newest complete one, of a workdir.

    Raises:
      UserError: there is none.
    """
    meta = checkpoints.read_meta(step)
    if meta is None:
        raise UserError(f"there is no checkpoint in {workdir}: train first")
    return meta
