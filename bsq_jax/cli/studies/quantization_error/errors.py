"""Measures quantizers on latents, and puts them beside the closed forms."""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.cli.studies.kinds import LEECH_CODES, quantizer_of
from bsq_jax.cli.studies.quantization_error import closed_forms, inputs
from bsq_jax.cli.studies.report import save, text_table
from bsq_jax.media.figures import line_figure, panel_figure
from bsq_jax.quantizers import Quantizer

FIGURE, RATES = "quantization_error.png", "error_by_rate.png"
_ITERATIONS = 10  # of k-means
_FITTED_TO = 8  # latents a code, that a codebook is fitted to
_CHUNK = 4096  # latents whose distances to a codebook are in memory at once

Row = dict[str, Any]


def study(
    workdir: pathlib.Path,
    *,
    bits: Sequence[int],
    codebooks: Sequence[int],
    tokens: int,
    model: str | None,
    seed: int,
) -> str:
    """Measures all; writes results, table and figures into `workdir`.

    Args:
      workdir: of the study.
      bits: of tokens of the quantizers that take any number.
      codebooks: sizes of learned codebooks.
      tokens: of each distribution.
      model: a tokenizer whose latents are quantized too, or None.
      seed: of the distributions.

    Returns:
      What to print at the end.

    Raises:
      UserError: there is no such model.
    """
    latents = None if model is None else inputs.latents_of(model, tokens)
    sizes = sorted({*bits, *([latents.shape[-1]] if latents is not None else [])})
    rows = []
    for kind, size in _kinds(sizes):
        quantizer = quantizer_of(kind, size)
        row: Row = {"quantizer": kind, "bits": size, "channels": quantizer.channels}
        given = _drawn(quantizer.channels, tokens, seed)
        if latents is not None and latents.shape[-1] == quantizer.channels:
            given[inputs.LATENTS] = latents
        found = {name: error(quantizer, {}, points) for name, points in given.items()}
        rows.append(row | _summary(found) | _closed_forms(kind, quantizer.channels, size))
    for size in codebooks:
        rows += _codebook_rows(size, tokens, seed)
    cells = table_rows(rows)
    record = save(workdir, rows, cells)
    draw(workdir, rows)
    return (
        f"error over the power of the points, mean over {tokens} tokens each\n"
        f"{text_table(cells, 1)}\nreport: {record}\n"
        f"pictures: {workdir / FIGURE}, {workdir / RATES}"
    )


def _kinds(sizes: Sequence[int]) -> Iterator[tuple[str, int]]:
    """Quantizers without learned codebooks, with the bits of a token."""
    for size in sizes:
        yield "bsq", size
    for size in sizes:
        if size % 2 == 0:
            yield "residual", size
    for kind in ("lfq", "fsq"):
        for size in sizes:
            yield kind, size
    yield "leech", math.ceil(math.log2(LEECH_CODES))


def _drawn(channels: int, tokens: int, seed: int) -> dict[str, np.ndarray]:
    """Latents by name of the distribution; the same for all quantizers of so many channels."""
    return {
        name: make(np.random.default_rng((seed, place)), tokens, channels)
        for place, (name, make) in enumerate(inputs.DISTRIBUTIONS.items())
    }


def error(quantizer: Quantizer, params: Mapping[str, Any], latents: np.ndarray) -> Row:
    """The error of a quantizer in its own units.

    Args:
      quantizer: which one.
      params: its parameters, if it has some.
      latents: ``[token, channel]``.

    Returns:
      ``relative``: mean squared distance of the points that codes are chosen for (on the sphere
      where the quantizer projects to it) to their codes, over the mean squared length of the
      points; ``largest``: of the squared distances.
    """
    made = _measure(quantizer, params, jnp.asarray(latents, jnp.float32))
    squared, power = (np.asarray(each, np.float64) for each in made)
    return {"relative": float(squared.mean() / power.mean()), "largest": float(squared.max())}


