"""Timing that can be compared: variants in turn within one run, medians, ratios."""

from __future__ import annotations

import json
import math
import os
import pathlib
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


class Seconds(float):
    """What a function returns that has measured itself, such as one of another process."""


def in_turn(functions: Mapping[Any, Callable[[], Any]], runs: int) -> dict[Any, float]:
    """Median seconds of each function; they alternate, so that a slow spell hits all alike.

    Each is called once before, to compile. What they return is waited for.
    """
    seconds: dict[Any, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        jax.block_until_ready(function())
    for _ in range(runs):
        for name, function in functions.items():
            seconds[name].append(once(function))
    return {name: statistics.median(times) for name, times in seconds.items()}


def once(function: Callable[[], Any]) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    result = function()
    if isinstance(result, Seconds):
        return float(result)
    jax.block_until_ready(result)
    return time.perf_counter() - begin


def repeated(function: Callable[[], Any]) -> Callable[[int], Any]:
    """Makes as many calls as it is told, and returns the last one's result."""

    def call(calls: int) -> Any:
        for _ in range(calls):
            result = function()
        return result

    return call


def sustained(function: Callable[[int], Any], spell: float) -> Callable[[], Seconds]:
    """The seconds of one call, of as many in a row as take long enough to be measured.

    One more goes before them and is not counted: where the others have run for seconds, a virtual
    machine may have given the memory of this one back, which costs a training step seconds.

    Args:
      function: makes as many calls as it is told, see `repeated`.
      spell: seconds that a timing should take at least.
    """

    def seconds(calls: int) -> Seconds:
        jax.block_until_ready(function(1))  # not counted
        begin = time.perf_counter()
        result = function(calls)
        if isinstance(result, Seconds):
            return result
        jax.block_until_ready(result)
        return Seconds((time.perf_counter() - begin) / calls)

    seconds(1)  # compiles
    calls = max(1, min(1000, math.ceil(spell / seconds(1))))
    return lambda: seconds(calls)


def report(
    title: str, rows: list[dict[str, Any]], path: pathlib.Path | None, **settings: Any
) -> None:
    """Prints rows of equal keys as a table, and writes them with the machine's data as JSON."""
    print(f"{title} ({machine()})\n$ {command()}")
    cells = [list(rows[0])] + [[_text(value) for value in row.values()] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    if path is not None:
        result: dict[str, Any] = {"title": title, "machine": machine(), "command": command()}
        result |= {"settings": settings, "rows": rows}
        path.write_text(json.dumps(result, indent=2) + "\n")


def machine() -> str:
    """Device, cores, Python and JAX of this run."""
    device = jax.devices()[0]
    kind = cpu_kind() if device.platform == "cpu" else device.device_kind
    return (
        f"{jax.device_count()} x {kind}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, jax {jax.__version__}"
    )


def cpu_kind() -> str:
    """The processor as the system names it, with the number of its model where there is one."""
    path = pathlib.Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    fields = dict(re.findall(r"^(model name|model)\s*: (.*)$", text, re.MULTILINE))
    if len(fields) < 2:
        return platform.processor() or "CPU"
    return f"{fields['model name']} (model {fields['model']})"


def command() -> str:
    """What was typed to run this benchmark."""
    module = pathlib.Path(sys.argv[0]).stem
    return shlex.join(["python", "-m", f"benchmarks.{module}", *sys.argv[1:]])


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
