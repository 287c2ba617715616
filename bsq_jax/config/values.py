"""Locked ConfigDicts by dotted keys: listing, comparing and setting their values by type.

Together with `bsq_jax.config.parsing` this stands where ``ml_collections.config_flags`` would,
which needs absl's global flags and ``app.run`` instead of the one parser of all commands, ends in a
traceback for an unknown key, makes a tuple of one number of ``--config.model.image_size=64``, and
checks no saved config.

Knows no particular key; they are in `bsq_jax.config.settings`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All (dotted key, value) pairs of a nested config."""
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The config as plain containers that JSON can hold."""
    return json.loads(json.dumps(config.to_dict()))


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Lines ``key: value -> value`` for each key whose value differs, in order of name."""
    a, b = dict(flatten(one)), dict(flatten(other))
    return [f"{k}: {a.get(k)} -> {b.get(k)}" for k in sorted(a | b) if a.get(k) != b.get(k)]


PAIR = (int, tuple)  # the type of a number of pixels of a square, or of (height, width)


def put(
    config: ConfigDict, key: str, value: Any, *, optional: bool = False, any_length: bool = False
) -> None:
    """Sets the value of a dotted key that exists, if it is of the key's type.

    Args:
      config: changed in place.
      key: the key, such as ``train.steps``.
      value: as JSON or a config file has it: a list for a tuple, a whole number for a float.
      optional: whether the value may be None.
      any_length: whether a tuple may be longer or shorter than the one that is there.

    Raises:
      TypeError: the value is of another type; its argument says in words what it must be.
    """
    *groups, leaf = key.split(".")
    target = config
    for group in groups:
        target = target[group]
    kind, current = target.get_type(leaf), target[leaf]

    def fits(value: Any, kind: type) -> bool:
        if isinstance(value, bool) or kind is bool:
            return isinstance(value, bool) and kind is bool
        return isinstance(value, int | float if kind is float else kind)

    if kind == PAIR:
        good = fits(value, int) or (
            isinstance(value, tuple | list) and len(value) == 2 and all(fits(n, int) for n in value)
        )
        value = one_or_pair(value) if good else value
    elif kind is tuple:
        each = kind_of_parts(current)
        good = isinstance(value, tuple | list) and (len(value) > 0 or each is str)
        good = good and (any_length or len(value) == len(current))
        good = good and all(fits(part, each) for part in value)
        value = tuple(each(part) for part in value) if good else value
    else:
        good = optional if value is None else fits(value, kind)
    if not good:
        raise TypeError(wanted(kind, current, any_length=any_length))
    target[leaf] = value


def one_or_pair(value: Any) -> Any:
    """A pair of whole numbers as a tuple, or as one number where both are the same."""
    numbers = pair(value)
    return numbers[0] if numbers[0] == numbers[1] else numbers


def pair(value: Any) -> tuple[int, int]:
    """A number, or a pair of them, as a pair."""
    return (value, value) if isinstance(value, int) else tuple(value)


def kind_of_parts(current: tuple[Any, ...]) -> type:
    """The type of a tuple's parts: numbers, or text of one that may be empty."""
    return type(current[0]) if current else str


def nearest(key: str, known: Sequence[str]) -> str:
    """``: did you mean KEY?`` with the most similar of `known`; empty where there is none."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f": did you mean {close[0]}?" if close else ""


def wanted(kind: Any, current: Any, *, any_length: bool = False) -> str:
    """What a value must be, in words; `current` is one that is right, `any_length` see `put`."""
    if kind == PAIR:
        return "a whole number, or 2 such as 16,8"
    if kind is tuple:
        if kind_of_parts(current) is str:
            return "a tuple of texts such as ('module:attribute',)"
        whole = "whole " if type(current[0]) is int else ""
        count = "" if any_length else f"{len(current)} "
        return f"{count}{whole}numbers such as {','.join(map(str, current))}"
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "text")
