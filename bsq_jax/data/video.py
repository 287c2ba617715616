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
import io
import itertools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from bsq_jax.core.timing import Timing, declared_or_default, end_of, regular_or_times
from bsq_jax.data.raw_video import RAW_EXTENSION, RawLayout, raw_layout
from bsq_jax.data.records import BrokenRecord

VIDEO_EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        *("3gp", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts"),
        *("ogv", "ts", "webm", "wmv", "y4m", "yuv"),
    )
)

# A playlist could name files of others or places on the network: only containers are opened.
_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,yuv4mpegpipe",
}

_EXACT = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND


class FrameTable(NamedTuple):
    """The frames of a video in the order in which they are shown.

    Attributes:
      times: When each is shown, in units of the stream's time base, strictly increasing; int64
        [frames].
      keys: Times of the key frames, increasing; int64 [key frames].
      seeks: When each key frame is to be decoded, where the file says so, otherwise its time; int64
        [key frames].
      counted: The file's times are not those at which frames are shown: frames are numbered by
        decoding all from the first.
      end: When the last frame ends, in the same units; None where the file does not tell.
    """

    times: np.ndarray
    keys: np.ndarray
    seeks: np.ndarray
    counted: bool
    end: int | None = None

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        return self.times.nbytes + self.keys.nbytes + self.seeks.nbytes


