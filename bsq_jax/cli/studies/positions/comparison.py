"""Trains the models of the study of positions, and measures each on clips of all lengths."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from bsq_jax.cli.studies.measured import frame_psnr, measured
from bsq_jax.cli.studies.report import mean_and_spread, save, text_table
from bsq_jax.cli.studies.settings import muon_config, refuse, set_values
from bsq_jax.config import finalize
from bsq_jax.core.errors import UserError
from bsq_jax.data.eval_pipeline import eval_batches
from bsq_jax.data.factory import make_data_config
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.media.figures import panel_figure
from bsq_jax.models.positions import check_length

FIGURE = "positions.png"
_CHOSEN = {
    "model.positions": "use --kinds",
    "model.window": "use --windows",
    "model.frames": "use --frames",
    "data.frames": "use --frames and --longest",
}

Row = dict[str, Any]


class Point(NamedTuple):
    """One training.

    Attributes:
      kind: of positions.
      window: frames that a token sees, its own included; 0: all up to its own.
      seed: of parameters, data order and augmentation.
    """

    kind: str
    window: int
    seed: int


def point_config(point: Point, frames: int, steps: int, overrides: Sequence[str]) -> ConfigDict:
    """The config of a training.

    Args:
      point: which one.
      frames: of its clips.
      steps: training steps.
      overrides: settings of all models, each ``KEY=VALUE``.

    Raises:
      UserError: an override is wrong, or of what the point and `frames` say.
    """
    refuse(overrides, _CHOSEN)
    config = muon_config(steps, point.seed)
    config.name = f"{point.kind}, {_sees(point.window)}, seed {point.seed}"
    config.data.update(
        source="motion",
        resize=0,
        eval_resize=144,  # of its frames: crops have the scale of training
        eval_clips=2,
        filter="bilinear",
        threads=1,
        cache_mb=512,
    )
    config.train.update(batch_size=8, log_every=max(1, min(50, steps // 4)))
    config.eval.update(batch_size=8, pictures=3, lpips=False)
    set_values(config, overrides)
    config.model.update(frames=frames, positions=point.kind, window=point.window)
    return finalize(config)


def lengths(frames: int, longest: int) -> list[int]:
    """The lengths that are measured: powers of two, the trained one and the longest."""
    return sorted({2**power for power in range(longest.bit_length())} | {frames, longest})


def has_positions(kind: str, length: int, frames: int) -> bool:
    """Whether a model of clips of so many `frames` has positions for clips of some length."""
    try:
        check_length(kind, length - 1, frames)
    except UserError:
        return False
    return True


def measure(config: ConfigDict, longest: int, tokenizer: Tokenizer) -> Row:
    """Quality on the beginnings of the same validation clips.

    Args:
      config: of the training; says which clips.
      longest: frames of the longest clip.
      tokenizer: the model.

    Returns:
      ``psnr``, mean in dB over the frames of all clips, by their length, None where the model has
      no positions; and ``per_frame``, mean over the longest clips that it takes, by frame.

    Raises:
      UserError: there is no validation clip of so many frames.
    """
    data = dataclasses.replace(make_data_config(config), frames=longest)
    wanted = lengths(config.model.frames, longest)
    kind, trained = config.model.positions, config.model.frames
    values: dict[int, list[np.ndarray]] = {
        length: [] for length in wanted if has_positions(kind, length, trained)
    }
    for batch in eval_batches(
        data, global_batch=config.eval.batch_size, shard_index=0, shard_count=1
    ):
        clips = batch["pixels"][(batch["mask"] > 0) & (batch["frames"] == longest)]
        for length, found in values.items():
            part = clips[:, :length]
            if len(part):
                found.append(frame_psnr(part, tokenizer.reconstruct(part, dtype="uint8")))
    if not values[1]:
        raise UserError(
            f"{data.val_source or data.source} has no validation clip of {longest} frames: choose "
            "fewer with --longest, or another source"
        )
    of_frames = {length: np.concatenate(found).mean(axis=0) for length, found in values.items()}
    means = {length: float(found.mean()) for length, found in of_frames.items()}
    return {
        "psnr": {str(length): means.get(length) for length in wanted},
        "per_frame": of_frames[max(of_frames)].tolist(),
    }


def table_rows(rows: Sequence[Row], frames: int) -> list[list[str]]:
    """The table's cells: titles, then a row a model, mean over seeds; `frames` are the trained."""
    columns = list(rows[0]["psnr"])
    trained = [f"{name} (trained)" if int(name) == frames else name for name in columns]
    cells = [["positions", "a token sees", *trained]]
    for (kind, window), group in _groups(rows).items():
        line = [kind, _sees(window)]
        for name in columns:
            known = [row["psnr"][name] for row in group]
            line.append("none" if None in known else mean_and_spread(known))
        cells.append(line)
    return cells


def _groups(rows: Sequence[Row]) -> dict[tuple[str, int], list[Row]]:
    """Rows by positions and window: the seeds together."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["kind"], row["window"]), []).append(row)
    return groups


def _sees(window: int) -> str:
    if window == 0:
        return "all frames before"
    return "its own frame" if window == 1 else f"{window} frames"


def draw(path: pathlib.Path, rows: Sequence[Row], frames: int) -> None:
    """Draws PSNR over the index of the frame, a panel a window and a line a kind.

    Args:
      path: of the figure.
      rows: of the trainings.
      frames: of the clips of the training.
    """
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for (kind, window), group in _groups(rows).items():
        panel = panels.setdefault(
            f"PSNR (dB), {f'window of {window}' if window else 'no window'}", {}
        )
        means = np.mean([row["per_frame"] for row in group], axis=0)
        panel[kind] = [(number, float(mean)) for number, mean in enumerate(means, 1)]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    ticks = {float(length): length for length in rows[0]["psnr"]}
    x = f"frame of the clip (trained: 1 to {frames})"
    panel_figure(path, panels, x=x, bold=kinds, same_y=True, ticks=ticks)


def study(
    workdir: pathlib.Path,
    points: Sequence[Point],
    *,
    frames: int,
    longest: int,
    steps: int,
    overrides: Sequence[str],
) -> str:
    """Trains and measures; writes results, table and figure into `workdir`.

    Args:
      workdir: of the study.
      points: what is trained.
      frames: of the clips of the training.
      longest: of the longest clips of the evaluation.
      steps: of each training.
      overrides: see `point_config`.

    Returns:
      What to print at the end.

    Raises:
      UserError: a setting is wrong, or the data cannot be read.
    """
    # All of them first, so that a wrong setting is told at once.
    configs = {point: point_config(point, frames, steps, overrides) for point in points}
    rows: list[Row] = []
    for number, (point, config) in enumerate(configs.items(), 1):
        print(f"{number} of {len(points)}: {config.name}", flush=True)
        folder = workdir / f"{point.kind}_{point.window}_{point.seed}"
        found = measured(
            config, folder, functools.partial(measure, config, longest), longest=longest
        )
        rows.append({**point._asdict(), **found})
    cells = table_rows(rows, frames)
    record = save(workdir, rows, cells)
    draw(workdir / FIGURE, rows, frames)
    return (
        f"PSNR (dB) by frames of the clip, {steps} steps each on clips of {frames}, averaged "
        "weights; none: there are no learned positions for clips longer than those of the "
        f"training\n{text_table(cells, 2)}\nreport: {record}\npicture: {workdir / FIGURE}"
    )
