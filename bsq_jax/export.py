"""Exports: a folder with ``config.json`` and ``model.safetensors`` that needs nothing else."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from bsq_jax.config import from_json, to_json
from bsq_jax.core import checksums
from bsq_jax.core.errors import UserError
from bsq_jax.core.paths import local_path

FORMAT = "bsq_jax tokenizer"
VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def is_export(path: str | os.PathLike[str]) -> bool:
    """Whether a folder looks like an export (as opposed to a workdir)."""
    folder = local_path(path)
    if (folder / WEIGHTS_FILE).is_file():
        return True
    try:  # one whose weights were lost still says what it was
        return json.loads((folder / CONFIG_FILE).read_bytes())["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def save_export(
    path: str | os.PathLike[str],
    config: ConfigDict,
    params: Mapping[str, Any],
    *,
    origin: Mapping[str, Any],
) -> None:
    """Writes an export, weights first, each file atomically.

    Args:
      path: the folder; made if need be. An older export in it is replaced.
      config: the finalised config.
      params: nested dict of float32 arrays.
      origin: where the weights come from (step, raw or ema), for people to read.

    Raises:
      UserError: the folder cannot be written.
    """
    folder = local_path(path)
    flat = {"/".join(key): np.asarray(leaf) for key, leaf in flatten_dict(params).items()}
    weights = save_tensors(flat)
    described = {
        "format": FORMAT,
        "version": VERSION,
        "origin": dict(origin),
        "num_params": int(sum(leaf.size for leaf in flat.values())),
        "sha256": hashlib.sha256(weights).hexdigest(),
        "config": to_json(config),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        checksums.write_atomic(folder / WEIGHTS_FILE, weights)
        text = json.dumps(described, indent=2) + "\n"
        checksums.write_atomic(folder / CONFIG_FILE, text.encode())
    except OSError as error:
        raise UserError(f"cannot write the export {folder}: {error.strerror}") from error


def load_export(path: str | os.PathLike[str]) -> tuple[ConfigDict, dict[str, Any], dict[str, Any]]:
    """Reads an export and checks it against its checksum.

    Returns:
      ``(config, params, origin)`` with params as nested dict of numpy arrays.

    Raises:
      UserError: a file is missing or damaged, or of another version.
    """
    folder = local_path(path)
    try:
        described = json.loads((folder / CONFIG_FILE).read_bytes())
        weights = (folder / WEIGHTS_FILE).read_bytes()
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}: is {folder} an export?") from error
    except ValueError as error:
        raise UserError(f"{folder / CONFIG_FILE} is damaged ({error}): export again") from error
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise UserError(f"{folder / CONFIG_FILE} does not describe a {FORMAT}")
    version = described.get("version")
    if version != VERSION:
        raise UserError(
            f"{folder} has export version {version}, but this bsq_jax reads {VERSION}: "
            "update bsq_jax, or export again"
        )
    if missing := [key for key in ("config", "origin", "sha256") if key not in described]:
        raise UserError(f"{folder / CONFIG_FILE} has no '{missing[0]}': export again")
    if hashlib.sha256(weights).hexdigest() != described["sha256"]:
        raise UserError(
            f"{folder / WEIGHTS_FILE} is damaged or not the one that {CONFIG_FILE} belongs to: "
            "copy or export it again"
        )
    try:
        flat = load_tensors(weights)
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS_FILE} is damaged ({error}): export again") from error
    params = unflatten_dict({tuple(key.split("/")): leaf for key, leaf in flat.items()})
    return from_json(described["config"], str(folder / CONFIG_FILE)), params, described["origin"]
