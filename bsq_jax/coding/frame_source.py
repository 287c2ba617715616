"""What the codec's command compresses: a picture, a video or an animated picture, as frames."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from bsq_jax.coding.tile_tokenizer import checked_frames
from bsq_jax.core.errors import UserError
from bsq_jax.data.decoding.animation import Animation, count_pictures
from bsq_jax.data.decoding.record_frames import is_video, open_record
from bsq_jax.data.decoding.video import Video
from bsq_jax.data.records import BrokenRecord, Record
from bsq_jax.inference.given_pixels import given_frames, read_picture
from bsq_jax.media.timing import Timing


@dataclasses.dataclass(frozen=True)
class Frames:
    """The frames of an input.

    Attributes:
      groups: of a size gives the frames, uint8 ``[time, height, width, 3]`` of so many or, at the
        end, fewer; they are decoded as they are asked for.
      count: how many frames there are.
      rate: of `Codec.encode_groups`.
      notes: lines on what is left out or taken otherwise than the file may let expect.
    """

    groups: Callable[[int], Iterator[np.ndarray]]
    count: int
    rate: Fraction | Timing | Callable[[], Fraction | Timing] | None
    notes: tuple[str, ...]


@contextlib.contextmanager
def open_frames(name: str, content: bytes | pathlib.Path, most: int | None) -> Iterator[Frames]:
    """Opens an input.

    Args:
      name: what to call it.
      content: the bytes of a file, or the path of a video.
      most: take only so many frames of a video or an animation; None: all.

    Raises:
      BrokenRecord: it is no picture or video that can be read.
      OSError: the file cannot be read.
      UserError: its frames have several sizes, or last for so long that it cannot be written.
    """
    record = Record(name, content)
    if is_video(record):
        with open_record(record) as footage:
            assert isinstance(footage, Video)
            count = len(footage) if most is None else min(most, len(footage))
            timing = footage.timing(count)
            notes = ("the sound is left out",) if footage.has_sound else ()
            yield _frames(name, footage, count, timing, (*notes, *_on_rate(footage, timing, count)))
        return
    pictures, animated = count_pictures(content) if isinstance(content, bytes) else (1, False)
    if isinstance(content, bytes) and animated and pictures > 1:
        with Animation(content) as animation:
            count = len(animation) if most is None else min(most, len(animation))
            note = f"an animation of {len(animation)} frames: it becomes a video"
            yield _frames(name, animation, count, animation.timing, (note,))
        return
    with open_record(record) as footage:
        picture = next(iter(footage.frames([0])))[1]()
    note = f"holds {pictures} pictures: the first is taken"
    yield Frames(lambda size: iter([picture[None]]), 1, None, (note,) * (pictures > 1))


@contextlib.contextmanager
def open_given(
    frames: Any, *, value_range: tuple[float, float] | None = None, layout: str | None = None
) -> Iterator[Frames]:
    """Opens what `Codec.encode` takes: a path, or frames in memory.

    Raises:
      UserError: the file cannot be read, or they are no frames.
    """
    if not isinstance(frames, str | os.PathLike):
        held = checked_frames(given_frames(frames, value_range=value_range, layout=layout))

        def groups(size: int) -> Iterator[np.ndarray]:
            return (held[first : first + size] for first in range(0, len(held), size))

        yield Frames(groups, len(held), None, ())
        return
    path, content = read_picture(frames)
    try:
        with open_frames(str(path), content, None) as opened:
            yield opened
    except BrokenRecord as error:
        raise UserError(f"{path} is no picture or video that can be read: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error


def _on_rate(video: Video, timing: Fraction | Timing, count: int) -> tuple[str, ...]:
    """What there is to say of how fast a video plays."""
    if isinstance(timing, Timing):
        return (
            f"frames come at a variable rate: the time of each is kept ({count} frames in "
            f"{float(timing.seconds):.3f} seconds)",
        )
    if video.rate is None:
        return (f"it does not tell its rate: {float(timing):g} frames a second are taken",)
    if abs(video.rate / timing - 1) > Fraction(1, 100):
        return (
            f"it claims {float(video.rate):g} frames a second, and its frames come at "
            f"{float(timing):g}: the latter is taken",
        )
    return ()


def _frames(name: str, footage: Any, count: int, rate: Any, notes: tuple[str, ...]) -> Frames:
    def groups(size: int) -> Iterator[np.ndarray]:
        kept: list[np.ndarray] = []
        shape: tuple[int, ...] | None = None
        for number, pixels in footage.frames(range(count)):
            picture = pixels()
            shape = shape or picture.shape
            if picture.shape != shape:
                raise UserError(
                    f"{name}: frame {number} is of {picture.shape[0]}x{picture.shape[1]} pixels, "
                    f"those before of {shape[0]}x{shape[1]}: cut it where the size changes"
                )
            kept.append(picture)
            if len(kept) == size:
                yield np.stack(kept)
                kept = []
        if kept:
            yield np.stack(kept)

    return Frames(groups, count, rate, notes)
