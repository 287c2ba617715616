"""Converts checkpoints of the published PyTorch code.

The file is read without PyTorch, and nothing in it is executed.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from bsq_jax.config import default_config, finalize
from bsq_jax.config.values import put
from bsq_jax.core.errors import UserError
from bsq_jax.models.factory import make_tokenizer
from bsq_jax.torch_import.checkpoint_config import read_settings
from bsq_jax.torch_import.discriminators import UnknownKindError, from_torch_discriminator
from bsq_jax.torch_import.plain_settings import plain
from bsq_jax.torch_import.quantizers import BUFFERS
from bsq_jax.torch_import.setting import Setting
from bsq_jax.torch_import.tokenizer_layout import CODEBOOK, from_torch_state, parameter_name
from bsq_jax.torch_import.torch_file import read_torch_file

# Sets of weights by their key in the checkpoint.
_STATES = {
    "raw": "state_dict",
    "ema": "ema_state_dict",
    "discriminator": "state_dict_discriminator",
}
_FIRST = "encoder.conv1.weight"


class Checkpoint(NamedTuple):
    """What a file of the published code holds.

    Attributes:
      states: state dicts by the name of our set; names without those of wrappers.
      settings: the embedded config as plain containers; empty where there is none.
      iteration: training steps done, if it says.
      unused: names of its other entries.
    """

    states: dict[str, dict[str, Any]]
    settings: dict[str, Any]
    iteration: int | None
    unused: list[str]


class Converted(NamedTuple):
    """A checkpoint in this project's terms, as an export takes it.

    Attributes:
      config: the model's config; not complete, derived values are left to be derived.
      weights: parameters by the name of their set.
      origin: where they come from.
      taken: settings of the config with their sources.
      notes: lines for the user.
      unused: names of what was not used.
    """

    config: ConfigDict
    weights: dict[str, Any]
    origin: dict[str, Any]
    taken: Sequence[Setting]
    notes: list[str]
    unused: list[str]


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint, or a bare state dict, of the published code.

    Raises:
      UserError: the file is damaged, or holds something else.
    """
    saved = read_torch_file(path)
    if not isinstance(saved, dict):
        raise UserError(f"{path} holds a {type(saved).__name__}, not a checkpoint")
    if any(isinstance(key, str) and parameter_name(key) == _FIRST for key in saved):
        return Checkpoint({"raw": _state(saved, path, "it")}, {}, None, [])
    states = {
        name: _state(saved[key], path, key)
        for name, key in _STATES.items()
        if isinstance(saved.get(key), dict) and saved[key]
    }
    if {"raw", "ema"}.isdisjoint(states):
        keys = ", ".join(sorted(map(str, saved))[:8])
        raise UserError(
            f"{path} has neither '{_STATES['raw']}' nor '{_STATES['ema']}' nor '{_FIRST}': "
            f"it is no checkpoint of this model (its keys: {keys})"
        )
    settings = plain(saved.get("config"))
    iteration = saved.get("iter")
    known = {*_STATES.values(), "config", "iter"}
    return Checkpoint(
        states,
        settings if isinstance(settings, dict) else {},
        iteration if isinstance(iteration, int) else None,
        sorted(str(key) for key in saved if key not in known),
    )


def _state(saved: Mapping[Any, Any], path: Any, name: str) -> dict[str, Any]:
    """A state dict: arrays by their names."""
    state: dict[str, Any] = {}
    for key, array in saved.items():
        if not isinstance(key, str) or not isinstance(array, np.ndarray):
            raise UserError(f"{path}: {name} has {key!r}, which is no array")
        if (stripped := parameter_name(key)) in state:
            raise UserError(f"{path}: {name} has '{stripped}' twice, with and without 'module.'")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UserError(f"{path}: {name} has '{key}' with values that are not finite")
        state[stripped] = array
    for key in state:
        if key.startswith("quantize.") and key not in (*BUFFERS, CODEBOOK):
            raise UserError(
                f"{path}: {name} has '{key}': the model has another quantizer than those of the "
                "published models"
            )
    return state


