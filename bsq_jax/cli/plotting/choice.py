"""Which metrics are drawn, and how: smoothed, and over which axis."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence

from bsq_jax.cli.plotting.runs import Points, RunMetrics
from bsq_jax.core.errors import UserError

# What is drawn unless metrics are named: the first of these that the runs have.
_USUAL = (
    *("psnr", "lpips", "ssim", "coded_bpp", "cross_entropy", "accuracy", "loss", "saved"),
    *("bits_per_pixel", "fid", "usage", "bit_entropy", "gradient_norm", "learning_rate"),
)
_MOST = 6
# Never drawn over powers of ten: decibels, shares and what lies in a fixed range.
_LINEAR = (
    *("psnr", "psnr_clip", "ssim", "ms_ssim", "accuracy", "usage", "bit_entropy", "saved"),
    *("bit_entropy_min", "group_usage", "data_wait", "mfu", "masked", "precision", "recall"),
    *("token_entropy", "codebook_entropy", "learning_rate"),
)
_UNITS = {"psnr": "dB", "psnr_clip": "dB"}
_UNITS |= dict.fromkeys(
    ("token_entropy", "codebook_entropy", "bit_entropy", "bit_entropy_min", "cross_entropy"), "bits"
)
_UNITS |= dict.fromkeys(("coded_bpp", "raw_bpp", "entropy_bpp", "bits_per_pixel"), "bits a pixel")
_SPAN = 10.0  # a largest value over the smallest from which on powers of ten serve


def choose(runs: Sequence[RunMetrics], wanted: str) -> list[str]:
    """The metrics to draw.

    Args:
      runs: what there is.
      wanted: names that the user gave, separated by commas; empty: the usual ones, at most six.

    Raises:
      UserError: no run has one of them.
    """
    known = list(dict.fromkeys(name for run in runs for name in run.series))
    if not wanted:
        usual = [name for name in _USUAL if name in known][:_MOST]
        return usual or known[:_MOST]
    names = list(dict.fromkeys(filter(None, (name.strip() for name in wanted.split(",")))))
    if not names:
        raise UserError(f"--metrics {wanted!r}: name one, of {', '.join(sorted(known))}")
    for name in names:
        if name in known:
            continue
        if any(name in run.lists for run in runs):
            raise UserError(f"--metrics {name}: it is a list of values, which plot does not draw")
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {_few(known)}"
        raise UserError(f"--metrics {name}: no run has it: {hint}")
    return names


def prefixes_of(runs: Sequence[RunMetrics], metrics: Sequence[str], wanted: str) -> list[str]:
    """The groups to draw, ``train`` first.

    Args:
      runs: what there is.
      metrics: those that are drawn.
      wanted: groups that the user gave, separated by commas; empty: all.

    Raises:
      UserError: no run has one of them in these metrics.
    """
    found = {prefix for run in runs for name in metrics for prefix in run.series.get(name, ())}
    known = sorted(found, key=lambda prefix: (prefix != "train", prefix))
    names = list(dict.fromkeys(filter(None, (name.strip() for name in wanted.split(",")))))
    if missing := [name for name in names if name not in known]:
        raise UserError(f"--series {missing[0]}: there are {', '.join(known)}")
    return names or known


def smoothed(points: Points, reach: int) -> Points:
    """Means of each point and as many neighbours on both sides, so that none is moved.

    Args:
      points: value by step, in order.
      reach: neighbours on each side, fewer at the ends; NaN among them are left out, and stay.
    """
    values = list(points.values())
    result = {}
    for place, step in enumerate(points):
        side = min(reach, place, len(values) - 1 - place)
        near = [v for v in values[place - side : place + side + 1] if math.isfinite(v)]
        result[step] = sum(near) / len(near) if math.isfinite(values[place]) else math.nan
    return result


def title(name: str) -> str:
    """A metric with its unit, where it has one."""
    return f"{name} ({_UNITS[name]})" if name in _UNITS else name


def serves_logarithm(name: str, values: Sequence[float]) -> bool:
    """Whether an axis in powers of ten shows a metric better.

    Args:
      name: of the metric.
      values: all that its panel shows; NaN do not count.
    """
    finite = [value for value in values if math.isfinite(value)]
    if name in _LINEAR or not finite or min(finite) <= 0:
        return False
    return max(finite) > _SPAN * min(finite)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
