"""Exports: a folder with ``config.json`` and one safetensors file for each set of weights.

The sets are ``raw`` (what the optimizer moved), ``ema`` (averaged) and ``discriminator``; an export
holds at least one of the first two.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from bsq_jax.config import fingerprint_settings, from_json, to_json
from bsq_jax.config.own_parts import leave_out_own_code
from bsq_jax.core.errors import UserError
from bsq_jax.core.files import write_atomic
from bsq_jax.core.paths import local_path

FORMAT = "bsq_jax tokenizer"
VERSION = 2
_HALF_VERSION = 3  # of exports with float16 weights, which older releases would use as such
CONFIG_FILE = "config.json"
SETS = ("raw", "ema", "discriminator")
_VERSION_1_FILE = "model.safetensors"


def weights_file(name: str) -> str:
    """The file name of a set of weights."""
    return f"{name}.safetensors"


def is_export(path: str | os.PathLike[str]) -> bool:
    """Whether a folder looks like an export (as opposed to a workdir)."""
    folder = local_path(path)
    if any((folder / name).is_file() for name in (*map(weights_file, SETS), _VERSION_1_FILE)):
        return True
    try:  # one whose weights were lost still says what it was
        return json.loads((folder / CONFIG_FILE).read_bytes())["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def save_export(
    path: str | os.PathLike[str],
    config: ConfigDict,
    weights: Mapping[str, Mapping[str, Any]],
    *,
    origin: Mapping[str, Any],
    half: bool = False,
) -> None:
    """Writes an export: weights first, ``config.json`` last, each file atomically.

    Args:
      path: the folder; made if need be. An older export in it is replaced.
      config: the config; values that are derived when there are none may be left to that.
      weights: nested dicts of float32 arrays by the name of the set, at least ``raw`` or ``ema``.
      origin: where the weights come from, for people to read; ``step`` is shown in evaluations.
      half: store float16, half the size. The weights are rounded, so this is another model than the
        one that is given, with tokens of its own; it is loaded as float32.

    Raises:
      UserError: the folder cannot be written, or a weight is beyond the range of float16.
    """
    assert set(weights) <= set(SETS)
    assert not {"raw", "ema"}.isdisjoint(weights)
    folder = local_path(path)
    described: dict[str, Any] = {
        "format": FORMAT,
        "version": _HALF_VERSION if half else VERSION,
        "origin": dict(origin),
        "weights": {},
        "config": {**to_json(config), "extensions": ""},  # folders of this machine
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in filter(weights.__contains__, SETS):
            # In C order: safetensors would write a transposed view's bytes as they lie.
            leaves = flatten_dict(weights[name]).items()
            flat = {"/".join(key): np.asarray(leaf, order="C") for key, leaf in leaves}
            if half:
                flat = {key: _halved(leaf, key) for key, leaf in flat.items()}
            data = save_tensors(flat)
            described["weights"][name] = {
                "num_params": int(sum(leaf.size for leaf in flat.values())),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
            write_atomic(folder / weights_file(name), data)
        text = json.dumps(described, indent=2) + "\n"
        write_atomic(folder / CONFIG_FILE, text.encode())
        stale = [weights_file(name) for name in SETS if name not in weights]
        for name in (*stale, _VERSION_1_FILE):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write the export {folder}: {error.strerror}") from error


def load_export(
    path: str | os.PathLike[str], names: Collection[str] = SETS
) -> tuple[ConfigDict, dict[str, dict[str, Any]], dict[str, Any]]:
    """Reads an export and checks it against its checksums.

    Args:
      path: the folder.
      names: which sets of weights to read; those that the export does not have are left out.

    Returns:
      ``(config, weights, origin)`` with weights as nested dicts of numpy arrays by name.

    Raises:
      UserError: a file is missing or damaged, or of another version.
    """
    folder = local_path(path)
    described = describe_export(folder)
    weights = {
        name: _load_set(folder / weights_file(name), entry["sha256"])
        for name, entry in described["weights"].items()
        if name in names
    }
    config = from_json(described["config"], str(folder / CONFIG_FILE))
    if left_out := leave_out_own_code(config):
        logging.getLogger(__name__).warning(
            "%s was trained with code of its makers, which is not called: %s; set these anew where "
            "they are wanted",
            folder,
            "; ".join(left_out),
        )
    return config, weights, described["origin"]


def identity(config: ConfigDict, params: Any) -> bytes:
    """Thirty-two bytes that tell a model with these parameters from all others.

    They are a hash of `fingerprint_settings` and of the parameters, so neither a changed default
    nor an added setting changes those of an existing model.
    """
    settings = fingerprint_settings(config)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for key, leaf in sorted(flatten_dict(params).items()):
        array = np.asarray(leaf, order="C")
        digest.update(f"{'/'.join(key)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.digest()


def describe_export(folder: pathlib.Path) -> dict[str, Any]:
    """What ``config.json`` says, checked as far as reading needs it.

    Args:
      folder: the export.

    Raises:
      UserError: the file is missing or damaged, or of another version.
    """
    path = folder / CONFIG_FILE
    try:
        described = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: is {folder} an export?") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): export again") from error
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise UserError(f"{path} does not describe a {FORMAT}")
    version = described.get("version")
    if version == 1:
        raise UserError(
            f"{folder} is an export of an older bsq_jax (version 1; this one reads {VERSION}): "
            "export again from the workdir, or load it with that bsq_jax"
        )
    if version not in (VERSION, _HALF_VERSION):
        raise UserError(
            f"{folder} has export version {version}, but this bsq_jax reads {VERSION} and "
            f"{_HALF_VERSION}: update bsq_jax, or export again"
        )
    for key in ("config", "origin", "weights"):
        if not isinstance(described.get(key), dict):
            raise UserError(f"{path} has no '{key}': export again")
    sets = described["weights"]
    good = all(isinstance(entry, dict) and "sha256" in entry for entry in sets.values())
    if not good or not set(sets) <= set(SETS) or {"raw", "ema"}.isdisjoint(sets):
        raise UserError(f"{path} does not say which weights there are: export again")
    return described


def _load_set(path: pathlib.Path, sha256: str) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: copy or export it again") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(
            f"{path} is damaged or not the one that {CONFIG_FILE} belongs to: "
            "copy or export it again"
        )
    try:
        flat = load_tensors(data)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): export again") from error
    return unflatten_dict({tuple(key.split("/")): _single(leaf) for key, leaf in flat.items()})


def _halved(leaf: np.ndarray, key: str) -> np.ndarray:
    """A weight as float16.

    Raises:
      UserError: it is too large.
    """
    if leaf.size and np.abs(leaf).max() > np.finfo(np.float16).max:
        raise UserError(f"{key} has weights beyond the range of float16: export in float32")
    return leaf.astype(np.float16)


def _single(leaf: np.ndarray) -> np.ndarray:
    """A weight as float32, as which all are used."""
    return leaf.astype(np.float32) if leaf.dtype == np.float16 else leaf
