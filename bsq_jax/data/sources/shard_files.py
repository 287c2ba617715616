"""Files of a data set in many shards, named by one pattern with globs and ranges in braces."""

from __future__ import annotations

import glob
import os
import pathlib
import re
from typing import NamedTuple

from bsq_jax.core.errors import UserError
from bsq_jax.core.paths import local_path

# The innermost braces: {000..099} or {a,b,c}.
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_MOST = 1_000_000  # files that a pattern may name


class Pattern(NamedTuple):
    """Which shards belong to a split.

    Attributes:
      text: the pattern of the split.
      train: that of the train split.
      alone: whether one pattern stands for both splits.
    """

    text: str
    train: str
    alone: bool


def pattern_of(scheme: str, place: str, split: str) -> Pattern:
    """Takes apart ``PATTERN`` or ``TRAIN|VAL``.

    Raises:
      UserError: there are more than two patterns, or one is empty.
    """
    patterns = place.split("|")
    if len(patterns) > 2 or not all(patterns):
        raise UserError(f"{scheme}:{place} must be one pattern, or two as TRAIN|VAL")
    return Pattern(patterns[-1] if split == "val" else patterns[0], patterns[0], len(patterns) == 1)


def expand_braces(pattern: str) -> list[str]:
    """The patterns that one with braces stands for, as a shell would expand it.

    ``{8..11}`` is 8, 9, 10, 11; ``{008..011}`` has three digits each; ``{a,b}`` is a and b. Other
    braces stay.

    Raises:
      UserError: there are more than a million.
    """
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    first, last, listed = found.groups()
    if listed is not None:
        parts = listed.split(",")
    else:
        start, stop = int(first), int(last)
        if abs(stop - start) >= _MOST:
            raise UserError(f"{pattern} names more than {_MOST:,d} files: check the range")
        padded = any(len(text) > 1 and text.startswith("0") for text in (first, last))
        width = max(len(first), len(last)) if padded else 0
        step = 1 if stop >= start else -1
        parts = [f"{number:0{width}d}" for number in range(start, stop + step, step)]
    before, after = pattern[: found.start()], pattern[found.end() :]
    expanded: list[str] = []
    for part in parts:
        expanded += expand_braces(before + part + after)
        if len(expanded) > _MOST:
            raise UserError(f"{pattern} names more than {_MOST:,d} files: check the ranges")
    return list(dict.fromkeys(expanded))


def matching_files(scheme: str, pattern: str) -> list[pathlib.Path]:
    """The files that a pattern names, sorted by path, each once.

    Raises:
      UserError: there are none, a file that is named without a glob is not there, or what is named
        is a folder or the address of a bucket.
    """
    name = f"{scheme}:{pattern}"
    root = os.fspath(local_path(pattern).expanduser())
    if os.path.isdir(root):
        raise UserError(f"{name} is a folder: name the files in it, such as {name.rstrip('/')}/*")
    found: set[str] = set()
    missing = []
    expanded = [root] if os.path.exists(root) else expand_braces(root)
    for text in expanded:
        if os.path.isfile(text):
            found.add(text)
        elif matching := [path for path in _globbed(text) if os.path.isfile(path)]:
            found.update(matching)
        else:
            missing.append(text)
    if missing and (found or len(expanded) > 1):
        raise UserError(
            f"{name} names {len(expanded)} files, of which {len(missing)} are not there "
            f"({os.path.basename(missing[0])} is one): put them there or change the pattern"
        )
    if not found:
        raise UserError(f"{name} matches no file: check the pattern")
    return [pathlib.Path(path) for path in sorted(found)]


def _globbed(text: str) -> list[str]:
    return glob.glob(text, recursive=True) if glob.has_magic(text) else []


def names_of(paths: list[pathlib.Path]) -> list[str]:
    """For each file its path below the folder that all lie in, the same on every machine."""
    parents = [os.path.abspath(path.parent) for path in paths]
    common = os.path.commonpath(parents)
    return [
        pathlib.Path(os.path.relpath(parent, common), path.name).as_posix()
        for parent, path in zip(parents, paths, strict=True)
    ]
