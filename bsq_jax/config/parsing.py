"""From text to values: the command line, and the argument of a config file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from bsq_jax.config.settings import declared
from bsq_jax.config.values import flatten, kind_of_parts, nearest, wanted
from bsq_jax.core.errors import UserError
from bsq_jax.core.own_parts import split_texts


def parse_argument(argument: str, variants: Sequence[str], **defaults: Any) -> ConfigDict:
    """Reads what follows the colon in ``--config file.py:variant,key=value``.

    Args:
      argument: the text, maybe empty.
      variants: the variants' names; the first is the default.
      **defaults: the keys that the config file takes, with their defaults.

    Returns:
      A locked ConfigDict with ``variant`` and every key of `defaults`.

    Raises:
      UserError: an unknown variant or key, or a value of the wrong type.
    """
    parsed = ConfigDict({"variant": variants[0], **defaults}).lock()
    for part in filter(None, (p.strip() for p in argument.split(","))):
        key, equals, text = part.partition("=")
        if equals:
            set_value(parsed, key, text, "--config argument")
        elif key in variants:
            parsed.variant = key
        elif isinstance(defaults.get(key), bool):
            parsed[key] = True
        else:
            raise UserError(
                f"--config variant '{key}' does not exist{nearest(key, variants)} "
                f"(there are: {', '.join(variants)})"
            )
    return parsed


def set_value(config: ConfigDict, dotted: str, text: str, flag: str = "--config") -> None:
    """Sets one value from text, converted to the type that the key has.

    Args:
      config: changed in place.
      dotted: the key, such as ``train.steps``.
      text: the value as typed.
      flag: what to call the key in messages.

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
    setting = declared().get(dotted)
    if setting is not None and setting.optional and text.strip().lower() == "none":
        target[leaf] = None
    else:
        free = setting is not None and setting.any_length
        target[leaf] = _convert(text, target.get_type(leaf), target[leaf], name, any_length=free)


def set_overrides(config: ConfigDict, words: Sequence[str]) -> None:
    """Sets what ``--config.KEY=VALUE`` or ``--config.KEY VALUE`` say on a command line.

    Raises:
      UserError: another flag, an unknown key or a value of another type.
    """
    for key, text in parse_overrides(words):
        set_value(config, key, text)


def parse_overrides(words: Sequence[str]) -> list[tuple[str, str]]:
    """``(dotted key, text)`` of each ``--config.KEY=VALUE`` or ``--config.KEY VALUE``.

    Raises:
      UserError: another flag, or one without a value.
    """
    overrides, left = [], iter(words)
    for word in left:
        if not word.startswith("--config."):
            raise UserError(f"unknown flag {word}: see --help")
        key, equals, text = word.removeprefix("--config.").partition("=")
        value = text if equals else next(left, None)
        if value is None:
            raise UserError(f"{word} has no value: write {word}=VALUE")
        overrides.append((key, value))
    return overrides


def _convert(text: str, kind: type, current: Any, name: str, *, any_length: bool = False) -> Any:
    lowered = text.strip().lower()
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[lowered]
        if kind in (int, float):
            return _number(lowered, kind)
        if kind is tuple and kind_of_parts(current) is str:
            return split_texts(text)
        if kind is tuple:
            parts = [p for p in lowered.strip("()[] ").replace("x", ",").split(",") if p.strip()]
            numbers = tuple(_number(part, type(current[0])) for part in parts)
            if any_length and numbers:
                return numbers
            numbers = numbers * len(current) if len(numbers) == 1 else numbers
            if len(numbers) != len(current):
                raise ValueError
            return numbers
    except (KeyError, ValueError, OverflowError):
        raise UserError(
            f"{name} is '{text}': it must be {wanted(kind, current, any_length=any_length)}"
        ) from None
    return text


def _number(text: str, kind: type) -> int | float:
    value = float(text.replace("_", ""))
    if kind is int and value != int(value):
        raise ValueError
    return kind(value)
