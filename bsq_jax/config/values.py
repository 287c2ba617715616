"""Typed, locked settings: setting them from text, from JSON, and comparing them.

Knows ml_collections and no particular key; the keys are in `bsq_jax.config`.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from bsq_jax.core.errors import UserError


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All (dotted key, value) pairs of a nested config."""
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Lines ``key: value -> value`` for each key whose value differs, in order of name."""
    a, b = dict(flatten(one)), dict(flatten(other))
    return [f"{k}: {a.get(k)} -> {b.get(k)}" for k in sorted(a | b) if a.get(k) != b.get(k)]


def set_from_text(
    config: ConfigDict, dotted: str, text: str, flag: str, optional: Collection[str] = ()
) -> None:
    """Sets one value from text, converted to the type that the key has.

    Args:
      config: changed in place.
      dotted: the key, such as ``train.steps``.
      text: the value as typed.
      flag: what to call the key in messages.
      optional: keys that may be ``none``.

    Raises:
      UserError: an unknown key (the nearest is named) or a value of another type.
    """
    name = f"{flag}.{dotted}" if flag == "--config" else f"{flag} {dotted}"
    keys = [key for key, _ in flatten(config)]
    if dotted not in keys:
        inside = [key for key in keys if key.startswith(dotted + ".")]
        if inside:
            raise UserError(f"{name} is a group of keys: set one of {', '.join(inside)}")
        leaves = [key for key in keys if key.split(".")[-1] == dotted.split(".")[-1]]
        raise UserError(f"{name} does not exist{nearest(dotted, leaves or keys)}")
    *groups, leaf = dotted.split(".")
    target = config
    for group in groups:
        target = target[group]
    if dotted in optional and text.strip().lower() == "none":
        target[leaf] = None
    else:
        target[leaf] = _convert(text, target.get_type(leaf), target[leaf], name)


def put(config: ConfigDict, key: str, value: Any, optional: Collection[str] = ()) -> None:
    """Sets the value of a dotted key that exists, if it is of the key's type.

    Args:
      config: changed in place.
      key: the key, such as ``train.steps``.
      value: as JSON or a config file has it: a list for a tuple, a whole number for a float.
      optional: keys that may be None.

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

    if kind is tuple:
        good = isinstance(value, tuple | list) and len(value) == len(current)
        good = good and all(fits(number, type(current[0])) for number in value)
        value = tuple(type(current[0])(number) for number in value) if good else value
    else:
        good = key in optional if value is None else fits(value, kind)
    if not good:
        raise TypeError(_wanted(kind, current))
    target[leaf] = value


def nearest(key: str, known: Sequence[str]) -> str:
    """``: did you mean KEY?`` with the most similar of `known`; empty where there is none."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f": did you mean {close[0]}?" if close else ""


def _convert(text: str, kind: type, current: Any, name: str) -> Any:
    lowered = text.strip().lower()
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[lowered]
        if kind in (int, float):
            return _number(lowered, kind)
        if kind is tuple:
            parts = [p for p in lowered.strip("()[] ").replace("x", ",").split(",") if p.strip()]
            numbers = tuple(_number(part, type(current[0])) for part in parts)
            numbers = numbers * len(current) if len(numbers) == 1 else numbers
            if len(numbers) != len(current):
                raise ValueError
            return numbers
    except (KeyError, ValueError, OverflowError):
        raise UserError(f"{name} is '{text}': it must be {_wanted(kind, current)}") from None
    return text


def _number(text: str, kind: type) -> int | float:
    value = float(text.replace("_", ""))
    if kind is int and value != int(value):
        raise ValueError
    return kind(value)


def _wanted(kind: type, current: Any) -> str:
    """What a value must be, in words; `current` is one that is right."""
    if kind is tuple:
        whole = "whole " if type(current[0]) is int else ""
        return f"{len(current)} {whole}numbers such as {','.join(map(str, current))}"
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "text")
