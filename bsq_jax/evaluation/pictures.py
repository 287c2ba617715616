"""What an evaluation shows: pictures, clips frame by frame, videos.

Pixels are uint8 in 0..255. Reconstructions stand between their originals and an oracle, the best
picture of one colour a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bsq_jax.evaluation import metrics
from bsq_jax.media import pictures, videos

ORACLE = "one colour a patch"
CLIPS = 3  # in the picture of clips
_COLUMNS = 8  # frames of a clip beside each other, at most


class Shown(NamedTuple):
    """Examples to look at.

    Attributes:
      originals: ``[example, time, height, width, 3]``.
      reconstructions: the same shape.
      frames: ``[example]``, real frames of each.
    """

    originals: np.ndarray
    reconstructions: np.ndarray
    frames: np.ndarray


def best_one_colour(pixels: np.ndarray, patch: int) -> np.ndarray:
    """The best pixels of one colour a patch, of the same shape ``[..., height, width, 3]``."""
    flat = pixels.reshape(-1, 1, *pixels.shape[-3:])
    means = np.rint(np.asarray(metrics.patch_mean(flat, patch)))
    return means.astype(np.uint8).reshape(pixels.shape)


def picture(shown: Shown, patch: int) -> np.ndarray:
    """A picture of examples: single frames beside each other, clips over time.

    Args:
      shown: the examples; of clips `CLIPS` are taken.
      patch: side of a patch in pixels.

    Returns:
      uint8 ``[height, width, 3]``.
    """
    labels = ["original", "reconstruction", ORACLE]
    if shown.originals.shape[1] == 1:
        originals, reconstructions = shown.originals[:, 0], shown.reconstructions[:, 0]
        rows = [originals, reconstructions, best_one_colour(originals, patch)]
        return pictures.grid(rows, labels=labels)
    columns = min(_COLUMNS, shown.originals.shape[1])
    cells: list[list[np.ndarray]] = [[], [], []]
    captions = []
    for original, reconstruction, frames in zip(*(part[:CLIPS] for part in shown), strict=True):
        chosen = np.unique(np.rint(np.linspace(0, frames - 1, columns)).astype(int))
        for cell, clip in zip(
            cells, (original, reconstruction, best_one_colour(original, patch)), strict=True
        ):
            empty = np.full((columns - len(chosen), *clip.shape[1:]), 255, np.uint8)
            cell.append(np.concatenate([clip[chosen], empty]))
        captions += [f"frame {index}" for index in chosen] + [""] * (columns - len(chosen))
    rows = [np.concatenate(cell) for cell in cells]
    return pictures.grid(rows, labels=labels, captions=captions, columns=columns)


def movies(shown: Shown | None, count: int, bits: int) -> list[np.ndarray]:
    """Clips beside their reconstructions, without padding.

    Args:
      shown: the examples; single frames give no movie.
      count: how many movies, at most.
      bits: bits a patch, for the name.

    Returns:
      uint8 ``[time, height, width, 3]`` each, see `bsq_jax.media.videos.beside`.
    """
    if shown is None or shown.originals.shape[1] == 1:
        return []
    names = ("original", f"{bits} bits a patch")
    return [
        videos.beside(dict(zip(names, (original[:frames], made[:frames]), strict=True)))
        for original, made, frames in zip(*(part[:count] for part in shown), strict=True)
    ]


def photographs(
    originals: Sequence[np.ndarray], reconstructions: Sequence[np.ndarray], *, patch: int, bits: int
) -> np.ndarray:
    """A picture of whole photographs ``[height, width, 3]`` of any sizes, all in one row."""
    oracle = [best_one_colour(image, patch) for image in originals]
    sides = [max(image.shape[i] for image in originals) for i in (0, 1)]
    rows = [
        np.stack([_centre(image, sides) for image in row])
        for row in (originals, reconstructions, oracle)
    ]
    labels = ["original", f"{bits} bits a patch", "24 bits: one colour"]
    return pictures.grid(rows, labels=labels, columns=len(originals))


def _centre(image: np.ndarray, sides: list[int]) -> np.ndarray:
    """The picture in the middle of a white one of the given height and width."""
    canvas = np.full((*sides, 3), 255, np.uint8)
    top, left = ((side - have) // 2 for side, have in zip(sides, image.shape[:2], strict=True))
    canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas
