"""Frames of video files: which there are, and decoding those that are wanted and no more.

A frame is known by its time, not by its place in the file: with B-frames the order in the file is
not the order on the screen, and with a variable rate the time says nothing about the number. So the
packets of a file are listed once, without decoding any; their sorted times number the frames. Then
decoding starts at the last key frame before the first frame that is wanted and ends with the last.

Containers differ in what a seek finds, so a seek is believed only when it lands on a key frame that
was listed; else the file is decoded from its beginning. That costs time, but the frames are the
same either way.
"""

import bisect
import fractions
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from absl import logging
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from PIL import Image

from bsq_jax.data.decoding import colours, containers
from bsq_jax.data.decoding.frame_index import FrameIndex, list_frames, raw_index
from bsq_jax.data.decoding.raw_video import RAW_EXTENSION, RawLayout, raw_layout
from bsq_jax.data.records import BrokenRecord
from bsq_jax.media.timing import Timing, declared_or_default, regular_or_times

VIDEO_EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        *("3gp", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts"),
        *("ogv", "ts", "webm", "wmv", "y4m", "yuv"),
    )
)

# Samples as wide as this or less are believed: of formats in use 128:33 differ most from squares.
_MOST_ASPECT = 4

_noted: set[tuple[str, str]] = set()  # what has been said of which file, by this process


