"""Which of the sizes of ``data.sizes`` a picture or video has: the rule, and all of a source.

The rule, here and nowhere else:

1. A picture gets the sizes whose aspect ratio is nearest to its own, by the logarithm of the
   ratios, so that 2:1 is as far from 1:1 as 1:2 is. Of two that are equally far it is the first in
   the list.
2. Of several sizes with that aspect ratio it belongs to the largest that it fills: whose sides are
   no longer than its own. A picture that fills none belongs to the smallest, and is enlarged.
3. It is resized, with its proportions, until it covers the size, and what is left over along one
   axis is cut off: at random in training, equally on both sides in evaluation. Nothing is padded,
   and nothing is cropped to a square unless a square is nearest.

Extreme pictures are no exceptions: a 1x1 picture becomes a uniform square, and of a 6000x100
picture the part that the tallest size has of it is kept.

In training a picture is seen as often at each size of its aspect ratio that it fills (`choices`):
with 128x128 and 256x256 half of the crops of large pictures have 128x128.

``data.resize`` is relative to ``model.image_size``: with 320 for the short side of 256x256 a
picture covers its size 1.25 times. With 0 it keeps its own size, unless that does not cover.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from fractions import Fraction
from typing import TypeVar

import numpy as np

from bsq_jax.core.once import say_once
from bsq_jax.core.progress import labelled, progress
from bsq_jax.data.decoding.record_frames import size_of
from bsq_jax.data.records import BrokenRecord, PartlyRead, Source
from bsq_jax.data.retry import with_retries

T = TypeVar("T")
Size = tuple[int, int]  # height, width

_JPEG = b"\xff\xd8\xff"
_HEADER = 2**16  # bytes of a JPEG that are read first
UNKNOWN = (0, 0)  # size of a record that cannot be read
_LONG = 5.0  # seconds after which reading the sizes is told of


def assign(shapes: np.ndarray, sizes: Sequence[Size]) -> np.ndarray:
    """The size that each picture belongs to, see the rule of this module.

    Args:
      shapes: (height, width) of the pictures, int ``[picture, 2]``.
      sizes: those to choose from, different ones.

    Returns:
      Numbers of `sizes`, int64 ``[picture]``; `UNKNOWN` pictures are with the most others.
    """
    shapes = np.asarray(shapes, np.int64).reshape(-1, 2)
    ratios = list(dict.fromkeys(Fraction(height, width) for height, width in sizes))
    known = np.all(shapes > 0, axis=1)
    sides = np.maximum(shapes, 1).astype(np.float64)
    own = np.log(sides[:, 0]) - np.log(sides[:, 1])
    offered = np.array(
        [math.log(ratio.numerator) - math.log(ratio.denominator) for ratio in ratios]
    )
    # Rounded, so that of two that are equally far the first is nearest on every machine.
    distances = np.round(np.abs(own[:, None] - offered), 9)
    nearest = np.argmin(distances, axis=1)
    found = np.zeros(len(shapes), np.int64)
    for number, ratio in enumerate(ratios):
        alike = _with_ratio(sizes, ratio)
        mine = nearest == number
        chosen = np.full(int(mine.sum()), alike[0])
        for size in alike:  # from the smallest to the largest
            chosen[np.all(shapes[mine] >= sizes[size], axis=1)] = size
        found[mine] = chosen
    if known.any() and not known.all():
        found[~known] = np.bincount(found[known], minlength=len(sizes)).argmax()
    return found


def choices(size: int, sizes: Sequence[Size]) -> tuple[int, ...]:
    """The numbers of the sizes that pictures which belong to one are trained at, by area."""
    alike = _with_ratio(sizes, Fraction(*sizes[size]))
    return alike[: alike.index(size) + 1]


def covering_side(shape: Size, size: Size, factor: Fraction = Fraction(1)) -> int:
    """The short side of a picture that is resized until it covers a size.

    Args:
      shape: (height, width) of the picture; of an `UNKNOWN` one the result covers in any case.
      size: (height, width) that is to be covered.
      factor: how many times; at least 1.
    """
    if not all(shape):
        return math.ceil(max(size) * factor)
    short = min(shape)
    return max(
        math.ceil(side * short * factor / own) for own, side in zip(shape, size, strict=True)
    )


def _with_ratio(sizes: Sequence[Size], ratio: Fraction) -> tuple[int, ...]:
    """Numbers of the sizes of an aspect ratio, from the smallest to the largest."""
    alike = [n for n, (height, width) in enumerate(sizes) if Fraction(height, width) == ratio]
    return tuple(sorted(alike, key=lambda number: sizes[number]))


@dataclasses.dataclass(frozen=True)
class SizedSource:
    """A source whose records each have a size.

    Attributes:
      source: the records.
      sizes: (height, width) of those of the settings, in pixels.
      shapes: (height, width) of each record as it is stored, int64 ``[record, 2]``; `UNKNOWN`
        where that could not be read.
      belongs: the number of the size that each record belongs to, int64 ``[record]``.
    """

    source: Source
    sizes: tuple[Size, ...]
    shapes: np.ndarray
    belongs: np.ndarray

    def digest(self) -> str:
        """A text that differs where a record belongs to another size or has another shape."""
        parts = self.shapes.astype("<i8").tobytes(), self.belongs.astype("<i8").tobytes()
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def members(self) -> dict[int, np.ndarray]:
        """For each size that has records, by its number, the numbers of these."""
        return {
            number: np.flatnonzero(self.belongs == number)
            for number in range(len(self.sizes))
            if np.any(self.belongs == number)
        }


def open_sized(
    source: Source, sizes: Sequence[Size], threads: int, use: str = "training"
) -> SizedSource:
    """Reads the size of each record of a source, and says so where it takes long.

    Args:
      source: the records.
      sizes: those to choose from.
      threads: that read; 0 for the caller's alone.
      use: what the records are for, for the log.
    """
    shapes = shapes_of(source, threads)
    sized = SizedSource(source, tuple(sizes), shapes, assign(shapes, sizes))
    empty = [name(sizes[n]) for n in range(len(sizes)) if not np.any(sized.belongs == n)]
    if empty:
        say_once(f"{source.name}: no record for {use} belongs to {', '.join(empty)} of data.sizes")
    return sized


def shapes_of(source: Source, threads: int) -> np.ndarray:
    """(height, width) of each record as it is stored, int64 ``[record, 2]``; see `SizedSource`.

    Of pictures the headers are read, of videos the first frame.
    """

    def read(index: int) -> tuple[int, int]:
        try:
            return with_retries(lambda: _size_of(source, index))
        except (BrokenRecord, OSError):
            return UNKNOWN

    began = time.monotonic()
    found = over_records(source, read, threads)
    seconds = time.monotonic() - began
    if seconds > _LONG:
        logging.getLogger("bsq_jax").warning(
            "%s: reading the sizes of %s records took %.0f s",
            source.name,
            f"{len(source):,d}",
            seconds,
        )
    return np.array(found, np.int64).reshape(-1, 2)


def _size_of(source: Source, index: int) -> Size:
    """(height, width) of a record; of a JPEG no more is read than it takes, where that is possible.

    Other files may have what turns a picture behind its pixels.
    """
    if isinstance(source, PartlyRead):
        record = source.beginning(index, _HEADER)
        if isinstance(record.content, bytes) and record.content.startswith(_JPEG):
            with contextlib.suppress(BrokenRecord):
                return size_of(record)
    return size_of(source[index])


def over_records(source: Source, read: Callable[[int], T], threads: int) -> list[T]:
    """What `read` gives for each record of a source, in order; it shows how far it is."""
    with (
        futures.ThreadPoolExecutor(max(1, threads)) as pool,
        labelled(f"reading sizes, {source.name}"),
        progress(len(source), "records") as advance,
    ):
        return list(advance(pool.map(read, range(len(source))), lambda _: 1))


def name(size: Size) -> str:
    """HEIGHTxWIDTH, as ``data.sizes`` has it."""
    return f"{size[0]}x{size[1]}"
