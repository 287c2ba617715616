"""Pictures that compare originals, reconstructions and the oracle, one above the other.

Pixels are uint8 in 0..255. The oracle is the best picture with one color per patch.
"""

from __future__ import annotations

import bisect
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from bsq_jax.evaluation import metrics
from bsq_jax.evaluation.loop import HostBatch
from bsq_jax.media import pictures, videos

ORACLE = "one color per patch"
"""Name of the oracle in reports and pictures."""

CLIPS = 3
"""The most clips in the picture of clips."""

_COLUMNS = 8  # the most frames of a clip in a row
_WIDTH = 1700  # pixels, about that of the picture of photographs
_ROW = 800  # pixels: height of an enlarged row of it, at most
_LARGEST_SCALE = 8  # of it
_QUALITIES = range(1, 96)  # of JPEGs; above 95 Pillow's files grow and hardly improve


class Examples(NamedTuple):
    """Examples to be drawn.

    Attributes:
      originals: ``[example, time, height, width, 3]``.
      reconstructions: the same shape.
      frames: ``[example]``, real frames of each.
    """

    originals: np.ndarray
    reconstructions: np.ndarray
    frames: np.ndarray


class KeptExamples:
    """Keeps the first pictures, or examples evenly spaced over the split.

    Clips beside each other are often of one video, and with several sizes the first are of one.

    Args:
      wanted: how many are kept.
      total: number of examples in the split.
      spaced: whether they are evenly spaced.
    """

    def __init__(self, wanted: int, total: int, *, spaced: bool) -> None:
        self._wanted, self._total, self._spaced = wanted, total, spaced
        self._rows: list[tuple[np.ndarray, ...]] = []

    def update(self, batch: HostBatch) -> None:
        """Takes examples of a batch with ``pixels`` and their ``reconstruction``."""
        chosen = batch.counted
        if self._spaced:
            index, wanted = batch.index, self._wanted
            spaced = index * wanted // self._total > (index - 1) * wanted // self._total
            chosen = chosen & spaced
        parts = (batch.values["pixels"], batch.values["reconstruction"], batch.frames)
        self._rows += zip(*(part[chosen] for part in parts), strict=True)
        del self._rows[self._wanted :]

    def result(self) -> dict[str, Any]:
        """No values: these examples are drawn."""
        return {}

    def kept(self) -> Examples | None:
        """The examples; None if there are none.

        Smaller ones have white below and on the right of them.
        """
        if not self._rows:
            return None
        originals, made, frames = zip(*self._rows, strict=True)
        sides = [max(clip.shape[axis] for clip in originals) for axis in (1, 2)]
        both = [np.stack([_filled(clip, sides) for clip in clips]) for clips in (originals, made)]
        return Examples(both[0], both[1], np.stack(frames))


def one_color_per_patch(pixels: np.ndarray, patch: int | tuple[int, int]) -> np.ndarray:
    """The best picture with one color per patch, of the same shape ``[..., height, width, 3]``."""
    flat = pixels.reshape(-1, 1, *pixels.shape[-3:])
    means = np.rint(np.asarray(metrics.patch_mean(flat, patch)))
    return means.astype(np.uint8).reshape(pixels.shape)


def examples_picture(shown: Examples, patch: int | tuple[int, int]) -> np.ndarray:
    """A picture of examples: single frames side by side, clips over time.

    Args:
      shown: the examples; of clips `CLIPS` are taken.
      patch: side of a patch in pixels, or its (height, width).

    Returns:
      uint8 ``[height, width, 3]``.
    """
    labels = ["original", "reconstruction", ORACLE]
    if shown.originals.shape[1] == 1:
        originals, reconstructions = shown.originals[:, 0], shown.reconstructions[:, 0]
        rows = [originals, reconstructions, one_color_per_patch(originals, patch)]
        return pictures.grid(rows, labels=labels)
    columns = min(_COLUMNS, shown.originals.shape[1])
    cells: list[list[np.ndarray]] = [[], [], []]
    captions = []
    for original, reconstruction, frames in zip(*(part[:CLIPS] for part in shown), strict=True):
        chosen = np.unique(np.rint(np.linspace(0, frames - 1, columns)).astype(int))
        for cell, clip in zip(
            cells, (original, reconstruction, one_color_per_patch(original, patch)), strict=True
        ):
            empty = np.full((columns - len(chosen), *clip.shape[1:]), 255, np.uint8)
            cell.append(np.concatenate([clip[chosen], empty]))
        captions += [f"frame {index}" for index in chosen] + [""] * (columns - len(chosen))
    rows = [np.concatenate(cell) for cell in cells]
    return pictures.grid(rows, labels=labels, captions=captions, columns=columns)


def side_by_side(shown: Examples | None, count: int, bits: int) -> list[np.ndarray]:
    """Videos of clips beside their reconstructions, without padding.

    Args:
      shown: the examples; single frames give no video.
      count: how many videos, at most.
      bits: bits per patch, for the title.

    Returns:
      uint8 ``[time, height, width, 3]`` each, see `bsq_jax.media.videos.side_by_side`.
    """
    if shown is None or shown.originals.shape[1] == 1:
        return []
    names = ("original", f"{bits} bits per patch")
    return [
        videos.side_by_side(dict(zip(names, (original[:frames], made[:frames]), strict=True)))
        for original, made, frames in zip(*(part[:count] for part in shown), strict=True)
    ]


def photographs_picture(
    originals: Sequence[np.ndarray],
    reconstructions: Sequence[np.ndarray],
    *,
    patch: int | tuple[int, int],
    bits: int,
    others: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> np.ndarray:
    """A picture of whole photographs ``[height, width, 3]`` of any sizes, all in one row.

    Below the reconstructions are those of other models by name, JPEGs of at most as many bytes as
    the tokens take, and, without other models, the oracle.
    """
    area = int(np.prod(np.broadcast_to(patch, 2)))
    most = [image.shape[0] * image.shape[1] * bits / (8 * area) for image in originals]
    coded = [jpeg_within(image, size) for image, size in zip(originals, most, strict=True)]
    fits = all(size <= limit for (_, size), limit in zip(coded, most, strict=True))
    by_label = {
        "original": originals,
        f"{bits} bits per patch": reconstructions,
        **(others or {}),
        "JPEG, equal bytes" if fits else "JPEG, its smallest": [image for image, _ in coded],
    }
    if not others:
        by_label["24 bits: one color"] = [one_color_per_patch(image, patch) for image in originals]
    sides = [max(image.shape[i] for image in originals) for i in (0, 1)]
    rows = [np.stack([_centre(image, sides) for image in row]) for row in by_label.values()]
    scale = min(max(1, round(_WIDTH / (len(originals) * sides[1]))), _LARGEST_SCALE)
    scale = max(1, min(scale, _ROW // sides[0]))
    return pictures.grid(rows, labels=list(by_label), columns=len(originals), scale=scale)


def jpeg_within(image: np.ndarray, most: float) -> tuple[np.ndarray, int]:
    """The best JPEG of at most so many bytes; where none is so small, the smallest there is.

    Args:
      image: uint8 ``[height, width, 3]``.
      most: bytes, headers included.

    Returns:
      The decoded picture, like `image`, and its size in bytes.
    """

    def coded(quality: int) -> bytes:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "jpeg", quality=quality, optimize=True)
        return file.getvalue()

    fitting = bisect.bisect_right(_QUALITIES, most, key=lambda quality: len(coded(quality)))
    data = coded(_QUALITIES[max(fitting - 1, 0)])
    with Image.open(io.BytesIO(data)) as decoded:
        return np.asarray(decoded.convert("RGB")), len(data)


def _filled(clip: np.ndarray, sides: list[int]) -> np.ndarray:
    """A clip ``[time, height, width, 3]`` in a white one of these height and width."""
    margins = [(0, 0), *((0, side - own) for side, own in zip(sides, clip.shape[1:3], strict=True))]
    return np.pad(clip, [*margins, (0, 0)], constant_values=255)


def _centre(image: np.ndarray, sides: list[int]) -> np.ndarray:
    """The picture in the middle of a white one of the given height and width."""
    canvas = np.full((*sides, 3), 255, np.uint8)
    top, left = ((side - have) // 2 for side, have in zip(sides, image.shape[:2], strict=True))
    canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas
