"""Reads ``metrics.jsonl`` of runs, also while they train."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from bsq_jax.core.errors import UserError
from bsq_jax.core.paths import local_path

FILE = "metrics.jsonl"
_OWN = ("step", "time", "prefix")
Points = dict[int, float]  # value by step; NaN where the run could not write one


@dataclasses.dataclass(frozen=True)
class RunMetrics:
    """The scalars of a run.

    Attributes:
      path: its ``metrics.jsonl``.
      series: values by metric and then by prefix, such as ``train`` or ``val_ema``, in order of
        their steps.
      lists: metrics that are lists of values.
      problems: lines that were left out, in words.
    """

    path: pathlib.Path
    series: dict[str, dict[str, Points]]
    lists: frozenset[str]
    problems: tuple[str, ...]


def read_run(given: str) -> RunMetrics:
    """Reads what a run has logged so far.

    A last line without its end is being written, and is left out. Of a step that is there twice the
    later line counts.

    Args:
      given: the workdir, or the file in it.

    Raises:
      UserError: there is no such file, or nothing in it.
    """
    path = _file(given)
    series: dict[str, dict[str, Points]] = {}
    lists, damaged = set(), []
    *whole, _ = path.read_bytes().split(b"\n")
    for number, data in enumerate(whole, 1):
        line = _parsed(data)
        if line is None:
            damaged.append(number)
            continue
        for name, value in line.items():
            if isinstance(value, list):
                lists.add(name)
            elif name not in _OWN and (value is None or isinstance(value, int | float)):
                points = series.setdefault(name, {}).setdefault(line["prefix"], {})
                points[line["step"]] = math.nan if value is None else float(value)
    if not series:
        raise UserError(f"{path} has no metrics yet" if not damaged else f"{path} is damaged")
    ordered = {
        name: {prefix: dict(sorted(points.items())) for prefix, points in by_prefix.items()}
        for name, by_prefix in series.items()
    }
    return RunMetrics(path, ordered, frozenset(lists), tuple(_problems(path, damaged)))


def run_names(paths: Sequence[pathlib.Path]) -> list[str]:
    """Names of runs for a legend: as many of the last folders of each as tell all apart.

    Args:
      paths: of the metrics, in the workdirs.
    """
    parts = [path.resolve().parent.parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path.parent) for path in paths]


def _file(given: str) -> pathlib.Path:
    """The metrics of a run.

    Raises:
      UserError: it is no run, with runs that may have been meant.
    """
    path = local_path(given)
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"there is no folder {path}: give the workdir of a run")
    if (path / FILE).is_file():
        return path / FILE
    inside = [str(found.parent) for found in sorted(path.glob(f"*/{FILE}"))]
    more = f", and {len(inside) - 3} more" if len(inside) > 3 else ""
    hint = f"; there are {', '.join(inside[:3])}{more}" if inside else ": give the workdir of a run"
    raise UserError(f"{path} has no {FILE}{hint}")


def _parsed(data: bytes) -> dict[str, Any] | None:
    """A line's values; None if it is damaged."""
    try:
        line = json.loads(data)
    except ValueError:
        return None
    if not isinstance(line, dict) or not isinstance(line.get("prefix"), str):
        return None
    step = line.get("step")
    return line if isinstance(step, int) and not isinstance(step, bool) else None


def _problems(path: pathlib.Path, damaged: Sequence[int]) -> list[str]:
    if not damaged:
        return []
    shown = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
    lines, are = ("lines", "are") if len(damaged) > 1 else ("line", "is")
    return [f"{path}: {lines} {shown} {are} damaged and left out"]
