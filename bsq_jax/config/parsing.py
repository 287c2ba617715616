"""From text to values: the command line, and the argument of a config file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from bsq_jax.config.settings import declared
from bsq_jax.config.suggestions import did_you_mean, suggestions
from bsq_jax.config.values import PAIR, flatten, kind_of_parts, nearest, one_or_pair, wanted
from bsq_jax.core.errors import UserError
from bsq_jax.core.own_parts import split_texts

# What other code bases call the folder of a run.
_WORKDIR = "out|output|log|logs|save|run|exp|experiment"


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
        if equals and key in parsed:
            set_value(parsed, key, text, "--config argument")
        elif equals:
            raise UserError(f"--config argument {key} does not exist{_or(key, list(parsed))}")
        elif key in variants:
            parsed.variant = key
        elif isinstance(defaults.get(key), bool):
            parsed[key] = True
        elif key in defaults:
            raise UserError(f"--config argument {key} has no value: write {key}=VALUE")
        else:
            flags = [name for name, value in defaults.items() if isinstance(value, bool)]
            raise UserError(
                f"--config variant '{key}' does not exist{nearest(key, [*variants, *flags])} "
                f"(there are: {', '.join(variants)})"
            )
    return parsed


def _or(key: str, known: Sequence[str]) -> str:
    """Ends the message on an argument that a config file does not take."""
    there = f" (there are: {', '.join(known)})"
    if own := did_you_mean(key, known):
        return own + there
    elsewhere = did_you_mean(key, prefix="the setting --config.")
    return elsewhere + there if suggestions(key) else there


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
        raise UserError(f"{name} does not exist{did_you_mean(dotted)}")
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
            raise UserError(unknown_flag(word))
        key, equals, text = word.removeprefix("--config.").partition("=")
        value = text if equals else next(left, None)
        if value is None:
            raise UserError(f"{word} has no value: write {word}=VALUE")
        overrides.append((key, value))
    return overrides


def unknown_flag(word: str, flags: Sequence[str] = ()) -> str:
    """The message on a flag that does not exist, where settings are taken too.

    Args:
      word: as it was typed, such as ``--lr=1``.
      flags: those that the command has, such as ``--workdir``.
    """
    name = word.partition("=")[0]
    if not name.startswith("--"):
        kind = "flag" if name.startswith("-") else "argument"
        return f"unknown {kind} {word}: see --help"
    close = difflib.get_close_matches(name, flags, n=2, cutoff=0.75)
    if re.fullmatch(rf"--({_WORKDIR})([-_]?(dir|path|folder))?", name) and "--workdir" in flags:
        close = ["--workdir"]
    if close:
        return f"unknown flag {name}: did you mean {' or '.join(close)}? (see --help)"
    if not suggestions(name.removeprefix("--")):
        return f"unknown flag {name}: see --help"
    return f"unknown flag {name}{did_you_mean(name.removeprefix('--'), prefix='--config.')}"


def _convert(text: str, kind: Any, current: Any, name: str, *, any_length: bool = False) -> Any:
    lowered = text.strip().lower()
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[lowered]
        if kind in (int, float):
            return _number(lowered, kind)
        if kind is tuple and kind_of_parts(current) is str:
            return split_texts(text)
        if kind is tuple or kind == PAIR:
            parts = [p for p in lowered.strip("()[] ").replace("x", ",").split(",") if p.strip()]
            each = int if kind == PAIR else type(current[0])
            numbers = tuple(_number(part, each) for part in parts)
            if any_length and numbers:
                return numbers
            count = 2 if kind == PAIR else len(current)
            numbers = numbers * count if len(numbers) == 1 else numbers
            if len(numbers) != count:
                raise ValueError
            return one_or_pair(numbers) if kind == PAIR else numbers
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
