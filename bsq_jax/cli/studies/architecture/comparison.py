"""Trains the points of the study of architectures, and puts them side by side."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bsq_jax.cli.studies.architecture.points import BASE, Point, point_config
from bsq_jax.cli.studies.report import mean_and_spread, save, text_table
from bsq_jax.cli.studies.trained import Limits, outcome
from bsq_jax.media.figures import panel_figure
from bsq_jax.training.useful_flops import picture_cost

FLOPS_FIGURE, PARAMETERS_FIGURE = "architecture_flops.png", "architecture_parameters.png"

Row = dict[str, Any]


def study(
    workdir: pathlib.Path,
    points: Sequence[Point],
    steps: int,
    overrides: Sequence[str],
    limits: Limits,
) -> str:
    """Trains and measures; writes results, table and figures into `workdir`.

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
    rows: list[Row] = []
    for number, (point, config) in enumerate(configs.items(), 1):
        row = {**point._asdict(), "title": point.title, **picture_cost(config)._asdict()}
        found = outcome(config, workdir / _folder(point), limits)
        if "ms" in found:
            row["pictures_per_second"] = 1e3 * config.train.batch_size / found["ms"]
        rows.append({**row, **found})
        print(f"{number} of {len(points)}: {config.name}: {found['status']}", flush=True)
    cells = table_rows(rows)
    record = save(workdir, rows, cells)
    draw(workdir / FLOPS_FIGURE, rows, flops_of, x="GFLOPs a picture")
    draw(workdir / PARAMETERS_FIGURE, rows, parameters_of, x="parameters (millions)")
    return (
        f"{steps} steps each, averaged weights; FLOPs of encoding and decoding a picture\n"
        f"{text_table(cells, 1)}\nreport: {record}\n"
        f"pictures: {workdir / FLOPS_FIGURE}, {workdir / PARAMETERS_FIGURE}"
    )


def _folder(point: Point) -> str:
    """Of a training; one of the same network has the same, whatever the base is."""
    layers = f"{point.encoder}+{point.decoder}"
    return f"width{point.width}_layers{layers}_heads{point.heads}_{point.seed}"


def flops_of(row: Row) -> float:
    """GFLOPs of encoding and decoding a picture."""
    return float(row["encode_flops"] + row["decode_flops"]) / 1e9


def parameters_of(row: Row) -> float:
    """Millions of parameters."""
    return float(row["parameters"]) / 1e6


def _metric(key: str) -> Callable[[Row], float | None]:
    return lambda row: row.get("results", {}).get(key)


_QUALITY: Mapping[str, tuple[Callable[[Row], float | None], str]] = {
    "PSNR (dB)": (_metric("psnr"), "{:.2f}"),
    "SSIM": (_metric("ssim"), "{:.4f}"),
    "LPIPS": (_metric("lpips"), "{:.4f}"),
}
_MEASURED = {
    **_QUALITY,
    "pictures a second": (lambda row: row.get("pictures_per_second"), "{:.1f}"),
}


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by what is changed: the seeds together."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["title"], []).append(row)
    return groups


def table_rows(rows: Sequence[Row]) -> list[list[str]]:
    """The table's cells: titles, then a row a network, mean over seeds.

    Pictures a second are those of training, with the machine as busy as it was.
    """
    sizes = ["width", "layers", "heads", "parameters", "GFLOPs (encoder + decoder)"]
    cells = [["change", *sizes, *_MEASURED, "outcome"]]
    for title, group in _groups(rows).items():
        first = group[0]
        line = [title, str(first["width"]), f"{first['encoder']}+{first['decoder']}"]
        line += [str(first["heads"]), f"{parameters_of(first):.2f}M"]
        line.append(f"{first['encode_flops'] / 1e9:.3f} + {first['decode_flops'] / 1e9:.3f}")
        for value, template in _MEASURED.values():
            known = [found for row in group if (found := value(row)) is not None]
            line.append(mean_and_spread(known, template) if known else "-")
        line.append("; ".join(dict.fromkeys(row["status"] for row in group)))
        cells.append(line)
    return cells


def _lines_of(row: Row, base: Row) -> list[str]:
    """The lines of the figure that a network is a point of."""
    if row["change"] == BASE:
        return list(_LINES)
    if row["change"] != "halves":
        return [row["change"]]
    if row["encoder"] == base["encoder"]:
        return ["decoder alone"]
    if row["decoder"] == base["decoder"]:
        return ["encoder alone"]
    whole = base["encoder"] + base["decoder"]
    return ["layers moved" if row["encoder"] + row["decoder"] == whole else "other halves"]


_LINES = ("width", "layers", "heads", "decoder alone", "encoder alone", "layers moved")


def draw(path: pathlib.Path, rows: Sequence[Row], place: Callable[[Row], float], *, x: str) -> None:
    """Draws quality, a panel a metric; lines are changes of one kind, through the base."""
    base = next(row for row in rows if row["change"] == BASE)
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for title, (value, _) in _QUALITY.items():
        lines: dict[str, list[tuple[float, float]]] = {}
        for group in _groups(rows).values():
            known = [found for row in group if (found := value(row)) is not None]
            for name in _lines_of(group[0], base) if known else ():
                lines.setdefault(name, []).append((place(group[0]), float(np.mean(known))))
        lines = {name: through for name, through in lines.items() if len(through) > 1}
        if lines:
            panels[title] = lines
    if panels:
        panel_figure(path, panels, x=x, logarithmic=True, bold=_LINES[:2])
