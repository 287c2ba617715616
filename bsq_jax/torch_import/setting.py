"""A setting of a converted checkpoint, with its source; shapes as a source."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from bsq_jax.core.errors import UserError

SHAPES, EMBEDDED, FLAG, DEFAULT = "shapes", "embedded config", "flag", "published default"
THEIR_DEFAULT = "default of the published code"
QUANTIZERS = ("bsq", "leech", "vq", "vq-cosine")  # values of --quantizer


class Setting(NamedTuple):
    """One key of our config, its value, and where that comes from."""

    key: str
    value: Any
    source: str


def shape_of(state: Mapping[str, Any], key: str, rank: int) -> tuple[int, ...]:
    """The shape of an array of a state dict.

    Raises:
      UserError: it is missing, or has another rank or no entries.
    """
    if key not in state:
        raise UserError(f"the state dict has no '{key}', which every model of this kind has")
    shape = tuple(state[key].shape)
    if len(shape) != rank or not math.prod(shape):
        raise UserError(f"'{key}' has the shape {list(shape)}, not {rank} sizes")
    return shape


def check_said(said: float | None, value: float, theirs: str) -> None:
    """Refuses what the embedded config says if shapes say something else.

    Raises:
      UserError: it does.
    """
    if said is not None and said != value:
        raise UserError(f"the embedded config has {said} for {theirs}, but shapes say {value}")
