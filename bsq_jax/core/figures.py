"""Figures: lines through points, as PNG files."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence


def line_figure(
    path: pathlib.Path,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x: str,
    y: str,
    logarithmic: bool = False,
) -> None:
    """Draws named lines through points and saves them as a PNG file.

    Args:
      path: where to.
      lines: points ``(x, y)`` by name.
      x: what the horizontal axis shows.
      y: what the vertical axis shows.
      logarithmic: horizontal axis in powers of two, a tick at every point.
    """
    # The object interface: no global state, no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for (name, points), marker in zip(lines.items(), "os^Dvx*" * len(lines), strict=False):
        axes.plot(*zip(*points, strict=True), marker=marker, label=name)
    if logarithmic:
        places = sorted({place for points in lines.values() for place, _ in points})
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
