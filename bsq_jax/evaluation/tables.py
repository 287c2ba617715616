"""Evaluations as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bsq_jax.core.text import aligned
from bsq_jax.evaluation import metrics

# Rows of the table: key, title, format.
_ROWS = (
    ("psnr", "PSNR (dB)", "{:.2f}"),
    ("psnr_clip", "  from a whole clip's error", "{:.2f}"),
    ("ssim", "SSIM", "{:.4f}"),
    ("ms_ssim", "MS-SSIM", "{:.4f}"),
    ("lpips", "LPIPS (AlexNet)", "{:.4f}"),
    ("fid", "FID (Inception-v3)", "{:.2f}"),
    ("frechet_vgg16", "Frechet distance, VGG16 features", "{:.2f}"),
    ("inception_score", "Inception score", "{:.2f}"),
    ("precision", "precision (k={k})", "{:.3f}"),
    ("recall", "recall (k={k})", "{:.3f}"),
    ("fvd", "FVD (I3D)", "{:.2f}"),
    ("codes_used", "different codes", "{:,d}"),
    ("usage", "  of the most there can be", "{:.1%}"),
    ("bit_entropy", "entropy of a bit", "{:.3f}"),
)


def table(report: Mapping[str, Any]) -> str:
    """The report as text for a terminal."""
    results = report["results"]
    columns = [*results, report["oracle"]["name"]]
    lines = [["", *columns]]
    k = report["judges"].get("neighbours", {}).get("k")
    for key, title, template in _ROWS:
        if not any(key in result for result in results.values()):
            continue  # a line below says why
        cells = [template.format(r[key]) if key in r else "-" for r in results.values()]
        oracle = report["oracle"].get(key)
        lines.append(
            [title.format(k=k), *cells, template.format(oracle) if oracle is not None else "-"]
        )
    rows = aligned(lines)
    rows.insert(1, "-" * len(rows[0]))
    measured = report["measured"]
    side = "x".join(map(str, measured["image_size"]))
    kind, stride = "crops", ""
    if measured["frames"] > 1:
        kind, side = "clips", f"{measured['frames']}x{side}"
        stride = "" if measured["stride"] == 1 else f", one frame in {measured['stride']}"
    rows.append(
        f"{report['name']}, step {report['step']}: {measured['count']} {kind} of {side} "
        f"({measured['crop']}) from {measured['source']} ({measured['split']}), "
        f"{measured['resize']}{stride}"
    )
    if (dtype := measured.get("dtype", "float32")) != "float32":  # older reports do not say
        rows.append(f"computed in {dtype}, in which some bits differ from those in float32")
    if any("psnr_clip" in result for result in results.values()):
        rows.append("PSNR: mean over the frames; below it from each clip's mean squared error")
    if measured["shorter"]:
        rows.append(f"clips with fewer frames than that: {measured['shorter']:,d}")
    tokens = next(iter(results.values()))["tokens"]
    rows.append(f"there can be at most as many different codes as tokens, {tokens:,d}, and 2^bits")
    if "ms_ssim" not in next(iter(results.values())):
        rows.append(f"MS-SSIM needs pictures of at least {metrics.MS_SSIM_MIN_SIDE} pixels a side")
    rows += report["notes"]
    if measured["unreadable"]:
        rows.append(f"not readable and left out: {', '.join(measured['unreadable'])}")
    return "\n".join(rows)
