"""Bias, time and memory of the codebook entropy by the size of the groups."""

from __future__ import annotations

import contextlib
import ctypes
import math
import pathlib
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.quantizers.bits import MAX_GROUP
from bsq_jax.quantizers.bsq import to_sphere
from bsq_jax.quantizers.entropy import codebook_entropy, soft_logits
from bsq_jax.training.compiled import memory

KINDS = ("independent", "dependent")
TIMED_BITS = (16, 36)  # of tokens; the exact entropy exists for the first
_CENTERS = 64  # of the clustered points
_SPREAD = 0.3  # of a cluster, over the distance of its center from the origin
_MMAP_THRESHOLD = -3  # of mallopt(3)
_RETURN = 0.05  # seconds in which memory of a program that has ended is freed
_PROC = pathlib.Path("/proc/self")

Row = dict[str, Any]


def inputs(kind: str, tokens: int, bits: int, seed: int) -> jax.Array:
    """Points on the sphere, float32 ``[token, bit]``.

    Args:
      kind: ``independent``, uniform on the sphere; or ``dependent``, around a few centers.
      tokens: how many.
      bits: channels.
      seed: of the points.
    """
    random = np.random.default_rng(seed)
    points = random.standard_normal((tokens, bits))
    if kind == "dependent":
        centers = random.standard_normal((_CENTERS, bits))
        points = centers[random.integers(_CENTERS, size=tokens)] + _SPREAD * points
    return to_sphere(jnp.asarray(points, jnp.float32))


def measure(
    groups: Sequence[int], tokens: int, runs: int, seed: int, inv_temperature: float
) -> list[Row]:
    """A row for each number of bits and group size, the exact entropy last.

    Args:
      groups: bits a group.
      tokens: of a batch.
      runs: timings, of which the median counts; those of all rows alternate.
      seed: of the points.
      inv_temperature: of the soft assignment. At 1 it is so soft that all entropies are near
        their maximum.

    Returns:
      ``bits``, ``group``; ``independent`` and ``dependent``, the entropy less the exact one in
      bits, of tokens for which that exists; ``ms``, ``compiled_bytes`` and ``measured_bytes`` of
      value and gradient: of the compiled program, and how much the process grew while it ran (None
      where the system does not tell).
    """
    rows, steps = [], []
    with _own_pages():  # from the beginning: what is freed before lies ready for what follows
        for bits in TIMED_BITS:
            exact = bits if bits <= MAX_GROUP else None
            sizes = [size for size in groups if size < bits] + ([exact] if exact else [])
            points = {kind: inputs(kind, tokens, bits, seed) for kind in KINDS}
            for size in sizes:
                step = _compiled(points["independent"], size, inv_temperature)
                row: Row = {"bits": bits, "group": size, "compiled_bytes": memory(step).peak}
                row |= {kind: float(step(u)[0]) for kind, u in points.items()} if exact else {}
                rows.append(row)
                steps.append(lambda step=step, u=points["dependent"]: step(u))
                row["measured_bytes"] = _growth(steps[-1])
    for row, ms in zip(rows, _in_turn(steps, runs), strict=True):
        row["ms"] = ms
    for bits in {row["bits"] for row in rows if row["bits"] == row["group"]}:
        own = [row for row in rows if row["bits"] == bits]
        true = {kind: own[-1][kind] for kind in KINDS}
        for row in own:
            row |= {kind: (row[kind] - true[kind]) / math.log(2) for kind in KINDS}
    return rows


def _compiled(points: jax.Array, size: int, inv_temperature: float) -> Any:
    def entropy(points: jax.Array) -> jax.Array:
        return codebook_entropy(soft_logits(points, inv_temperature), size)

    return jax.jit(jax.value_and_grad(entropy)).lower(points).compile()


def _in_turn(steps: Sequence[Callable[[], Any]], runs: int) -> list[float]:
    """Median milliseconds of each; they alternate, so that a slow spell hits all alike."""
    taken: list[list[float]] = [[] for _ in steps]
    for _ in range(runs):
        for step, times in zip(steps, taken, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(step())
            times.append(1e3 * (time.perf_counter() - began))
    return [statistics.median(times) for times in taken]


def _growth(step: Callable[[], Any]) -> int | None:
    """By how many bytes the process grows while a program runs, its arguments left out."""
    counter = _PROC / "clear_refs"
    if not counter.exists():
        return None
    jax.block_until_ready(step())
    time.sleep(_RETURN)
    before = _status("VmRSS")
    counter.write_text("5")  # the highest use counts from here
    jax.block_until_ready(step())
    return max(_status("VmHWM") - before, 0)


@contextlib.contextmanager
def _own_pages() -> Iterator[None]:
    """Within it large arrays get pages of their own and give them back, with glibc's allocator.

    Else they may lie where others lay, and the process does not grow.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)
    set_option(_MMAP_THRESHOLD, 2**16)
    try:
        yield
    finally:
        set_option(_MMAP_THRESHOLD, 2**25)  # what glibc itself arrives at where arrays are large


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+)", (_PROC / "status").read_text())
    assert found is not None
    return int(found[1]) * 1024
