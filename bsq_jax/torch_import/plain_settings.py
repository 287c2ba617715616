"""Settings that OmegaConf or argparse left in a checkpoint, as plain dicts, lists and scalars."""

from __future__ import annotations

from typing import Any

from bsq_jax.core.errors import UserError
from bsq_jax.torch_import.safe_pickle import Inert

_MAX_DEPTH = 100  # of nested settings


def plain(value: Any) -> Any:
    """Settings as dicts, lists and scalars.

    Understands what OmegaConf's containers and nodes and argparse's Namespace leave behind. Other
    inert objects stay as they are.

    Args:
      value: what a `SafeUnpickler` returned.

    Raises:
      UserError: nested more than 100 deep, or in itself.
    """
    return _plain(value, 0, {})


def _plain(value: Any, depth: int, known: dict[int, Any]) -> Any:
    if id(value) in known:  # what is referred to twice is converted once, else it could explode
        return known[id(value)]
    if depth > _MAX_DEPTH:
        raise UserError(f"the file holds settings nested more than {_MAX_DEPTH} deep")
    inner, result = _wrapped(value), value
    if inner is not value:
        result = _plain(inner, depth + 1, known)
    elif isinstance(value, dict):
        result = {key: _plain(item, depth + 1, known) for key, item in value.items()}
    elif isinstance(value, list):
        result = [_plain(item, depth + 1, known) for item in value]
    known[id(value)] = result
    return result


def _wrapped(value: Any) -> Any:
    """What a container or node of settings holds; anything else itself."""
    if isinstance(value, Inert) and isinstance(value.state, dict):
        if value.module.split(".")[0] == "omegaconf":
            for field in ("_content", "_val"):
                if field in value.state:
                    return value.state[field]
        if (value.module, value.name) == ("argparse", "Namespace"):
            return value.state
    return value