@functools.partial(jax.jit, static_argnums=0)
def _measure(
    quantizer: Quantizer, params: Mapping[str, Any], latents: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Squared distances of points to their codes, and squared lengths of points: ``[token]``."""

    def run(module: Quantizer) -> tuple[jax.Array, jax.Array]:
        points = module.project(latents)
        codes = module.decode(module.encode(latents).bits)
        return jnp.sum((points - codes) ** 2, -1), jnp.sum(points**2, -1)

    made: Any = quantizer.apply({"params": params}, method=run)
    return made


def _summary(found: Mapping[str, Row]) -> Row:
    return {
        "relative": {name: each["relative"] for name, each in found.items()},
        "largest": max(each["largest"] for each in found.values()),
    }


def _closed_forms(kind: str, channels: int, size: float) -> Row:
    """What is known of a quantizer whose codes are unit vectors."""
    if kind == "leech":
        return {"least": closed_forms.least_mean(channels, math.log2(LEECH_CODES))}
    if kind != "bsq":
        return {}
    return {
        "bound": closed_forms.bsq_largest(channels),
        "expected": closed_forms.bsq_mean(channels),
        "least": closed_forms.least_mean(channels, size),
    }


def _codebook_rows(size: int, tokens: int, seed: int) -> list[Row]:
    """A codebook drawn from each distribution, and one fitted to it by k-means."""
    quantizer = quantizer_of("vq", (size - 1).bit_length(), codes=size)
    drawn: dict[str, Row] = {}
    fitted: dict[str, Row] = {}
    for place, (name, make) in enumerate(inputs.DISTRIBUTIONS.items()):
        random = np.random.default_rng((seed, place, 1))  # other latents than those measured
        sample = make(random, _FITTED_TO * size, quantizer.channels)
        points = make(np.random.default_rng((seed, place)), tokens, quantizer.channels)
        for found, codebook in ((drawn, sample[:size]), (fitted, k_means(sample, size))):
            params = {"codebook": jnp.asarray(codebook, jnp.float32)}
            found[name] = error(quantizer, params, points)
    row = {"bits": math.log2(size), "channels": quantizer.channels}
    return [
        {"quantizer": f"vq, {how}", **row, **_summary(found)}
        for how, found in (("drawn", drawn), ("fitted", fitted))
    ]


def k_means(sample: np.ndarray, size: int) -> np.ndarray:
    """Codes ``[size, channel]`` of a sample by Lloyd's iterations from its first vectors."""
    points = jnp.asarray(sample, jnp.float32)

    @jax.jit
    def improved(codes: jax.Array) -> jax.Array:
        def nearest(point: jax.Array) -> jax.Array:
            return jnp.argmin(jnp.sum(codes**2, -1) - 2 * codes @ point)

        chosen = jax.lax.map(nearest, points, batch_size=_CHUNK)
        sums = jax.ops.segment_sum(points, chosen, size)
        counts = jax.ops.segment_sum(jnp.ones(len(points)), chosen, size)[:, None]
        return jnp.where(counts > 0, sums / jnp.maximum(counts, 1), codes)

    codes = points[:size]
    for _ in range(_ITERATIONS):
        codes = improved(codes)
    return np.asarray(codes)


def table_rows(rows: Sequence[Row]) -> list[list[str]]:
    """The table's cells, titles first."""
    names = list(dict.fromkeys(name for row in rows for name in row["relative"]))
    closed = {"expected": "expected, uniform", "bound": "bound", "least": "least mean, uniform"}
    cells = [["quantizer", "bits", "channels", *names, *closed.values(), "largest |u - q|^2"]]
    for row in rows:
        values = [row["relative"].get(name) for name in names] + [row.get(key) for key in closed]
        shown = ["-" if value is None else f"{value:.3f}" for value in values]
        bits = math.log2(LEECH_CODES) if row["quantizer"] == "leech" else row["bits"]
        cells.append(
            [row["quantizer"], f"{bits:.4g}", str(row["channels"]), *shown, f"{row['largest']:.3g}"]
        )
    return cells


def draw(workdir: pathlib.Path, rows: Sequence[Row]) -> None:
    """Draws errors over bits for each distribution, and over bits a channel for each quantizer."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for kind, title in (("bsq", "BSQ: |u - q|^2"), ("lfq", "LFQ: error over power"),
                        ("fsq", "FSQ: error over power")):  # fmt: skip
        lines = panels.setdefault(title, {})
        own = [row for row in rows if row["quantizer"] == kind]
        for row in own:
            for name, value in row["relative"].items():
                lines.setdefault(name, []).append((row["bits"], value))
        if kind == "bsq":
            named = {"bound": "bound", "expected": "expected, uniform", "least": "least mean"}
            for key, name in named.items():
                lines[name] = [(row["bits"], row[key]) for row in own]
            lines["limit 0.404"] = [(row["bits"], closed_forms.LIMIT) for row in own]
    panel_figure(workdir / FIGURE, panels, x="bits a token", bold=list(inputs.DISTRIBUTIONS))
    name = next(iter(inputs.DISTRIBUTIONS))
    of: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["quantizer"] == "fsq":
            continue  # its points are no longer distributed so, but bounded
        bits = math.log2(LEECH_CODES) if row["quantizer"] == "leech" else row["bits"]
        decibels = -10 * math.log10(row["relative"][name])
        of.setdefault(row["quantizer"], []).append((bits / row["channels"], decibels))
    highest = max(rate for points in of.values() for rate, _ in points)
    of["Shannon, many channels"] = [(0.0, 0.0), (highest, 20 * math.log10(2) * highest)]
    line_figure(workdir / RATES, of, x="bits a channel", y=f"power over error (dB), {name}")
