"""What ``plan --check`` says of several configs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from bsq_jax.cli.planning.check import Checked, check
from bsq_jax.cli.planning.table import size
from bsq_jax.config.files import variants_of
from bsq_jax.config.published import published_names
from bsq_jax.core.text import aligned


def published() -> list[str]:
    """All variants of all published configs."""
    return [f"{name}:{variant}" for name in published_names() for variant in variants_of(name)]


def check_all(
    configs: Mapping[str, ConfigDict],
    mesh: jax.sharding.Mesh,
    platforms: Sequence[str],
    *,
    compiles: bool,
) -> tuple[list[dict[str, Any]], str, int]:
    """Checks finalised configs.

    Args:
      configs: by what to call them.
      mesh: see `check`.
      platforms: see `check`.
      compiles: see `check`.

    Returns:
      What JSON can hold, the text for a terminal, and the exit status: 1 for violations.
    """
    found: list[tuple[str, Checked]] = []
    for name, config in configs.items():
        for each in check(config, mesh, platforms, compiles=compiles):
            print(f"{name}: {each.program}, {each.platform}", file=sys.stderr, flush=True)
            found.append((name, each))
    rows = [("config", "program", "platform", "float32 that is meant", *_HEAD[: 3 * compiles])]
    rows += [_row(name, each, compiles=compiles) for name, each in found]
    lines = [
        f"{line}  {note}".rstrip()
        for line, note in zip(aligned(rows, 3), ["attention", *map(_attention, found)], strict=True)
    ]
    reasons = sorted({reason for _, each in found for reason in each.allowed})
    lines += [f"float32 that is meant: {reason}" for reason in reasons]
    wrong = [
        f"violation: {name}, {each.program}, {each.platform}: {line}"
        for name, each in found
        for line in each.violations
    ]
    lines += [*wrong, f"{len(found)} programs, {len(wrong)} violations"]
    result = [{"config": name, **dataclasses.asdict(each)} for name, each in found]
    return result, "\n".join(lines), 1 if wrong else 0


_HEAD = ("peak memory", "temporary", "collectives")


def _row(name: str, each: Checked, *, compiles: bool) -> tuple[str, ...]:
    row: tuple[str, ...] = (name, each.program, each.platform, str(sum(each.allowed.values())))
    if not compiles:
        return row
    if each.memory is None or each.collectives is None:
        return (*row, "", "", "")
    exchanged = (
        f"{kind} {times}x {size(count).strip()}"
        for kind, (times, count) in each.collectives.items()
    )
    sizes = (size(each.memory[part]).strip() for part in ("peak", "temporary"))
    return (*row, *sizes, ", ".join(exchanged) or "none")


def _attention(found: tuple[str, Checked]) -> str:
    return ", ".join(found[1].attention)
