r"""Draws the metrics of runs over their steps, as a PNG file with a panel for each metric.

Examples:
  bsq-jax plot runs/quickstart
  bsq-jax plot runs/a runs/b --metrics psnr,loss --out compared.png
  bsq-jax plot runs/a --metrics loss --series train --smooth 10

A run is its workdir; it may be training still. Each run has a color. Training is a thin line; with
--smooth N it is the mean over N logged steps before and after each, with the values behind it.
Evaluations are marked points: val_raw of the weights as they are, val_ema of their moving average.
docs/metrics.md says what the metrics mean.
"""

from __future__ import annotations

import argparse
import pathlib

from bsq_jax.cli.command import Command
from bsq_jax.cli.outputs import check_output_file, say
from bsq_jax.core.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``plot``."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="workdir of a run")
    parser.add_argument("--metrics", default="", help="names, such as psnr,loss (the usual ones)")
    parser.add_argument("--series", default="", help="of train, val_raw and val_ema (all)")
    parser.add_argument("--smooth", type=int, default=0, metavar="N", help="see above")
    parser.add_argument(
        "--scale",
        choices=("auto", "linear", "log"),
        default="auto",
        help="of the values (powers of ten where they span more than one)",
    )
    parser.add_argument(
        "--out", default="metrics.png", help="PNG file, which may exist (metrics.png)"
    )


def run(flags: argparse.Namespace) -> int:
    """Reads and draws."""
    from bsq_jax.cli.plotting import choice
    from bsq_jax.cli.plotting.runs import read_run, run_names

    check_output_file(flags.out, force=True, suffix=".png")
    if flags.smooth < 0:
        raise UserError(f"--smooth {flags.smooth}: it must be 0 or more")
    runs = [read_run(given) for given in dict.fromkeys(flags.runs)]
    names = run_names([run.path for run in runs])
    metrics = choice.choose(runs, flags.metrics)
    prefixes = choice.prefixes_of(runs, metrics, flags.series)
    for problem in (problem for run in runs for problem in run.problems):
        say(problem)

    from bsq_jax.media.curves import DISTINCT, Curve, Panel, curve_figure

    if len(runs) > DISTINCT:
        say(f"{len(runs)} runs: colors repeat after {DISTINCT}")
    panels = []
    for metric in metrics:
        curves = []
        for number, run in enumerate(runs):
            found = run.series.get(metric, {})
            shown = [prefix for prefix in prefixes if prefix in found]
            if not shown and flags.metrics:
                say(f"{names[number]} has no {metric}")
            for prefix in shown:
                points, train = found[prefix], prefix == "train"
                smooth = choice.smoothed(points, flags.smooth) if train else points
                behind = points if train and flags.smooth else None
                curves.append(Curve(number, prefix, smooth, behind))
        values = [value for curve in curves for value in curve.points.values()]
        logarithmic = flags.scale == "log" or (
            flags.scale == "auto" and choice.serves_logarithm(metric, values)
        )
        panels.append(Panel(choice.title(metric), curves, logarithmic))
    path = pathlib.Path(flags.out)
    curve_figure(path, panels, names, prefixes)
    say(f"figure: {path} ({', '.join(metrics)})")
    return 0


COMMAND = Command("draw the metrics of runs, also while they train", __doc__, add_arguments, run)
