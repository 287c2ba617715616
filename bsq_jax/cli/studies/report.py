"""What a study leaves: a table as text and in Markdown, and ``results.json``."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from bsq_jax.core.files import write_atomic
from bsq_jax.core.text import aligned

RESULTS, TABLE = "results.json", "table.md"


def mean_and_spread(values: Sequence[float], template: str = "{:.2f}") -> str:
    """The mean over seeds, and with several of them their standard deviation."""
    text = template.format(np.mean(values))
    return f"{text} +- {template.format(np.std(values, ddof=1))}" if len(values) > 1 else text


def text_table(rows: Sequence[Sequence[str]], left: int = 0) -> str:
    """Rows for a terminal, the first of them the titles; `left` columns are flush left."""
    return "\n".join(aligned(rows, left))


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """The same rows in Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def save(workdir: pathlib.Path, results: Any, rows: Sequence[Sequence[str]]) -> pathlib.Path:
    """Writes `RESULTS` and, in Markdown, `TABLE`.

    Returns:
      The path of the results.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    record = workdir / RESULTS
    write_atomic(record, (json.dumps(results, indent=2) + "\n").encode())
    write_atomic(workdir / TABLE, (markdown_table(rows) + "\n").encode())
    return record


def size(count: float) -> str:
    """A number of bytes, with a unit such that few digits tell it."""
    for unit, bytes_ in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if count >= bytes_:
            return f"{count / bytes_:,.1f} {unit}"
    return f"{count / 2**10:,.1f} KiB"
