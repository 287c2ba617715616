"""Rate-distortion points: means over inputs, Bjontegaard rates, files, a table and a figure."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bsq_jax.core.files import write_atomic
from bsq_jax.core.text import aligned
from bsq_jax.evaluation.metrics import MS_SSIM_MIN_SIDE, bd_rate
from bsq_jax.media.figures import panel_figure

POINTS, SUMMARY, BD_RATE = "points.csv", "summary.csv", "bd_rate.csv"
FIGURE = "rate_distortion.png"
FILES = (POINTS, SUMMARY, BD_RATE, FIGURE)
_MS_SSIM_CAP = 60.0  # dB


@dataclasses.dataclass(frozen=True)
class Metric:
    """How good a picture is.

    Attributes:
      title: as axes and tables show it.
      template: of its values.
      least: the smallest height and width that it can be computed for, in pixels.
      quality: of a value, more being better: what Bjontegaard rates are at equal value of.
    """

    title: str
    template: str
    least: int
    quality: Callable[[float], float]


def _decibels(value: float) -> float:
    """MS-SSIM on a scale on which values near 1 differ."""
    return -10 * math.log10(max(1 - value, 10 ** (-_MS_SSIM_CAP / 10)))


METRICS = {
    "psnr": Metric("PSNR (dB)", "{:.2f}", 1, lambda value: value),
    "ms_ssim": Metric("MS-SSIM", "{:.4f}", MS_SSIM_MIN_SIDE, _decibels),
    "lpips": Metric("LPIPS (less is better)", "{:.4f}", 31, lambda value: -value),
}


@dataclasses.dataclass(frozen=True)
class Point:
    """One input, coded by one codec at one setting.

    Attributes:
      input: its name.
      curve: name of the codec.
      about: how the codec is set.
      setting: such as ``crf 30``.
      shape: (frames, height, width).
      file_bytes: of the whole file, or of all files.
      packet_bytes: without the container around them.
      values: of the metrics by name, mean over frames.
    """

    input: str
    curve: str
    about: str
    setting: str
    shape: tuple[int, int, int]
    file_bytes: int
    packet_bytes: int
    values: Mapping[str, float]

    @property
    def bpp(self) -> float:
        """Bits a pixel, of the whole file."""
        return 8 * self.file_bytes / math.prod(self.shape)

    @property
    def packet_bpp(self) -> float:
        """Bits a pixel, without the container."""
        return 8 * self.packet_bytes / math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Mean:
    """One setting of one codec: means over inputs, each counting once."""

    curve: str
    about: str
    setting: str
    inputs: int
    bpp: float
    packet_bpp: float
    values: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class BjontegaardRate:
    """Bjontegaard's rate of a codec against another.

    Attributes:
      curve: the codec.
      anchor: the other.
      metric: at equal values of which.
      bits: ``file`` or ``packets``: which bits are counted.
      of_means: percent, between the curves of means; None where they share no quality.
      mean: percent, mean over the inputs whose own curves share a quality; None without any.
      inputs: how many these are.
    """

    curve: str
    anchor: str
    metric: str
    bits: str
    of_means: float | None
    mean: float | None
    inputs: int


def means(points: Sequence[Point]) -> list[Mean]:
    """Means over inputs, in the order of the points."""
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point.curve, point.setting), []).append(point)
    return [
        Mean(
            curve,
            group[0].about,
            setting,
            len(group),
            float(np.mean([point.bpp for point in group])),
            float(np.mean([point.packet_bpp for point in group])),
            {
                name: float(np.mean([point.values[name] for point in group]))
                for name in group[0].values
            },
        )
        for (curve, setting), group in groups.items()
    ]


def bjontegaard_rates(points: Sequence[Point], anchor: str) -> list[BjontegaardRate]:
    """Bjontegaard rates of all other codecs against `anchor`."""
    made = []
    averages = means(points)
    names = list(dict.fromkeys(point.curve for point in points))
    inputs = list(dict.fromkeys(point.input for point in points))
    for curve in names:
        if curve == anchor:
            continue
        for metric in points[0].values:
            for bits in ("file", "packets"):
                each = [
                    _rate([p for p in points if p.input == one], anchor, curve, metric, bits)
                    for one in inputs
                ]
                known = [value for value in each if value is not None]
                made.append(
                    BjontegaardRate(
                        curve,
                        anchor,
                        metric,
                        bits,
                        _rate(averages, anchor, curve, metric, bits),
                        float(np.mean(known)) if known else None,
                        len(known),
                    )
                )
    return made


def _rate(
    points: Sequence[Point] | Sequence[Mean], anchor: str, curve: str, metric: str, bits: str
) -> float | None:
    pair = []
    for name in (anchor, curve):
        pair.append(
            [
                (
                    point.bpp if bits == "file" else point.packet_bpp,
                    METRICS[metric].quality(point.values[metric]),
                )
                for point in points
                if point.curve == name
            ]
        )
    return bd_rate(*pair)


# --- files ---


def save(
    folder: pathlib.Path,
    points: Sequence[Point],
    anchor: str,
    *,
    ours: Sequence[str],
    logarithmic: bool,
) -> None:
    """Writes `FILES`, each whole or not at all.

    Args:
      folder: where to.
      points: of all inputs.
      anchor: name of the codec that rates are against.
      ours: names of the curves to look at.
      logarithmic: whether the figure has a logarithmic axis of bits a pixel.
    """
    names = list(points[0].values)
    head = ["input", "codec", "about", "setting", "frames", "height", "width", "bytes"]
    rows = [
        [p.input, p.curve, p.about, p.setting, *p.shape, p.file_bytes, p.packet_bytes]
        + [_number(value) for value in (p.bpp, p.packet_bpp, *p.values.values())]
        for p in points
    ]
    # Which bytes the second ones are stands in the header, as the codecs differ in it.
    packets = "packet_bytes (MP4: sum of its packets; bsq: file minus header; pictures: file)"
    _write(folder / POINTS, [*head, packets, "bpp", "packet_bpp", *names], rows)
    averages = means(points)
    rows = [
        [m.curve, m.about, m.setting, m.inputs]
        + [_number(value) for value in (m.bpp, m.packet_bpp, *m.values.values())]
        for m in averages
    ]
    head = ["codec", "about", "setting", "inputs", "bpp", "packet_bpp", *names]
    _write(folder / SUMMARY, head, rows)
    rows = [
        [c.curve, c.anchor, c.metric, c.bits, _number(c.of_means), _number(c.mean), c.inputs]
        for c in bjontegaard_rates(points, anchor)
    ]
    head = ["codec", "anchor", "metric", "bits"]
    head += ["bd_rate_of_means_percent", "bd_rate_mean_percent", "inputs_with_bd_rate"]
    _write(folder / BD_RATE, head, rows)
    curves = list(dict.fromkeys(m.curve for m in averages))
    panels = {
        METRICS[name].title: {
            curve: [(m.bpp, m.values[name]) for m in averages if m.curve == curve]
            for curve in curves
        }
        for name in names
    }
    panel_figure(
        folder / FIGURE, panels, x="bits a pixel", logarithmic=logarithmic, bold=ours or curves
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _write(path: pathlib.Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    write_atomic(path, text.getvalue().encode())


# --- text ---


def tables(points: Sequence[Point], anchor: str) -> str:
    """The means and the Bjontegaard rates as text for a terminal."""
    names = list(points[0].values)
    averages = means(points)
    rows = [["codec", "setting", "bpp", "packets"] + [METRICS[name].title for name in names]]
    for m in averages:
        cells = [METRICS[name].template.format(m.values[name]) for name in names]
        rows.append([m.curve, m.setting, f"{m.bpp:.4f}", f"{m.packet_bpp:.4f}", *cells])
    text = "\n".join([f"Means over {averages[0].inputs} input(s)", *aligned(rows, 2)])
    found = bjontegaard_rates(points, anchor)
    if not found:
        return text
    rows = [["codec", "bits", *(METRICS[name].title.partition(" (")[0] for name in names)]]
    groups: dict[tuple[str, str], list[str]] = {}
    for rate in found:
        percent = "-" if rate.of_means is None else f"{rate.of_means:+.1f}%"
        groups.setdefault((rate.curve, rate.bits), []).append(percent)
    rows += [[*key, *cells] for key, cells in groups.items()]
    return "\n".join([text, "", f"Bjontegaard rate against {anchor}", *aligned(rows, 2)])
