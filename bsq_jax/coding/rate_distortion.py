"""Codes inputs at every setting of several codecs, and measures what comes back.

Each input is decoded from the bytes of its file and compared with the original; rates are those of
real files.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from bsq_jax.coding.codec import Codec
from bsq_jax.coding.rate_distortion_tables import METRICS, Point
from bsq_jax.coding.reference_codecs import DEFAULT_RATE, Coded, Coder
from bsq_jax.coding.tile_choice import Tile
from bsq_jax.core.errors import UserError
from bsq_jax.core.pixels import to_float
from bsq_jax.core.progress import progress
from bsq_jax.core.text import listed
from bsq_jax.data.command_line_files import Input, distinct
from bsq_jax.evaluation import metrics
from bsq_jax.evaluation.networks.lpips import load_lpips, lpips

_MOST_POINTS = 6  # of a curve, unless numbers of bits are given


def our_coders(
    codecs: Sequence[Codec], bits: Sequence[int] | None, overlap: int | None, tile: Tile = None
) -> list[Coder]:
    """Two curves for a model with a prior, one for a tokenizer alone.

    Args:
      codecs: the models.
      bits: numbers of bits of a token that are kept; None: up to six of those that a model takes.
      overlap: pixels that neighbouring tiles share; None: what the codec does by itself.
      tile: of `Codec.encode`.

    Raises:
      UserError: a model takes none of these numbers.
    """
    coders = []
    for codec, name in zip(codecs, distinct([codec.name for codec in codecs]), strict=True):
        able = sorted(codec.variable_bits)
        settings = _spread(able) if bits is None else sorted(set(bits) & set(able))
        if not settings:
            raise UserError(f"--bits {','.join(map(str, bits or ()))}: {name} takes {listed(able)}")
        for mode in ("raw", "prior") if codec.has_prior else ("raw",):
            code = functools.partial(_code, codec, mode, overlap, tile)
            coders.append(Coder(f"{name}, {mode}", mode, "bits", tuple(settings), code))
    return coders


def _spread(numbers: Sequence[int]) -> list[int]:
    """Up to six of them, the first and the last included, evenly spaced."""
    places = np.linspace(0, len(numbers) - 1, min(_MOST_POINTS, len(numbers)))
    return [numbers[place] for place in np.rint(places).astype(int)]


def _code(
    codec: Codec,
    mode: str,
    overlap: int | None,
    tile: Tile,
    frames: np.ndarray,
    setting: int,
    rate: Fraction | None,
) -> Coded:
    data = codec.encode(frames, rate=rate, bits=setting, mode=mode, overlap=overlap, tile=tile)
    decoded = codec.decode(data)
    return Coded(decoded.frames, len(data), len(data) - len(decoded.header.pack()))


def make_measure(names: Sequence[str]) -> Callable[[np.ndarray, np.ndarray], dict[str, float]]:
    """A function of original and decoded frames, both uint8 ``[time, height, width, 3]``.

    Args:
      names: of `METRICS`. The function returns each as the mean over frames.

    Raises:
      UserError: the weights of LPIPS are missing.
    """
    params = load_lpips("alexnet") if "lpips" in names else {}

    @jax.jit
    def frame(params: Mapping[str, Any], a: jax.Array, b: jax.Array) -> dict[str, jax.Array]:
        known: dict[str, Callable[[], jax.Array]] = {
            "psnr": lambda: metrics.psnr(a, b),
            "ms_ssim": lambda: metrics.ms_ssim(a, b),
            "lpips": lambda: lpips(params, to_float(a), to_float(b), net="alexnet"),
        }
        return {name: known[name]() for name in names}

    def measure(original: np.ndarray, decoded: np.ndarray) -> dict[str, float]:
        # One frame at a time, so that memory does not grow with the video.
        each = [
            jax.device_get(frame(params, a[None, None], b[None, None]))
            for a, b in zip(original, decoded, strict=True)
        ]
        return {name: float(np.mean([np.float64(one[name]) for one in each])) for name in names}

    return measure


def choose_metrics(
    wanted: Sequence[str] | None, inputs: Sequence[Input], size: int
) -> tuple[list[str], list[str]]:
    """The metrics that all inputs are large enough for.

    Args:
      wanted: names of `METRICS`; None: all that are possible.
      inputs: looked at one by one, so that a broken one is found before hours of coding.
      size: short side to which they are resized, or 0.

    Returns:
      Names, and lines that say what is left out.

    Raises:
      UserError: an input cannot be read, or is too small for a metric that is wanted.
    """
    sides = {one.name: min(one.shape(size)) for one in inputs}
    small = min(sides, key=lambda name: sides[name])
    names, notes = [], []
    for name in wanted or METRICS:
        if sides[small] >= METRICS[name].least:
            names.append(name)
            continue
        line = (
            f"{name} needs frames of at least {METRICS[name].least} pixels a side, and {small} has "
            f"{sides[small]}"
        )
        if wanted:
            raise UserError(f"{line}: choose other --metrics, or a larger --size")
        notes.append(f"{line}: left out")
    return names, notes


def measure_points(
    inputs: Sequence[Input],
    coders: Sequence[Coder],
    names: Sequence[str],
    *,
    frames: int = 0,
    size: int = 0,
) -> list[Point]:
    """Codes every input with every codec at every setting.

    Args:
      inputs: pictures and videos.
      coders: the codecs.
      names: of `METRICS`.
      frames: only the first frames of a video; 0: all.
      size: short side in pixels to which inputs are resized first; 0: they are not.

    Returns:
      A point for each, inputs first.

    Raises:
      UserError: an input cannot be read, or weights are missing.
    """
    measure = make_measure(names)
    points = []
    total = len(inputs) * sum(len(coder.settings) for coder in coders)
    with progress(total, "files") as advance:
        for point in advance(_points(inputs, coders, measure, frames, size), lambda _: 1):
            points.append(point)
    return points


def _points(
    inputs: Sequence[Input],
    coders: Sequence[Coder],
    measure: Callable[[np.ndarray, np.ndarray], dict[str, float]],
    most: int,
    size: int,
) -> Iterator[Point]:
    for one in inputs:
        frames, rate = one.read(most, size)
        rate = (rate or DEFAULT_RATE) if one.video else None
        for coder in coders:
            for setting in coder.settings:
                coded = coder.code(frames, setting, rate)
                yield Point(
                    input=one.name,
                    curve=coder.name,
                    about=coder.about,
                    setting=f"{coder.scale} {setting}",
                    shape=frames.shape[:3],
                    file_bytes=coded.file_bytes,
                    packet_bytes=coded.packet_bytes,
                    values=measure(frames, coded.frames),
                )
