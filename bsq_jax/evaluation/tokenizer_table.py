"""The report of an evaluation of a tokenizer, as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bsq_jax.evaluation.catalog import FEATURE_METRICS, FRAME_METRICS, TOKEN_METRICS
from bsq_jax.evaluation.metric import Row
from bsq_jax.evaluation.tables import unreadable_lines, value_lines


def tokenizer_rows(own: Sequence[Row] = ()) -> tuple[Row, ...]:
    """The lines of the table, in the order of the lists of metrics.

    Args:
      own: lines of metrics of the user's own.
    """
    rows = _frame_rows(own)
    rows += [row for metric in FEATURE_METRICS for row in metric.rows]
    rows += [row for metric in TOKEN_METRICS for row in metric.rows]
    return tuple(rows)


def _frame_rows(own: Sequence[Row]) -> list[Row]:
    """The lines of the metrics of frames and whole clips."""
    rows: list[Row] = []
    for metric in FRAME_METRICS:
        rows += [metric.row, *([metric.of_clip.row] if metric.of_clip else [])]
    return [*rows, *own]


def tokenizer_table(report: Mapping[str, Any]) -> str:
    """The report as text for a terminal."""
    results, measured = report["results"], report["measured"]
    k = report["judges"].get("neighbours", {}).get("k", 0)
    columns = {**results, report["oracle"]["name"]: report["oracle"]}
    own = [Row(*row) for row in report.get("own_metrics", ())]
    lines = value_lines(tokenizer_rows(own), columns, k=k)
    for label, result in results.items():
        if "by_size" in result:
            rows = [Row("count", "count", "{:,d}"), *_frame_rows(own)]
            heading = f"by size, {label} weights" if len(results) > 1 else "by size"
            lines += ["", *value_lines(rows, result["by_size"], heading=heading), ""]
    # Reports of older versions do not have the sizes.
    sizes = measured.get("sizes", [measured["image_size"]])
    side = "x".join(map(str, sizes[0])) if len(sizes) == 1 else f"{len(sizes)} sizes"
    kind, stride = "crops", ""
    if measured["frames"] > 1:
        frames = measured["frames"]
        kind = "clips"
        side = f"{frames}x{side}" if len(sizes) == 1 else f"{frames} frames and {side}"
        stride = "" if measured["stride"] == 1 else f", one frame in {measured['stride']}"
    lines.append(
        f"{report['name']}, step {report['step']}: {measured['count']} {kind} of {side} "
        f"({measured['crop']}) from {measured['source']} ({measured['split']}), "
        f"{measured['resize']}{stride}"
    )
    if measured["dtype"] != "float32":
        lines.append(
            f"computed in {measured['dtype']}, in which some bits differ from those in float32"
        )
    if any("psnr_clip" in result for result in results.values()):
        lines.append("PSNR: mean over frames; below it, from each clip's mean squared error")
    if measured["shorter"]:
        lines.append(f"clips with fewer frames than that: {measured['shorter']:,d}")
    tokens = next(iter(results.values()))["tokens"]
    lines.append(f"codebook usage: codes used of the most possible, min(codes, {tokens:,d} tokens)")
    trivial = report["oracle"].get("psnr")
    best = max((result.get("psnr", 0.0) for result in results.values()), default=0.0)
    if trivial is not None and best < trivial:
        lines.append(
            f"PSNR is below that of {report['oracle']['name']}: the model has not learned enough "
            "yet (docs/troubleshooting.md)"
        )
    if (stages := measured["stages"]) > 1 and "codes_dead" in next(iter(results.values())):
        lines.append(f"dead codes: of {stages} stages together, each with {measured['codes']:,d}")
    return "\n".join([*lines, *report["notes"], *unreadable_lines(measured["unreadable"])])