def convert(
    path: str | os.PathLike[str],
    *,
    heads: int | None = None,
    image_size: tuple[int, int] | None = None,
    quantizer: str | None = None,
    discriminator: bool = True,
) -> Converted:
    """Reads a checkpoint of the published code as a model of this project.

    Args:
      path: the file.
      heads: attention heads; else what the file's config says, or one for each 64 channels.
      image_size: (height, width) in pixels; else what the file's config says, or a square.
      quantizer: one of `bsq_jax.torch_import.setting.QUANTIZERS`, where the file does not say it.
      discriminator: whether to take the discriminator too, where there is one.

    Raises:
      UserError: the file is damaged or of another model, or contradicts itself or the arguments.
    """
    checkpoint = read_checkpoint(path)
    found: tuple[str, dict[str, int], dict[str, Any]] | None = None
    weights: dict[str, Any] = {}
    notes: list[str] = []
    try:
        name = _STATES["discriminator"]
        if "discriminator" in checkpoint.states and discriminator:
            found = _discriminator(checkpoint, notes)
        elif "discriminator" in checkpoint.states:
            notes.append("discriminator: left out, as --no-discriminator says")
        name = _STATES["raw" if "raw" in checkpoint.states else "ema"]
        model_state = checkpoint.states.get("raw") or checkpoint.states["ema"]
        settings = read_settings(
            model_state,
            checkpoint.settings,
            heads=heads,
            image_size=image_size,
            quantizer=quantizer,
            discriminator=found[:2] if found else None,
        )
        config = _filled(settings.taken)
        # Checked, but not filled: the rate follows the batch of whatever run starts from here.
        model = make_tokenizer(finalize(config))
        for which in ("raw", "ema"):
            if which in checkpoint.states:
                name = _STATES[which]
                weights[which] = from_torch_state(
                    checkpoint.states[which], model.shape, model.quantizer
                )
    except UserError as error:
        raise UserError(f"{path}, {name}: {error}") from None
    if found:
        weights["discriminator"] = found[2]
    origin: dict[str, Any] = {"converted": pathlib.Path(path).name}
    if checkpoint.iteration is not None:
        origin["step"] = checkpoint.iteration
    return Converted(
        config,
        weights,
        origin,
        settings.taken,
        [*notes, *settings.notes],
        [*checkpoint.unused, *(f"config.{key}" for key in settings.unused)],
    )


def _discriminator(
    checkpoint: Checkpoint, notes: list[str]
) -> tuple[str, dict[str, int], dict[str, Any]] | None:
    try:
        return from_torch_discriminator(checkpoint.states["discriminator"])
    except UnknownKindError:  # such as PatchGAN, which has statistics that ours has not
        notes.append("discriminator: left out, its kind is not one that can be converted")
        return None
    except UserError as error:
        raise UserError(f"{error} (--no-discriminator leaves it out)") from None


def _filled(taken: Sequence[Setting]) -> ConfigDict:
    """The published config with what was taken; derived values are left to be derived."""
    config = default_config()
    for setting in taken:
        try:
            put(config, setting.key, setting.value)
        except TypeError as error:
            raise UserError(
                f"{setting.key} is {setting.value!r} ({setting.source}): it must be {error}"
            ) from None
    return config


def report(converted: Converted) -> str:
    """Each setting with its value and where it comes from, and what was found, for a terminal."""
    rows = [("setting", "value", "from")]
    for setting in converted.taken:
        value = setting.value
        text = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
        rows.append((setting.key, text, setting.source))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows]
    lines.append("")
    for name, params in converted.weights.items():
        count = sum(leaf.size for leaf in flatten_dict(params).values())
        lines.append(f"{name}: {count:,} parameters")
    noted = {note.partition(":")[0] for note in converted.notes}
    lines += [
        f"{name}: none" for name in _STATES if name not in converted.weights and name not in noted
    ]
    lines += converted.notes
    iteration = converted.origin.get("step")
    lines.append(f"iteration: {'the file does not say' if iteration is None else f'{iteration:,}'}")
    lines.append(f"not used: {', '.join(converted.unused) or 'nothing'}")
    return "\n".join(lines)
