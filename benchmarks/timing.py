"""Timing that can be compared: variants in turn within one run, medians, ratios."""

from __future__ import annotations

import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def in_turn(functions: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, float]:
    """Median seconds of each function; they alternate, so that a slow spell hits all alike.

    Each is called once before, to compile. What they return is waited for.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        jax.block_until_ready(function())
    for _ in range(runs):
        for name, function in functions.items():
            begin = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


def report(
    title: str, rows: list[dict[str, Any]], path: pathlib.Path | None, **settings: Any
) -> None:
    """Prints rows of equal keys as a table, and writes them with the machine's data as JSON."""
    print(f"{title} ({machine()})")
    cells = [list(rows[0])] + [[_text(value) for value in row.values()] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    if path is not None:
        result = {"title": title, "machine": machine(), "settings": settings, "rows": rows}
        path.write_text(json.dumps(result, indent=2) + "\n")


def machine() -> str:
    """Device, cores, Python and JAX of this run."""
    device = jax.devices()[0]
    return (
        f"{jax.device_count()} x {device.device_kind}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, jax {jax.__version__}"
    )


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
