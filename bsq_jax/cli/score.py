r"""Measures generated pictures: FID, Inception score, precision and recall against a reference.

Examples:
  bsq-jax score samples.npz --reference digits --statistics digits.stats.npz
  bsq-jax score samples/ --reference folder:/pictures --inception pt_inception.pth
  bsq-jax score samples.npz --statistics digits.stats.npz

Samples are an .npz file with uint8 pictures [N, height, width, 3] as arr_0, or a folder of pictures
of one size; of an animated picture the first frame. The reference is such a file too, or a data
source, whose pictures are resized and cropped to the size of the samples: the split that --split
names, or else its val split, but all pictures of a folder without split folders. What is known of
the reference is kept in the file of statistics, so that it is read once.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from bsq_jax.cli.command import Command
from bsq_jax.cli.outputs import check_output_file, write_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``score``."""
    parser.add_argument("samples", help="an .npz file or a folder of pictures")
    parser.add_argument("--reference", default="", help="an .npz file, a folder, or a data source")
    parser.add_argument(
        "--split",
        choices=("train", "val"),
        default="",
        help="of a data source (val, or a whole folder)",
    )
    parser.add_argument(
        "--statistics", default="", help=".npz file of the reference: read, or made"
    )
    parser.add_argument("--inception", default="", help="file of Inception-v3 weights, for FID, IS")
    parser.add_argument("--neighbours", type=int, default=3, help="k of precision and recall (3)")
    parser.add_argument(
        "--neighbours-examples", type=int, default=10_000, help="the most they look at (10,000)"
    )
    parser.add_argument("--json", default="", help="file for the result; it may exist")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(flags: argparse.Namespace) -> int:
    """Measures and prints a table."""
    if flags.json:
        check_output_file(flags.json, force=True)
    from bsq_jax.core.compilation_cache import enable_compilation_cache
    from bsq_jax.evaluation.metric import NetworkSettings
    from bsq_jax.evaluation.score import score

    enable_compilation_cache()
    networks = NetworkSettings(
        frechet=True,
        inception=flags.inception,
        neighbours=flags.neighbours,
        neighbours_examples=flags.neighbours_examples,
    )
    report = score(
        flags.samples,
        flags.reference,
        split=flags.split,
        statistics=flags.statistics,
        networks=networks,
        quiet=flags.quiet,
    )
    if flags.json:
        write_output(flags.json, (json.dumps(report, indent=2) + "\n").encode())
    print(_table(report))
    return 0


def _table(report: Mapping[str, Any]) -> str:
    """The metrics under each other, and what was compared."""
    from bsq_jax.core.text import aligned
    from bsq_jax.evaluation.catalog import FEATURE_METRICS

    results, samples = report["results"], report["samples"]
    k = report["of_reference"].get("neighbours", {}).get("k")
    rows = [row for metric in FEATURE_METRICS for row in metric.rows if row.key in results]
    lines = aligned([[row.title.format(k=k), f"{results[row.key]:.4g}"] for row in rows])
    place, split = report["reference"]
    seen = max(told.get("samples", 0) for told in report["of_reference"].values())
    where = f"{place} ({split})" if split else place
    lines.append(
        f"{samples['count']:,d} samples of {samples['path']} against {seen:,d} pictures of {where}"
    )
    return "\n".join([*lines, *report["notes"]])


COMMAND = Command(
    "score generated pictures: FID, Inception score, precision, recall",
    __doc__,
    add_arguments,
    run,
    interrupted="no result was written; finished statistics of the reference are kept",
)
