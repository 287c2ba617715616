"""Reports of evaluations as text for a terminal: what the tables of all kinds of models share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bsq_jax.core.text import aligned
from bsq_jax.evaluation.metric import Row


def value_lines(
    rows: Sequence[Row], columns: Mapping[str, Mapping[str, Any]], *, heading: str = "", k: int = 0
) -> list[str]:
    """A table with a column for each set of values.

    Args:
      rows: the lines; one that no column has a value for is left out.
      columns: values by key, by the title of the column; "-" where a value is missing.
      heading: above the titles of the lines.
      k: number of neighbours, for the titles that name it.
    """
    cells = [[heading, *columns]]
    for key, title, template in rows:
        found = [values.get(key) for values in columns.values()]
        if any(value is not None for value in found):
            shown = ["-" if value is None else template.format(value) for value in found]
            cells.append([title.format(k=k), *shown])
    lines = aligned(cells)
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def unreadable_lines(names: Sequence[str]) -> list[str]:
    """A line that names the records that could not be read, if there are any."""
    return [f"unreadable and left out: {', '.join(names)}"] if names else []
