"""Figures: lines through points, and dots, as PNG files."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Collection, Mapping, Sequence

from bsq_jax.core.files import write_atomic

# Colors that color-blind readers can distinguish (Okabe and Ito 2008); markers serve gray print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "os^Dvx*P<>"


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
      path: the file.
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


def panel_figure(
    path: pathlib.Path,
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    *,
    x: str,
    logarithmic: bool = False,
    bold: Collection[str] = (),
    same_y: bool = False,
    ticks: Mapping[float, str] | None = None,
) -> None:
    """Draws panels side by side over one legend, for a paper: PNG of 300 dots per inch.

    Args:
      path: the file; it is replaced as a whole.
      panels: by what the vertical axis shows, points ``(x, y)`` by name of the line; a name has the
        same color and marker in all panels.
      x: what the horizontal axis shows.
      logarithmic: horizontal axis in powers of ten.
      bold: names of the lines to stress; the others are dashed and thinner.
      same_y: whether the vertical axes of all panels have one range.
      ticks: places on the horizontal axis and their labels; None: chosen by Matplotlib.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    figure = Figure(figsize=(3.3 * len(panels), 3.3), dpi=300, layout="constrained")
    shown = {}
    row = figure.subplots(1, len(panels), squeeze=False, sharey=same_y)[0]
    for axes, (y, lines) in zip(row, panels.items(), strict=True):
        for name, points in lines.items():
            number = names.index(name)
            (shown[name],) = axes.plot(
                *zip(*sorted(points), strict=True),
                color=COLORS[number % len(COLORS)],
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=4,
                linestyle="-" if name in bold else "--",
                linewidth=1.6 if name in bold else 1.0,
                zorder=3 if name in bold else 2,
            )
        if logarithmic:
            axes.set_xscale("log")
            low, high = axes.get_xlim()
            subs = (1, 2, 5) if high < 100 * low else (1,)
            axes.xaxis.set_major_locator(LogLocator(subs=subs))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        if ticks is not None:
            axes.set_xticks(list(ticks), list(ticks.values()))
            axes.set_xticks([], minor=True)
        axes.set_xlabel(x, fontsize=9)
        axes.set_ylabel(y, fontsize=9)
        axes.tick_params(labelsize=8, which="both", labelleft=True)
        axes.grid(alpha=0.3, linewidth=0.5, which="both" if logarithmic else "major")
    figure.legend(
        [shown[name] for name in names],
        names,
        loc="outside lower center",
        ncols=min(len(names), 2 * len(panels)),
        fontsize=8,
        frameon=False,
    )
    file = io.BytesIO()
    figure.savefig(file, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, file.getvalue())


def dot_figure(
    path: pathlib.Path, panels: Mapping[str, Mapping[str, float]], *, reference: str
) -> None:
    """Draws named values as dots, a row a name, in panels side by side: PNG of 300 dots per inch.

    Args:
      path: the file; it is replaced as a whole.
      panels: by what the horizontal axis shows, values by name; the first one on top.
      reference: the name whose values the others are compared with, by a line.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for values in panels.values() for name in values))
    size = (1.2 + 2.3 * len(panels), 0.9 + 0.26 * len(names))
    figure = Figure(figsize=size, dpi=300, layout="constrained")
    row = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (title, values) in zip(row, panels.items(), strict=True):
        if reference in values:
            axes.axvline(values[reference], color="0.5", linewidth=0.8, zorder=1)
        for name, value in values.items():
            own = name == reference
            color, marker = COLORS[1 if own else 0], "s" if own else "o"
            axes.plot(value, names.index(name), marker, color=color, markersize=5)
        axes.set_xlabel(title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.locator_params(axis="x", nbins=4)
        axes.grid(alpha=0.3, linewidth=0.5)
    row[0].set_yticks(range(len(names)), names)
    row[0].set_ylim(len(names) - 0.5, -0.5)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, file.getvalue())
