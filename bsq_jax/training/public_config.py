"""What an export says of its maker's machine, taken out before it is published."""

from __future__ import annotations

import json
import re
from typing import Any

from bsq_jax.config.values import flatten
from bsq_jax.core.hub_address import HUB_SCHEME

# Settings that are a path or an address of a model.
_PATHS = ("train.init", "prior.tokenizer", "masked_lm.tokenizer", "eval.inception")
_SOURCES = ("data.source", "data.val_source", "data.image_source")
_PLACED = ("folder", "clips", "array_record", "parquet", "webdataset", "tokens")
# A path from a root or a home in any other text, such as an argument of an own loss. A space
# belongs to it where a separator ends one of the next words; `//` after a scheme is a URL's.
_ENDS = r"|,;:()'\""
_AFTER_SCHEME = "|".join([r"(?<![A-Za-z0-9+.-]:)", *(f"(?<={scheme}:)" for scheme in _PLACED)])
_ROOT = rf"[A-Za-z]:[\\/]+|\\\\+|~[\w.-]*[\\/]+|/|(?:{_AFTER_SCHEME})//+"
_ABSOLUTE = re.compile(
    rf"(?:(?<!\w)file:/+|(?<![\w./\\-])(?:{_ROOT}))"
    rf"[^\s{_ENDS}/\\](?:[^\s{_ENDS}]|\s+(?=[^{_ENDS}/\\]*[^\s{_ENDS}/\\][/\\]))*"
)


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


def public_addresses(described: dict[str, Any]) -> list[str]:
    """The addresses of models on the hub that `without_paths` leaves, as ``key: address``.

    Args:
      described: as `without_paths` takes it.
    """
    found = dict(flatten(described["config"]))
    values = {key: str(found.get(key, "")) for key in _PATHS}
    return [f"{key}: {value}" for key, value in values.items() if value.startswith(HUB_SCHEME)]


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
        short = value if value.startswith(HUB_SCHEME) else _last_name(value)
    else:
        short = public_source(value) if name in _SOURCES else _in_text(value)
    if short != value:
        changes.append(f"{name}: {value} -> {short}")
    return short


def _in_text(text: str) -> str:
    return _ABSOLUTE.sub(lambda found: _last_name(found[0]), text)


def _last_name(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]
