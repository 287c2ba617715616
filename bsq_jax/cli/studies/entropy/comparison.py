"""The study of the entropy terms: what they cost, and what they do in training."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from bsq_jax.cli.studies.entropy import terms
from bsq_jax.cli.studies.kinds import KINDS, concerns
from bsq_jax.cli.studies.report import markdown_table, mean_and_spread, save, size, text_table
from bsq_jax.cli.studies.settings import photographs_config, set_values
from bsq_jax.cli.studies.trained import Limits, outcome
from bsq_jax.config import finalize
from bsq_jax.core.files import write_atomic
from bsq_jax.media.figures import panel_figure

FIGURE, TRAININGS_TABLE = "entropy.png", "trainings.md"
SHARPNESS = 10.0  # inverse temperature of the comparison of terms
BITS = 18  # of a token in the trainings

Row = dict[str, Any]


def study(
    workdir: pathlib.Path,
    *,
    groups: Sequence[int],
    tokens: int,
    runs: int,
    steps: int,
    seeds: Sequence[int],
    overrides: Sequence[str],
    limits: Limits,
) -> str:
    """Measures the terms and trains; writes results, tables and figure into `workdir`.

    Args:
      workdir: of the study.
      groups: bits a group.
      tokens: of the comparison of terms.
      runs: its timings.
      steps: of each training; 0: none.
      seeds: of the trainings.
      overrides: settings of all trainings, each ``KEY=VALUE``; one of the quantizer counts for the
        kinds that have it.
      limits: of each training.

    Returns:
      What to print at the end.

    Raises:
      UserError: a setting is wrong, or the data cannot be read.
    """
    configs = {
        (arm, seed): arm_config(kind, group, steps, seed, overrides)
        for arm, kind, group in arms(groups)
        for seed in (seeds if steps else ())
    }
    compared = terms.measure(groups, tokens, runs, 0, SHARPNESS)
    trained = []
    for number, ((arm, seed), config) in enumerate(configs.items(), 1):
        found = outcome(config, workdir / f"{arm.replace(', ', '_')}_{seed}", limits)
        trained.append({"model": arm, "seed": seed, **found})
        print(f"{number} of {len(configs)}: {config.name}: {found['status']}", flush=True)
    cells = term_rows(compared)
    record = save(workdir, {"terms": compared, "trainings": trained}, cells)
    text = f"codebook entropy of {tokens} tokens, both ways\n{text_table(cells)}"
    if trained:
        cells = training_rows(trained)
        write_atomic(workdir / TRAININGS_TABLE, (markdown_table(cells) + "\n").encode())
        text += f"\n\n{steps} steps each, {BITS} bits, averaged weights\n{text_table(cells, 1)}"
    draw(workdir / FIGURE, compared, trained)
    return f"{text}\nreport: {record}\npicture: {workdir / FIGURE}"


def arms(groups: Sequence[int]) -> Iterator[tuple[str, str, int]]:
    """The trainings: name, kind of quantizer, bits a group; 0 without terms."""
    yield "bsq, no terms", "bsq", 0
    for group in groups:
        yield f"bsq, g={group}", "bsq", group
    yield "lfq, no terms", "lfq", 0
    yield f"lfq, g={max(groups)}", "lfq", max(groups)
    yield "leech", "leech", 0


def arm_config(
    kind: str, group: int, steps: int, seed: int, overrides: Sequence[str]
) -> ConfigDict:
    """The config of a training; with terms they have their published weights, without none.

    Raises:
      UserError: an override is wrong.
    """
    config = photographs_config(max(steps, 1), seed)
    config.name = f"{kind}, {f'groups of {group}' if group else 'no terms'}, seed {seed}"
    config.loss.entropy = 0.1
    config.model.bits = BITS
    config.quantizer.update({"name": kind, "group_size": group} if group else KINDS[kind](BITS))
    set_values(config, [text for text in overrides if concerns(kind, text)])
    return finalize(config)


def term_rows(compared: Sequence[Row]) -> list[list[str]]:
    """The cells of the table of terms, titles first."""
    titles = ["bits", "bits a group", "bias, independent", "bias, dependent (bits)", "ms"]
    cells = [[*titles, "memory, compiled", "memory, measured"]]
    for row in compared:
        bias = [f"{row[key]:.4f}" if key in row else "-" for key in terms.KINDS]
        exact = " (exact)" if row["bits"] == row["group"] else ""
        measured = row["measured_bytes"]
        cells.append(
            [
                *(str(row["bits"]), f"{row['group']}{exact}", *bias, f"{row['ms']:.1f}"),
                *(size(row["compiled_bytes"]), "-" if measured is None else size(measured)),
            ]
        )
    return cells


_METRICS = {
    "PSNR (dB)": ("psnr", "{:.2f}"),
    "LPIPS": ("lpips", "{:.4f}"),
    "codes used": ("codes_used", "{:,.0f}"),
    "usage": ("usage", "{:.1%}"),
    "entropy per bit": ("bit_entropy", "{:.3f}"),
}


def training_rows(trained: Sequence[Row]) -> list[list[str]]:
    """The cells of the table of trainings, titles first; means over seeds."""
    cells = [["model", *_METRICS, "outcome"]]
    for name in dict.fromkeys(row["model"] for row in trained):
        group = [row for row in trained if row["model"] == name]
        line = [name]
        for key, template in _METRICS.values():
            known = [row["results"][key] for row in group if key in row.get("results", {})]
            line.append(mean_and_spread(known, template) if known else "-")
        cells.append([*line, "; ".join(dict.fromkeys(row["status"] for row in group))])
    return cells


def draw(path: pathlib.Path, compared: Sequence[Row], trained: Sequence[Row]) -> None:
    """Draws bias, time and memory over the bits a group, and the codes that trained models use."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}

    def add(panel: str, line: str, place: float, value: float) -> None:
        panels.setdefault(panel, {}).setdefault(line, []).append((place, value))

    for row in compared:
        for kind in terms.KINDS:
            if kind in row:
                add("bias (bits)", f"{kind} bits", row["group"], row[kind])
        add("ms", f"{row['bits']} bits", row["group"], row["ms"])
        add("memory (MiB)", f"{row['bits']} bits", row["group"], row["compiled_bytes"] / 2**20)
    ends = sorted({row["group"] for row in compared})
    for row in trained:
        if "codes_used" not in row.get("results", {}):
            continue
        name, _, group = row["model"].partition(", g=")
        line = f"{name}, terms" if group else name
        for place in [int(group)] if group else [ends[0], ends[-1]]:
            add("codes used", line, place, row["results"]["codes_used"])
    panel_figure(path, panels, x="bits a group", bold=[name for p in panels.values() for name in p])
