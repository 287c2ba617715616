"""Animated pictures as videos: GIF, WebP, PNG (APNG) and AVIF, with the durations of their frames.

Data sources, ``rd`` and ``score`` take the first frame of such a file; ``encode`` takes all.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

from bsq_jax.data.decoding import metadata, stills
from bsq_jax.data.records import BrokenRecord
from bsq_jax.media.timing import Timing, durations_of

_FORMATS = ("GIF", "WEBP", "PNG", "AVIF")
_PAGES = ("TIFF",)  # several pictures that are no animation
_NO_TIME = Fraction(1, 10)  # seconds: what browsers make of a frame that is to last 0
_FINEST = 65535  # parts of a second that the durations of PNG can have


def count_pictures(file: bytes) -> tuple[int, bool]:
    """``(frames, whether they are an animation)`` of a file that may be a picture; 1 if unknown.

    A file of several pages, such as a scanned document, is no animation.

    Raises:
      BrokenRecord: it is an animation that is cut short.
    """
    if whole := _whole_of_a_cut_gif(file):
        raise BrokenRecord(f"cut short after {whole} frame{'s' * (whole > 1)} of an animation")
    with contextlib.suppress(Exception), Image.open(io.BytesIO(file)) as opened:
        if opened.format in _FORMATS:
            return getattr(opened, "n_frames", 1) - _hidden(opened), True
        if opened.format in _PAGES:
            return getattr(opened, "n_frames", 1), False
    return 1, False


class Animation:
    """The frames of an animated picture; they are made one by one, so that memory is bounded.

    Frames are as they are shown: composed by Pillow, and on white where they are transparent.
    """

    def __init__(self, file: bytes):
        """Opens an animation.

        Args:
          file: its bytes.

        Raises:
          BrokenRecord: it cannot be read.
        """
        try:
            image: Any = Image.open(io.BytesIO(file))
            self._first = _hidden(image)
            self._count = image.n_frames - self._first
            self._turn = metadata.TURNS.get(metadata.orientation(image))
        except Exception as error:  # Pillow's plugins raise nearly anything on damaged bytes
            raise BrokenRecord(_reason(error)) from error
        self._image = image
        self._seconds: list[Fraction] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._image.close()

    def __len__(self) -> int:
        """Number of frames, as the file has it."""
        return self._count

    def frames(self, numbers: Sequence[int]) -> Iterator[tuple[int, Callable[[], np.ndarray]]]:
        """The first frames, in order.

        Args:
          numbers: ``range(count)``.

        Yields:
          ``(number, pixels)``, ``pixels()`` being uint8 [height, width, 3] as long as the next one
          was not asked for.

        Raises:
          BrokenRecord: a frame cannot be decoded.
        """
        self._seconds = []
        for number in numbers:
            try:
                self._image.seek(self._first + number)
                self._image.load()
                duration = Fraction(self._image.info.get("duration") or 0)
            except Exception as error:
                raise BrokenRecord(
                    f"frame {number} of {self._count} cannot be decoded: {_reason(error)}"
                ) from error
            self._seconds.append((duration / 1000).limit_denominator(_FINEST) or _NO_TIME)
            yield number, functools.partial(self._pixels, self._image)

    def timing(self) -> Fraction | Timing:
        """How fast the frames play that were given.

        Raises:
          UserError: a frame lasts for so many hours that it cannot be written.
        """
        return durations_of(self._seconds)

    def _pixels(self, image: Image.Image) -> np.ndarray:
        turned = image.copy() if self._turn is None else image.transpose(self._turn)
        return stills.to_rgb(turned)


def _hidden(image: Image.Image) -> int:
    """Pictures before the animation that are for readers of plain PNG alone, 0 or 1."""
    return int(bool(getattr(image, "default_image", False)))


def _whole_of_a_cut_gif(file: bytes) -> int:
    """How many frames are whole of a GIF that ends inside a later one; 0 of what is not cut so.

    Pillow takes such a file for a shorter one.
    """
    if file[:4] != b"GIF8":
        return 0

    def table(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    frames, image = 0, False
    try:
        place = 13 + table(file[10])
        while place < len(file) and file[place] in b"!,":
            image = file[place] == ord(",")
            place += 11 + table(file[place + 9]) if image else 2
            while size := file[place]:
                place += 1 + size
            place += 1
            frames += image
    except IndexError:
        return frames if image else 0
    return 0


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
