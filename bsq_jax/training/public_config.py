"""What an export says of its maker's machine, taken out before it is published."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

from bsq_jax.core.hub_address import SCHEME

# Settings that are a path or an address of a model.
_PATHS = ("train.init", "prior.tokenizer", "masked_lm.tokenizer", "eval.inception")
_SOURCES = ("data.source", "data.val_source", "data.image_source")
_PLACED = ("folder", "clips", "array_record", "parquet", "webdataset", "tokens")
# A path from the root or a home in any other text, such as an argument of an own loss.
_ABSOLUTE = re.compile(r"(?<![\w./-])(?:~[\w.-]*)?/[^\s|,;:()'\"/][^\s|,;:()'\"]*")


def without_paths(described: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What ``config.json`` of an export says, with the last name alone of every path in it.

    The model stays the same one: settings of data are no part of its identity.

    Args:
      described: the content of the file, as plain containers.

    Returns:
      A changed copy, and what was changed, as ``key: before -> after``.
    """
    found = json.loads(json.dumps(described))
    changes: list[str] = []
    found["config"] = _shortened(found["config"], "", changes)
    found["origin"] = _shortened(found["origin"], "origin.", changes)
    log = found["config"].get("log", {})
    if log.get("wandb"):
        changes.append(f"log.wandb: {log['wandb']} -> nothing")
        log["wandb"] = ""
    return found, changes


def public_source(spec: str) -> str:
    """A data source with the last names alone of its folders: ``folder:/a/b`` is ``folder:b``."""
    scheme, colon, place = spec.partition(":")
    if colon and scheme in _PLACED:
        return f"{scheme}:{'|'.join(_last_name(part) for part in place.split('|'))}"
    return _in_text(spec)


def _shortened(value: Any, key: str, changes: list[str]) -> Any:
    if isinstance(value, dict):
        return {name: _shortened(inner, f"{key}{name}.", changes) for name, inner in value.items()}
    if isinstance(value, list):
        return [_shortened(inner, key, changes) for inner in value]
    if not isinstance(value, str):
        return value
    name = key.removesuffix(".")
    if name in _PATHS:
        short = value if value.startswith(SCHEME) else _last_name(value)
    else:
        short = public_source(value) if name in _SOURCES else _in_text(value)
    if short != value:
        changes.append(f"{name}: {value} -> {short}")
    return short


def _in_text(text: str) -> str:
    return _ABSOLUTE.sub(lambda found: _last_name(found[0]), text)


def _last_name(path: str) -> str:
    return pathlib.PurePath(path).name
