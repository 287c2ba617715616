"""Trains the points of the study of vocabularies, and puts them side by side."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bsq_jax.cli.studies.report import mean_and_spread, save, size, text_table
from bsq_jax.cli.studies.trained import Limits, outcome
from bsq_jax.cli.studies.vocabulary.points import MOST_CODES, Point, point_config
from bsq_jax.media.figures import panel_figure

FIGURE = "vocabulary.png"
_PLANNED = (MOST_CODES // 16, MOST_CODES)  # codebooks that larger ones are estimated from

Row = dict[str, Any]


def study(
    workdir: pathlib.Path,
    points: Sequence[Point],
    steps: int,
    overrides: Sequence[str],
    limits: Limits,
) -> str:
    """Trains and measures; writes results, table and figure into `workdir`.

    Args:
      workdir: of the study.
      points: what is trained.
      steps: of each training.
      overrides: settings of all models, see `point_config`.
      limits: of each training.

    Returns:
      What to print at the end.

    Raises:
      UserError: a setting is wrong, or the data cannot be read.
    """
    # All of them first, so that a wrong setting is told at once.
    configs = {point: point_config(point, steps, overrides) for point in points}
    rows = []
    for number, (point, config) in enumerate(configs.items(), 1):
        folder = workdir / f"{point.kind}_{point.bits}_{point.seed}"
        if point.learned and point.codes > MOST_CODES:
            found = _beyond(point, steps, overrides, workdir, limits)
        else:
            found = outcome(config, folder, limits)
        rows.append({**point._asdict(), "codes": point.codes, **found})
        print(f"{number} of {len(points)}: {config.name}: {found['status']}", flush=True)
    add_estimated_times(rows)
    cells = table_rows(rows)
    record = save(workdir, rows, cells)
    draw(workdir / FIGURE, rows)
    return (
        f"{steps} steps each, averaged weights; ~: estimated\n{text_table(cells, 2)}\n"
        f"report: {record}\npicture: {workdir / FIGURE}"
    )


def _beyond(
    point: Point, steps: int, overrides: Sequence[str], workdir: pathlib.Path, limits: Limits
) -> Row:
    """What a codebook too large to be declared would need, from the plans of two smaller ones."""
    planned = []
    for codes in _PLANNED:
        config = point_config(point, steps, overrides, codes)
        folder = workdir / f"{point.kind}_plan_{codes}_{point.seed}"
        everything = Limits(limits.seconds, float("inf"))
        planned.append(outcome(config, folder, everything, trains=False))
    needs = {
        key: int(extrapolated(_PLANNED, [plan[key] for plan in planned], point.codes))
        for key in ("parameters", "step_bytes")
    }
    return {"status": f"too large: {point.codes:.1e} codes", "estimated": list(needs), **needs}


def extrapolated(places: Sequence[float], values: Sequence[float], place: float) -> float:
    """The value at `place` of the line through the last two points."""
    (x0, x1), (y0, y1) = places[-2:], values[-2:]
    return y0 + (y1 - y0) * (place - x0) / (x1 - x0)


def add_estimated_times(rows: Sequence[Row]) -> None:
    """Adds ``ms`` where a codebook's training gave none: the time of a search is linear in codes.

    From the two largest codebooks of the kind that were timed; nothing without two of them.
    """
    for row in rows:
        if "ms" in row or not row["kind"].startswith("vq"):
            continue
        timed = sorted(
            (other["codes"], other["ms"])
            for other in rows
            if other["kind"] == row["kind"]
            and other["seed"] == row["seed"]
            and "ms" not in other.get("estimated", ())
            and "ms" in other
        )
        if len(timed) > 1:
            places, values = zip(*timed, strict=True)
            row["ms"] = max(extrapolated(places, values, row["codes"]), values[-1])
            row["estimated"] = [*row.get("estimated", ()), "ms"]


def _groups(rows: Sequence[Row]) -> dict[tuple[str, int], list[Row]]:
    """Rows by kind and codes: the seeds of a point together."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["kind"], row["codes"]), []).append(row)
    return groups


def _metric(row: Row, key: str) -> float | None:
    return row.get("results", {}).get(key)


_COLUMNS: Mapping[str, tuple[Callable[[Row], float | None], str]] = {
    "PSNR (dB)": (lambda row: _metric(row, "psnr"), "{:.2f}"),
    "LPIPS": (lambda row: _metric(row, "lpips"), "{:.4f}"),
    "codes used": (lambda row: _metric(row, "codes_used"), "{:,.0f}"),
    "usage": (lambda row: _metric(row, "usage"), "{:.1%}"),
    "ms a step": (lambda row: row.get("ms"), "{:,.0f}"),
}


def table_rows(rows: Sequence[Row]) -> list[list[str]]:
    """The table's cells: titles, then a row a kind and size, mean over seeds."""
    cells = [["quantizer", "codes", *_COLUMNS, "a step's memory", "of the process", "outcome"]]
    for (kind, codes), group in _groups(rows).items():
        line = [kind, f"2^{codes.bit_length() - 1}" if codes & (codes - 1) == 0 else f"{codes:,d}"]
        for value, template in _COLUMNS.values():
            line.append(_text([value(row) for row in group], template))
        if "ms" in group[0].get("estimated", ()):
            line[-1] = f"~{line[-1]}"
        for key in ("step_bytes", "process_bytes"):
            known = [row[key] for row in group if key in row]
            about = "~" if key in group[0].get("estimated", ()) else ""
            line.append(about + size(max(known)) if known else "-")
        line.append("; ".join(dict.fromkeys(row["status"] for row in group)))
        cells.append(line)
    return cells


def _text(values: Sequence[float | None], template: str) -> str:
    known = [value for value in values if value is not None]
    return mean_and_spread(known, template) if known else "-"


def draw(path: pathlib.Path, rows: Sequence[Row]) -> None:
    """Draws what was measured over the bits of a code, log2 of their number."""
    wanted = ("PSNR (dB)", "LPIPS", "ms a step")
    measures = {title: _COLUMNS[title][0] for title in wanted}
    measures["memory of a step (MiB)"] = lambda row: row.get("step_bytes", 0) / 2**20
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for title, value in measures.items():
        lines: dict[str, list[tuple[float, float]]] = {}
        for (kind, codes), group in _groups(rows).items():
            found = [value(row) for row in group if row["status"] == "done"]
            known = [each for each in found if each is not None]
            if known:
                lines.setdefault(kind, []).append((float(np.log2(codes)), float(np.mean(known))))
        if lines:
            panels[title] = lines
    if panels:
        bold = dict.fromkeys(row["kind"] for row in rows)
        panel_figure(path, panels, x="bits a token", bold=list(bold))
