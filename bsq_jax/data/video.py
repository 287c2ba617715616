"""Frames of video files: which there are, and decoding those that are wanted and no more.

A frame is known by its time, not by its place in the file: with B-frames the order in the file is
not the order on the screen, and with a variable rate the time says nothing about the number. So the
packets of a file are listed once, without decoding any; their sorted times number the frames. Then
decoding starts at the last key frame before the first frame that is wanted and ends with the last.
"""

import bisect
import io
import pathlib
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import av
import numpy as np

from bsq_jax.data.records import BrokenRecord

VIDEO_EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        *("3gp", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts"),
        *("ogv", "ts", "webm", "wmv"),
    )
)

# A playlist could name files of others or places on the network: nothing but the file is opened.
_OPTIONS = {"protocol_whitelist": "file"}


class FrameTable(NamedTuple):
    """The frames of a video in the order in which they are shown.

    Attributes:
      times: When each is shown, in units of the stream's time base, strictly increasing; int64
        [frames].
      keys: Times of the key frames, increasing; int64 [key frames].
      seeks: Where to seek for each key frame: its decoding time; int64 [key frames].
    """

    times: np.ndarray
    keys: np.ndarray
    seeks: np.ndarray


class Video:
    """An open video file; use it as a context manager, from one thread at a time.

    Attributes:
      table: The frames there are; hand it to the next ``Video`` of this file to save the listing.
      packets: Number of packets given to the decoder so far.
    """

    def __init__(self, file: bytes | pathlib.Path, table: FrameTable | None = None):
        """Opens a file and lists its frames.

        Args:
          file: The encoded file, or its path.
          table: What another ``Video`` of this file found; None lists the frames anew.

        Raises:
          BrokenRecord: It is no video, has no frames, or is cut short.
          OSError: The file cannot be read.
        """
        self._file = file
        self.packets = 0
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
        start, times = numbers[0], self.table.times
        if start and self._seek(times[start]):
            frames = self._decode()
            first = next(frames, None)
            # Not every format finds the key frame that it was asked for.
            if first is not None and first.pts is not None and first.pts <= times[start]:
                yield from self._number(first, frames, numbers)
                return
        if self.packets or start:
            self.close()
            self._container = self._open()
        frames = self._decode()
        first = next(frames, None)
        if first is None:
            raise BrokenRecord("no frame can be decoded")
        yield from self._number(first, frames, numbers)

    def _number(
        self, first: Any, rest: Iterator[Any], numbers: Sequence[int]
    ) -> Iterator[tuple[int, Callable[[], np.ndarray]]]:
        """Numbers decoded frames by their times until all of `numbers` have been given."""
        times, wanted = self.table.times, list(reversed(numbers))
        shown, frame = first, first
        while frame is not None:
            number = bisect.bisect_left(times, frame.pts)
            while wanted and wanted[-1] < number:
                yield wanted.pop(), _pixels_of(shown)
            if not wanted:
                return
            if number < len(times) and times[number] == frame.pts:
                if number == wanted[-1]:
                    wanted.pop()
                yield number, _pixels_of(frame)
            if not wanted:
                return
            shown, frame = frame, next(rest, None)
        raise BrokenRecord(f"frame {wanted[-1]} of {len(times)} cannot be decoded")

    def _open(self) -> Any:
        file = io.BytesIO(self._file) if isinstance(self._file, bytes) else str(self._file)
        try:
            container = av.open(file, options=_OPTIONS, metadata_errors="ignore")
        except av.FFmpegError as error:
            raise _reason(error, self._file) from error
        if not container.streams.video:
            container.close()
            raise BrokenRecord("there is no video in the file")
        # A second thread would decode ahead; the pipeline has threads of its own.
        container.streams.video[0].codec_context.thread_count = 1
        return container

    def _list(self) -> FrameTable:
        """Reads all packets of the video, decoding none."""
        stream = self._container.streams.video[0]
        promised = len(stream.index_entries)
        found = 0
        times: list[int] = []
        keys: dict[int, int] = {}
        try:
            for packet in self._container.demux(stream):
                found += packet.size > 0
                time = packet.pts if packet.pts is not None else packet.dts
                if time is None or not packet.size or packet.is_discard:
                    continue
                if packet.is_corrupt:
                    raise BrokenRecord(f"cut short after {len(times)} frames")
                times.append(time)
                if packet.is_keyframe:
                    keys[time] = packet.dts if packet.dts is not None else time
        except av.FFmpegError as error:
            raise _reason(error, self._file) from error
        if found < promised:
            raise BrokenRecord(f"cut short: {found} of {promised} frames are there")
        if not times:
            raise BrokenRecord("the video has no frames")
        self._container.seek(0)
        order = sorted(keys)
        return FrameTable(
            np.unique(np.array(times, np.int64)),
            np.array(order, np.int64),
            np.array([keys[time] for time in order], np.int64),
        )

    def _seek(self, time: int) -> bool:
        """Goes to the last key frame up to `time`; False where that is not possible."""
        place = bisect.bisect_right(self.table.keys, time) - 1
        if place < 1:
            return False
        stream = self._container.streams.video[0]
        try:
            self._container.seek(int(self.table.seeks[place]), stream=stream)
        except av.FFmpegError:
            return False
        return True

    def _decode(self) -> Iterator[Any]:
        try:
            for packet in self._container.demux(self._container.streams.video[0]):
                self.packets += packet.size > 0
                yield from packet.decode()
        except av.FFmpegError as error:
            raise _reason(error, self._file) from error


def _pixels_of(frame: Any) -> Callable[[], np.ndarray]:
    def pixels() -> np.ndarray:
        if frame.is_corrupt:
            raise BrokenRecord("a frame is damaged")
        picture: np.ndarray = frame.to_ndarray(format="rgb24")
        turns = round(frame.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture

    return pixels


def _reason(error: av.FFmpegError, file: bytes | pathlib.Path) -> Exception:
    if isinstance(error, OSError) and error.errno and isinstance(file, pathlib.Path):
        return OSError(error.errno, error.strerror, str(file))
    if not file:
        return BrokenRecord("the file is empty")
    return BrokenRecord(str(error).partition("\n")[0] or type(error).__name__)
