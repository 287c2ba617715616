"""Figures of what was measured over the steps of runs, as PNG files."""

from __future__ import annotations

import dataclasses
import io
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bsq_jax.core.files import write_atomic
from bsq_jax.media.figures import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of the runs: those of the other figures, then some of Tol's muted scheme (SRON/EPS/TN/09-002).
_COLORS = (*COLORS, "#882255", "#999933", "#44AA99", "#7F7F7F", "#332288", "#661100")
DISTINCT = len(_COLORS)
# Of the groups, in their order: the first is drawn densely and has no markers.
_MARKERS = ("", "o", "s", "^", "D", "v")
_STYLES = ("-", "-", "--", ":", "-.", (0, (5, 1)))
_LEGEND: dict[str, Any] = {"fontsize": 9, "frameon": False}
_COLUMNS = 3  # of panels, at most
_NAME = 60  # letters of a run's name in the legend, at most


@dataclasses.dataclass(frozen=True)
class Curve:
    """A line of a panel.

    Attributes:
      run: number of its run, which has the color.
      group: such as ``train``, which has the style.
      points: value by step, in order; NaN leave a gap.
      behind: drawn faintly behind it; None: nothing.
    """

    run: int
    group: str
    points: Mapping[int, float]
    behind: Mapping[int, float] | None = None


@dataclasses.dataclass(frozen=True)
class Panel:
    """The curves of one quantity, over steps.

    Attributes:
      title: what it is.
      curves: in the order in which they are drawn.
      logarithmic: whether values are in powers of ten.
    """

    title: str
    curves: Sequence[Curve]
    logarithmic: bool = False


def curve_figure(
    path: pathlib.Path, panels: Sequence[Panel], runs: Sequence[str], groups: Sequence[str]
) -> None:
    """Draws panels in rows of three, between a legend of groups and one of runs.

    Args:
      path: the file; it is replaced as a whole.
      panels: at least one.
      runs: their names, by number.
      groups: those of the curves; ``train``, if it is there, has thin lines without markers.
    """
    # The object interface: no global state, no display.
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = min(len(panels), _COLUMNS if len(panels) != 4 else 2)
    rows = -(-len(panels) // columns)
    width = max(4.6 * columns, 6.4)
    entries = max(1, int(width / (0.7 + 0.085 * max(len(_short(name)) for name in runs))))
    size = (width, 3.2 * rows + 0.25 * -(-len(runs) // entries) + 0.4)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    order = sorted(groups, key=lambda group: group != "train")
    styles = {group: number + ("train" not in groups) for number, group in enumerate(order)}
    last = max((step for panel in panels for c in panel.curves for step in c.points), default=1)
    for axes, panel in zip(grid.flat, panels, strict=False):
        for curve in panel.curves:
            _draw(axes, curve, styles[curve.group])
        axes.set_title(panel.title, fontsize=11)
        if panel.logarithmic:
            _powers_of_ten(axes)
        else:
            _not_too_narrow(axes)
        axes.set_xlabel("step", fontsize=9)
        axes.set_xlim(-0.03 * last, 1.03 * last)
        axes.xaxis.set_major_formatter(lambda step, _: _step(step))
        axes.xaxis.get_major_locator().set_params(nbins=6, integer=True)
        axes.tick_params(labelsize=9)
        axes.grid(alpha=0.3, linewidth=0.5, which="both" if panel.logarithmic else "major")
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    names = [_short(name) for name in runs]
    if len(groups) == 1:  # which needs no legend of its own
        names = [f"{name} ({groups[0]})" for name in names]
    else:
        looks = [Line2D([], [], color="0.3", label=g, **_style(styles[g])) for g in order]
        figure.legend(handles=looks, loc="outside upper center", ncols=len(looks), **_LEGEND)
    colors = [
        Line2D([], [], color=_color(number), linewidth=3, label=name)
        for number, name in enumerate(names)
    ]
    ncols = min(len(colors), entries)
    figure.legend(handles=colors, loc="outside lower center", ncols=ncols, **_LEGEND)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    write_atomic(path, file.getvalue())


def _draw(axes: Axes, curve: Curve, style: int) -> None:
    """A curve, and what is behind it."""
    color = _color(curve.run)
    if curve.behind is not None:
        axes.plot(
            list(curve.behind), list(curve.behind.values()), color=color, alpha=0.25, linewidth=0.8
        )
    steps, values = list(curve.points), list(curve.points.values())
    look = _style(style)
    if sum(map(math.isfinite, values)) == 1:
        look["marker"] = look["marker"] or "."  # a line of one point would not be seen
    axes.plot(steps, values, color=color, zorder=3 + style, **look)


def _style(number: int) -> dict[str, Any]:
    """How a group's lines are drawn."""
    return {
        "linestyle": _STYLES[number % len(_STYLES)],
        "linewidth": 1.1 if number == 0 else 1.3,
        "marker": _MARKERS[number % len(_MARKERS)],
        "markersize": 4,
        "markerfacecolor": None if number < 2 else "white",
    }


def _not_too_narrow(axes: Axes) -> None:
    """At least a hundredth of the values on the axis: less is noise that looks like a trend."""
    low, high = axes.get_ylim()
    least = 0.01 * max(abs(low), abs(high))
    if high - low < least:
        middle = (low + high) / 2
        axes.set_ylim(middle - least / 2, middle + least / 2)


def _powers_of_ten(axes: Axes) -> None:
    """A logarithmic axis with at least some labels."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log", nonpositive="mask")
    low, high = axes.get_ylim()
    subs = (1, 2, 5) if high < 300 * low else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _step(step: float) -> str:
    """A number of steps in few letters: ``500``, ``20k``, ``1.5M``."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if abs(step) >= 10 * unit or (abs(step) >= unit and step % (unit / 10) == 0):
            return f"{step / unit:g}{letter}"
    return f"{step:g}"


def _color(number: int) -> str:
    """Of a run; they repeat after `DISTINCT`."""
    return _COLORS[number % DISTINCT]


def _short(name: str) -> str:
    """A name that is not long: its end tells runs apart best."""
    return name if len(name) <= _NAME else f"...{name[3 - _NAME :]}"
