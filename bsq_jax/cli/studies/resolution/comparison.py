"""Trains the models of the study of resolutions, and measures each at all sizes."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from bsq_jax.cli.studies.measured import frame_psnr, measured
from bsq_jax.cli.studies.report import mean_and_spread, save, text_table
from bsq_jax.cli.studies.resolution.shapes import Shape, shapes
from bsq_jax.cli.studies.settings import muon_config, refuse, set_values
from bsq_jax.config import finalize
from bsq_jax.core.errors import UserError
from bsq_jax.data.eval_pipeline import eval_batches
from bsq_jax.data.factory import make_data_config
from bsq_jax.data.mixed_sizes import batch_shapes, open_sizes
from bsq_jax.data.settings import DataConfig
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.media.figures import panel_figure

FIGURE, ASPECTS_FIGURE = "resolution.png", "aspect_ratios.png"

# Kind of positions, and whether attention stays within windows, by model.
KINDS: Mapping[str, tuple[str, bool]] = {
    "learned": ("learned", False),
    "sincos": ("sincos", False),
    "rotary": ("rotary", False),
    "windows-learned": ("window", True),
    "windows-sincos": ("sincos", True),
}
_CHOSEN = {
    "model.positions": "use --models",
    "model.spatial_window": "use --window",
    "data.eval_crop": "each picture is measured as a whole",
}
_COVER = 4  # short side of a training picture over that of its crop, and range of the crop's scale

Row = dict[str, Any]


class Point(NamedTuple):
    """One training.

    Attributes:
      model: one of `KINDS`.
      training: ``one`` size, or ``mixed`` sizes.
      seed: of parameters, data order and augmentation.
    """

    model: str
    training: str
    seed: int


def point_config(point: Point, steps: int, window: int, overrides: Sequence[str]) -> ConfigDict:
    """The config of a training.

    Args:
      point: which one.
      steps: training steps.
      window: side in tokens of the windows, for models with windows.
      overrides: settings of all models, each ``KEY=VALUE``; ``data.sizes`` is that of the mixed
        trainings.

    Raises:
      UserError: an override is wrong or of what the point says, or the size to train at is no
        square.
    """
    refuse(overrides, _CHOSEN)
    config = muon_config(steps, point.seed)
    set_values(config, overrides)  # for the size, that the data is laid out for
    side, width = config.model.image_size
    if side != width:
        raise UserError(
            f"model.image_size is {side}x{width}: this study compares sizes with a square, give "
            "one side, such as --set model.image_size=64"
        )
    positions, in_windows = KINDS[point.model]
    config.name = f"{point.model}, {_at(point.training, f'{side}x{side}')}, seed {point.seed}"
    config.data.update(
        source="photos",
        resize=_COVER * side,
        scale=(1.0, float(_COVER)),
        permute_channels=0.5,
        filter="bilinear",
        eval_resize=side,
        threads=1,
        cache_mb=512,
    )
    config.train.update(batch_size=16, log_every=max(1, min(50, steps // 4)))
    config.eval.update(batch_size=16, pictures=3, lpips=False)
    set_values(config, overrides)
    config.model.positions = positions
    config.model.spatial_window = window if in_windows else 0
    if point.training == "one":
        config.data.sizes = ()
    else:
        config.data.sizes = config.data.sizes or tuple(shape.name for shape in _shapes(config))
        config.data.eval_crop = "bucket"
    return finalize(config)


def _at(training: str, size: str) -> str:
    """What a model was trained at."""
    return size if training == "one" else "mixed sizes"


def _shapes(config: ConfigDict) -> list[Shape]:
    patch = config.model.patch_size
    return shapes(config.model.image_size[0], (patch, patch) if isinstance(patch, int) else patch)


def measure(config: ConfigDict, tokenizer: Tokenizer) -> Row:
    """Quality on the validation pictures, each as a whole resized to each size.

    What is left over along one axis is cut off, see `bsq_jax.data.size_buckets`.

    Args:
      config: of the training; says which pictures.
      tokenizer: the model.

    Returns:
      ``psnr``, mean over the pictures of each one's in dB, by the name of the size; ``trained``,
      names of the sizes that its training had; and ``pictures``, how many were measured.

    Raises:
      UserError: there is no picture that can be read.
    """
    data = make_data_config(config)
    trained = [data.crop]
    if data.sizes:
        trained = [(height, width) for _, height, width in batch_shapes(data, open_sizes(data))]
    psnr, count = {}, 0
    for shape in _shapes(config):
        found = picture_psnr(at_size(data, shape.size), config.eval.batch_size, tokenizer)
        psnr[shape.name], count = float(np.mean(found)), len(found)
    return {"psnr": psnr, "trained": [f"{h}x{w}" for h, w in trained], "pictures": count}


def at_size(data: DataConfig, size: tuple[int, int]) -> DataConfig:
    """The validation pictures, each resized until it covers the size, and cropped to it."""
    return dataclasses.replace(data, sizes=(size,), eval_crop="bucket")


def picture_psnr(data: DataConfig, batch_size: int, tokenizer: Tokenizer) -> list[float]:
    """PSNR of each frame of the validation pictures in dB.

    Raises:
      UserError: there is none that can be read.
    """
    values: list[float] = []
    for batch in eval_batches(data, global_batch=batch_size, shard_index=0, shard_count=1):
        pixels = batch["pixels"][batch["mask"] > 0]
        if len(pixels):
            made = tokenizer.reconstruct(pixels, dtype="uint8")
            values += list(frame_psnr(pixels, made).ravel())
    if not values:
        raise UserError(f"{data.val_source or data.source} has no validation picture to be read")
    return values


def table_rows(rows: Sequence[Row], columns: Sequence[Shape]) -> list[list[str]]:
    """The table's cells: titles, then a row a model and training, mean over seeds.

    PSNR at a size that the model was trained at has a star.
    """
    cells = [["model", "trained at", *(shape.title for shape in columns)]]
    for (model, training), group in _groups(rows).items():
        line = [model, _at(training, group[0]["trained"][0])]
        for shape in columns:
            text = mean_and_spread([row["psnr"][shape.name] for row in group])
            line.append(text + ("*" if shape.name in group[0]["trained"] else ""))
        cells.append(line)
    return cells


def _groups(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by model and training: the seeds together."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["training"]), []).append(row)
    return groups


def draw(
    path: pathlib.Path, rows: Sequence[Row], places: Mapping[str, tuple[float, str]], *, x: str
) -> None:
    """Draws PSNR, a panel a training and a line a model; those with windows are dashed.

    Args:
      path: of the figure.
      rows: of the trainings.
      places: by the names of the sizes to draw, where on the horizontal axis, and the label there.
      x: what that shows.
    """
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for (model, training), group in _groups(rows).items():
        at = _at(training, group[0]["trained"][0])
        panel = panels.setdefault(f"PSNR (dB), trained at {at}", {})
        panel[model] = [
            (place, float(np.mean([row["psnr"][name] for row in group])))
            for name, (place, _) in places.items()
        ]
    whole = [model for model, (_, in_windows) in KINDS.items() if not in_windows]
    ticks = dict(places.values())
    panel_figure(path, panels, x=x, bold=whole, same_y=True, ticks=ticks)


def study(
    workdir: pathlib.Path,
    points: Sequence[Point],
    steps: int,
    window: int,
    overrides: Sequence[str],
) -> str:
    """Trains and measures; writes results, table and figures into `workdir`.

    Args:
      workdir: of the study.
      points: what is trained.
      steps: of each training.
      window: see `point_config`.
      overrides: see `point_config`.

    Returns:
      What to print at the end.

    Raises:
      UserError: a setting is wrong, or the data cannot be read.
    """
    # All of them first, so that a wrong setting is told at once.
    configs = {point: point_config(point, steps, window, overrides) for point in points}
    rows: list[Row] = []
    for number, (point, config) in enumerate(configs.items(), 1):
        print(f"{number} of {len(points)}: {config.name}", flush=True)
        folder = workdir / "_".join(map(str, point))
        found = measured(config, folder, functools.partial(measure, config))
        rows.append({**point._asdict(), **found})
    columns = _shapes(next(iter(configs.values())))
    cells = table_rows(rows, columns)
    record = save(workdir, rows, cells)
    sides = {
        shape.name: (float(shape.size[0]), str(shape.size[0])) for shape in columns if shape.factors
    }
    draw(workdir / FIGURE, rows, sides, x="side of the square (pixels)")
    ratios = {
        shape.name: (
            math.log2(shape.size[1] / shape.size[0]),
            ", ".join(f"{width}:{height}" for width, height in shape.aspects),
        )
        for shape in columns
        if shape.aspects
    }
    draw(workdir / ASPECTS_FIGURE, rows, ratios, x="width to height")
    return (
        f"PSNR (dB) of {rows[0]['pictures']} whole pictures by height x width, {steps} steps each, "
        f"averaged weights; *: a size of its training\n{text_table(cells, 2)}\n"
        f"report: {record}\npictures: {workdir / FIGURE}, {workdir / ASPECTS_FIGURE}"
    )