class Video:
    """An open video file; use it as a context manager, from one thread at a time.

    Attributes:
      frame_index: the frames there are; given to the next ``Video`` of this file, it saves the
        listing.
      packets: number of packets given to the decoder so far.
    """

    def __init__(
        self,
        file: bytes | pathlib.Path,
        frame_index: FrameIndex | None = None,
        *,
        exact: bool = True,
        name: str = "",
    ):
        """Opens a file and lists its frames.

        Args:
          file: the encoded file, or its path; of raw video the path, whose name has its size.
          frame_index: what another ``Video`` of this file found; None lists the frames anew.
          exact: whether colours are rounded to the nearest; else they are cut off, which is ten
            times as fast and makes frames darker by 1 to 1.5 of 255.
          name: what warnings call it; by default its path, if there is one.

        Raises:
          BrokenRecord: it is no video, has no frames, or is cut short.
          OSError: the file cannot be read.
        """
        self._file = file
        self._name = name or (str(file) if isinstance(file, pathlib.Path) else "a video")
        self.packets = 0
        self._converter = VideoReformatter()
        self._exact = exact
        self._kept: Any = None  # a packet that was read to see where a seek led
        self._raw: RawLayout | None = None
        if isinstance(file, pathlib.Path) and file.suffix.lower() == RAW_EXTENSION:
            self._raw = raw_layout(file)
        self._open()
        try:
            self.frame_index = self._list() if frame_index is None else frame_index
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.frame_index.times)

    @property
    def rate(self) -> fractions.Fraction | None:
        """Frames a second on average; None where the file does not tell."""
        if self._raw is not None:
            return self._raw.rate
        found = self._stream.average_rate or self._stream.guessed_rate
        return fractions.Fraction(found) if found else None

    def timing(self, frames: int | None = None) -> fractions.Fraction | Timing:
        """How fast the first frames play: their rate where they have one, else their times.

        Rates come from the times of the frames, not from what the file claims, which is often
        another; of files whose times are none what is claimed is taken.

        Args:
          frames: how many of the frames; None takes all.

        Raises:
          UserError: a frame lasts for so many hours that it cannot be written.
        """
        declared, frame_index = self.rate, self.frame_index
        if self._raw is not None or frame_index.counted:
            return declared_or_default(declared, len(frame_index.times))
        count = len(frame_index.times) if frames is None else frames
        end = int(frame_index.times[count]) if count < len(frame_index.times) else frame_index.end
        base = self._stream.time_base
        return regular_or_times(
            frame_index.times[:count], 1 / fractions.Fraction(base), end=end, declared=declared
        )

    @property
    def has_sound(self) -> bool:
        """Whether there is sound in the file."""
        return bool(self._container.streams.audio)

    def frames(self, numbers: Sequence[int]) -> Iterator[tuple[int, Callable[[], np.ndarray]]]:
        """Decodes from the key frame before the first wanted frame up to the last wanted one.

        Frames on the way cost their decoding in any case and are given too; what is not called is
        not converted to RGB.

        Args:
          numbers: which frames are wanted, from 0, strictly increasing.

        Yields:
          ``(number, pixels)`` in increasing order, ``pixels()`` being uint8 [height, width, 3] in
          sRGB (see `colours`), of square pixels and turned as the file says. A
          wanted frame that the file lists and does not contain is the one shown before it.

        Raises:
          BrokenRecord: a wanted frame cannot be decoded.
        """
        if self._seek(numbers[0]):
            frames = self._decode()
            try:
                first = next(frames, None)
            except BrokenRecord:  # it may need what comes before
                first = None
            # A stream may call a frame a key from which one can only start to recover.
            intra = first is not None and first.pict_type == PictureType.I
            if first is not None and intra and _time(first) <= self.frame_index.times[numbers[0]]:
                yield from self._number(first, frames, numbers)
                return
        if self._moved:
            self.close()
            self._open()
        frames = self._decode()
        first = next(frames, None)
        if first is None:
            raise BrokenRecord("no frame can be decoded")
        yield from self._number(first, frames, numbers)

    def _number(
        self, first: Any, rest: Iterator[Any], numbers: Sequence[int]
    ) -> Iterator[tuple[int, Callable[[], np.ndarray]]]:
        """Numbers decoded frames by their times until all of `numbers` have been given."""
        times, counted, wanted = (
            self.frame_index.times,
            self.frame_index.counted,
            list(reversed(numbers)),
        )
        shown, frame, position, last = first, first, 0, -1
        while frame is not None:
            number = position if counted else bisect.bisect_left(times, _time(frame))
            while wanted[-1] < number:
                yield wanted.pop(), functools.partial(self._pixels, shown)
                if not wanted:
                    return
            listed = counted or (number < len(times) and times[number] == frame.pts)
            if listed and number > last:  # of two frames with one time the first is taken
                last = number
                if number == wanted[-1]:
                    wanted.pop()
                yield number, functools.partial(self._pixels, frame)
                if not wanted:
                    return
            shown, frame, position = frame, next(rest, None), position + 1
        raise BrokenRecord(f"frame {wanted[-1]} of {len(times)} cannot be decoded")

    def _pixels(self, frame: Any) -> np.ndarray:
        if frame.is_corrupt:
            raise BrokenRecord("a frame is damaged")
        if frame.interlaced_frame:
            self._note("it is interlaced and is not deinterlaced: moving edges will show combs")
        picture = self._squared(colours.to_srgb(self._converter, frame, exact=self._exact))
        turns = round(frame.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture

    def _squared(self, picture: np.ndarray) -> np.ndarray:
        """Resamples to square pixels: one side grows, so that nothing is lost, the other stays."""
        aspect = self._stream.sample_aspect_ratio
        if not aspect or aspect == 1:
            return picture
        height, width, _ = picture.shape
        factor = max(aspect, 1 / aspect)
        if not 0 < factor <= _MOST_ASPECT or factor * height * width > containers.MAX_PIXELS:
            self._note(f"samples of {aspect.numerator}:{aspect.denominator} are taken for square")
            return picture
        size = (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))
        return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))

    def _note(self, text: str) -> None:
        """Says something about the file, once in the life of the process."""
        file = str(self._file) if isinstance(self._file, pathlib.Path) else self._name
        if (file, text) not in _noted:
            _noted.add((file, text))
            logging.warning("%s: %s", self._name, text)

    def _open(self) -> None:
        self._container, self._stream = containers.open_film(self._file, self._raw)
        self._moved = False  # whether the next packet is no longer the first
        self._kept = None

    def _list(self) -> FrameIndex:
        if self._raw is not None:
            return raw_index(self._raw.frames)
        self._moved = True
        return list_frames(self._container, self._stream, self._file, self._note)

    def _seek(self, number: int) -> bool:
        """Goes to the last key frame up to a frame; False where that is not possible."""
        place = bisect.bisect_right(self.frame_index.keys, self.frame_index.times[number]) - 1
        # Program streams give a time to some frames only, so times differ after a seek.
        if place < 1 or self.frame_index.counted or self._container.format.name == "mpeg":
            return False
        self._moved = True
        times, keys = self.frame_index.times, self.frame_index.keys
        key = int(keys[place])
        last = int(keys[place + 1]) - 1 if place + 1 < len(keys) else int(times[-1])
        # Some containers seek by the times of showing and others by those of decoding; where frames
        # are not equally long, MP4 may find the key frame only by a later time.
        for time in (key, last, int(self.frame_index.seeks[place])):
            try:
                self._container.seek(time, stream=self._stream)
                packet = next(self._container.demux(self._stream))
            except Exception:  # whatever it is, decoding from the beginning is left
                self._kept = None
                continue
            self._kept = packet
            if packet.is_keyframe and packet.pts == key:
                return True
        # An earlier key frame does as well; what else it may be is found out when it is decoded.
        return self._kept is not None and self._kept.pts in keys[:place]

    def _decode(self) -> Iterator[Any]:
        kept = [] if self._kept is None else [self._kept]
        self._kept, self._moved = None, True
        following = containers.packets(self._container, self._stream, self._file)
        for packet in itertools.chain(kept, following):
            self.packets += packet.size > 0
            try:
                frames = packet.decode()
            except Exception as error:
                raise containers.damage(error) from error
            yield from frames


def _time(frame: Any) -> int:
    if frame.pts is None:
        raise BrokenRecord("a frame has no time")
    return int(frame.pts)