class Video:
    """An open video file; use it as a context manager, from one thread at a time.

    Attributes:
      table: The frames there are; hand it to the next ``Video`` of this file to save the listing.
      packets: Number of packets given to the decoder so far.
    """

    def __init__(
        self, file: bytes | pathlib.Path, table: FrameTable | None = None, *, exact: bool = True
    ):
        """Opens a file and lists its frames.

        Args:
          file: The encoded file, or its path; of raw video the path, whose name has its size.
          table: What another ``Video`` of this file found; None lists the frames anew.
          exact: Whether colours are rounded to the nearest; else they are cut off, which is ten
            times as fast and makes frames darker by 1 to 1.5 of 255.

        Raises:
          BrokenRecord: It is no video, has no frames, or is cut short.
          OSError: The file cannot be read.
        """
        self._file = file
        self.packets = 0
        self._converter = VideoReformatter()
        self._interpolation = _EXACT if exact else Interpolation.BILINEAR
        self._kept: Any = None  # a packet that was read to see where a seek led
        self._raw: RawLayout | None = None
        if isinstance(file, pathlib.Path) and file.suffix.lower() == RAW_EXTENSION:
            self._raw = raw_layout(file)
        self._container = self._open()
        try:
            self.table = self._list() if table is None else table
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
        return len(self.table.times)

    @property
    def rate(self) -> fractions.Fraction | None:
        """Frames a second on average; None where the file does not tell."""
        if self._raw is not None:
            return self._raw.rate
        stream = self._container.streams.video[0]
        found = stream.average_rate or stream.guessed_rate
        return fractions.Fraction(found) if found else None

    def timing(self, frames: int | None = None) -> fractions.Fraction | Timing:
        """How fast the first frames play: their rate where they have one, else their times.

        Rates come from the times of the frames, not from what the file claims, which is often
        another; of files whose times are none what is claimed is taken.

        Args:
          frames: How many of the frames; None takes all.

        Raises:
          UserError: A frame lasts for so many hours that it cannot be written.
        """
        declared, table = self.rate, self.table
        if self._raw is not None or table.counted:
            return declared_or_default(declared, len(table.times))
        count = len(table.times) if frames is None else frames
        end = int(table.times[count]) if count < len(table.times) else table.end
        base = self._container.streams.video[0].time_base
        return regular_or_times(
            table.times[:count], 1 / fractions.Fraction(base), end=end, declared=declared
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
          numbers: Which frames are wanted, from 0, strictly increasing.

        Yields:
          ``(number, pixels)`` in increasing order, ``pixels()`` being uint8 [height, width, 3],
          turned as the file says. A wanted frame that the file lists and does not contain is the
          one shown before it.

        Raises:
          BrokenRecord: A wanted frame cannot be decoded.
        """
        if self._seek(numbers[0]):
            frames = self._decode()
            try:
                first = next(frames, None)
            except BrokenRecord:  # it may need what comes before
                first = None
            # A stream may call a frame a key from which one can only start to recover.
            intra = first is not None and first.pict_type == PictureType.I
            if first is not None and intra and _time(first) <= self.table.times[numbers[0]]:
                yield from self._number(first, frames, numbers)
                return
        if self._moved:
            self.close()
            self._kept, self._container = None, self._open()
        frames = self._decode()
        first = next(frames, None)
        if first is None:
            raise BrokenRecord("no frame can be decoded")
        yield from self._number(first, frames, numbers)

    def _number(
        self, first: Any, rest: Iterator[Any], numbers: Sequence[int]
    ) -> Iterator[tuple[int, Callable[[], np.ndarray]]]:
        """Numbers decoded frames by their times until all of `numbers` have been given."""
        times, counted, wanted = self.table.times, self.table.counted, list(reversed(numbers))
        shown, frame, position = first, first, 0
        while frame is not None:
            number = position if counted else bisect.bisect_left(times, _time(frame))
            while wanted[-1] < number:
                yield wanted.pop(), functools.partial(self._pixels, shown)
                if not wanted:
                    return
            if counted or (number < len(times) and times[number] == frame.pts):
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
        # One converter for all frames: to make one takes longer than to convert a frame.
        picture = self._converter.reformat(
            frame, format="rgb24", interpolation=self._interpolation
        ).to_ndarray()
        turns = round(frame.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture

    def _open(self) -> Any:
        file = io.BytesIO(self._file) if isinstance(self._file, bytes) else str(self._file)
        raw, kind, options = self._raw, None, _OPTIONS
        if raw is not None:
            kind, size = "rawvideo", f"{raw.width}x{raw.height}"
            options = {**options, "format_whitelist": kind, "video_size": size}
        try:
            container = av.open(file, format=kind, options=options, metadata_errors="ignore")
        except av.ArgumentError as error:
            raise BrokenRecord("not a container of videos that is read here") from error
        except av.FFmpegError as error:
            raise _reason(error, self._file) from error
        if not container.streams.video:
            container.close()
            raise BrokenRecord("there is no video in the file")
        self._moved = False  # whether the next packet is no longer the first
        # A second thread would decode ahead; the pipeline has threads of its own.
        context: Any = container.streams.video[0].codec_context
        context.thread_count = 1
        if raw is not None:
            context.colorspace = Colorspace.ITU709 if raw.high_definition else Colorspace.ITU601
        return container

    def _list(self) -> FrameTable:
        """Reads all packets of the video, decoding none; of raw video nothing at all."""
        if self._raw is not None:
            numbers = np.arange(self._raw.frames, dtype=np.int64)
            return FrameTable(numbers, numbers, numbers, counted=False)
        stream = self._container.streams.video[0]
        promised = len(stream.index_entries)
        found, ordered, timed = 0, True, True
        times: list[int] = []
        lasting: list[int] = []
        keys: dict[int, int] = {}
        self._moved = True
        try:
            for packet in self._container.demux(stream):
                found += packet.size > 0
                if not packet.size or packet.is_discard:
                    continue
                if packet.is_corrupt:
                    raise BrokenRecord(f"cut short after {len(times)} frames")
                time = packet.pts if packet.pts is not None else packet.dts
                if time is None:  # a bare stream
                    timed, time = False, len(times)
                ordered = ordered and (not times or times[-1] < time)
                times.append(time)
                lasting.append(packet.duration or 0)
                if packet.is_keyframe:
                    keys[time] = packet.dts if packet.dts is not None else time
        except av.FFmpegError as error:
            raise _reason(error, self._file) from error
        if found < promised:
            raise BrokenRecord(f"cut short: {found} of {promised} frames are there")
        if not times:
            raise BrokenRecord("the video has no frames")
        order = sorted(keys)
        return FrameTable(
            np.unique(np.array(times, np.int64)),
            np.array(order, np.int64),
            np.array([keys[time] for time in order], np.int64),
            # With B-frames the times in the order of storing jump, unless they are made up.
            counted=not timed or (ordered and bool(stream.codec_context.has_b_frames)),
            end=end_of(times, lasting),
        )

    def _seek(self, number: int) -> bool:
        """Goes to the last key frame up to a frame; False where that is not possible."""
        place = bisect.bisect_right(self.table.keys, self.table.times[number]) - 1
        # Program streams give a time to some frames only, so times differ after a seek.
        if place < 1 or self.table.counted or self._container.format.name == "mpeg":
            return False
        self._moved = True
        stream = self._container.streams.video[0]
        keys, key = self.table.keys, self.table.keys[place]
        following = keys[place + 1] if place + 1 < len(keys) else self.table.times[-1] + 1
        # Some containers seek by the times of showing and others by those of decoding; where frames
        # are not equally long, MP4 may find the key frame only by a later time.
        for time in (key, following - 1, self.table.seeks[place]):
            try:
                self._container.seek(int(time), stream=stream)
                packet = next(self._container.demux(stream))
            except (av.FFmpegError, StopIteration):
                self._kept = None
                continue
            self._kept = packet
            if packet.is_keyframe and packet.pts == key:
                return True
        # An earlier key frame does as well; what else it may be is found out when it is decoded.
        return self._kept is not None and self._kept.pts in keys[:place]

    def _decode(self) -> Iterator[Any]:
        stream = self._container.streams.video[0]
        kept = [] if self._kept is None else [self._kept]
        self._kept, self._moved = None, True
        try:
            for packet in itertools.chain(kept, self._container.demux(stream)):
                self.packets += packet.size > 0
                yield from packet.decode()
        except av.FFmpegError as error:
            raise _reason(error, self._file) from error


def _time(frame: Any) -> int:
    if frame.pts is None:
        raise BrokenRecord("a frame has no time")
    return int(frame.pts)


def _reason(error: av.FFmpegError, file: bytes | pathlib.Path) -> Exception:
    if isinstance(error, OSError) and error.errno and isinstance(file, pathlib.Path):
        return OSError(error.errno, error.strerror, str(file))
    if not (file if isinstance(file, bytes) else file.stat().st_size):
        return BrokenRecord("the file is empty")
    return BrokenRecord(error.strerror or type(error).__name__)
