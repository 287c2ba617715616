"""Which frames a video file has: its packets listed once, without decoding any."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from bsq_jax.data.decoding import containers
from bsq_jax.data.records import BrokenRecord
from bsq_jax.media.timing import end_of


class FrameIndex(NamedTuple):
    """The frames of a video in the order in which they are shown.

    Attributes:
      times: when each is shown, in units of the stream's time base, strictly increasing; int64
        [frames].
      keys: times of the key frames, increasing; int64 [key frames].
      seeks: when each key frame is to be decoded, where the file says so, otherwise its time; int64
        [key frames].
      counted: the file's times are not those at which frames are shown: frames are numbered by
        decoding all from the first.
      end: when the last frame ends, in the same units; None where the file does not tell.
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


def raw_index(frames: int) -> FrameIndex:
    """The frames of raw video: all are key frames, and the time of each is its number."""
    numbers = np.arange(frames, dtype=np.int64)
    return FrameIndex(numbers, numbers, numbers, counted=False)


def list_frames(
    container: Any, stream: Any, file: bytes | pathlib.Path, note: Callable[[str], None]
) -> FrameIndex:
    """Reads all packets of a stream, decoding none.

    Args:
      container: the open file, at its first packet.
      stream: its video stream.
      file: the encoded file, or its path.
      note: is called with a warning about the file.

    Raises:
      BrokenRecord: it has no frames, or is cut short.
      OSError: the file cannot be read.
    """
    promised = len(stream.index_entries)
    reordered = bool(stream.codec_context.has_b_frames)
    found, ordered, timed, back = 0, True, True, False
    times: list[int] = []
    lasting: list[int] = []
    keys: dict[int, int] = {}
    before = 0  # frames that come before the first key frame
    decoded: int | None = None
    for packet in containers.packets(container, stream, file):
        found += packet.size > 0
        if not packet.size or packet.is_discard:
            continue
        if packet.is_corrupt:
            raise BrokenRecord(f"cut short after {len(times)} frames")
        time = packet.pts if packet.pts is not None else packet.dts
        if time is None:  # a bare stream
            timed, time = False, len(times)
        if packet.dts is not None:
            back = back or (decoded is not None and packet.dts < decoded)
            decoded = packet.dts
        back = back or (not reordered and times[-1:] > [time])
        ordered = ordered and times[-1:] < [time]
        times.append(time)
        lasting.append(packet.duration or 0)
        if packet.is_keyframe:
            before = before if keys else len(times) - 1
            keys[time] = packet.dts if packet.dts is not None else time
    if found < promised:
        raise BrokenRecord(f"cut short: {found} of {promised} frames are there")
    if not times:
        raise BrokenRecord("the video has no frames")
    if before:  # a recording that was begun, or cut, in the middle: they cannot be decoded
        start = times[before]
        kept = [n for n in range(before, len(times)) if times[n] >= start or not timed]
        note(
            f"it begins in the middle of a group of pictures: {len(times) - len(kept)} frames "
            "before its first key frame are left out"
        )
        times, lasting = [times[n] for n in kept], [lasting[n] for n in kept]
    shown, counts = np.unique(np.array(times, np.int64), return_counts=True)
    # A key frame with the time of another is not where decoding starts: which of the two is
    # taken would depend on it.
    order = sorted(keys.keys() - set(shown[counts > 1].tolist()))
    # Times that go back, or are mostly one and the same, say nothing of the order.
    unusable = not timed or back or 2 * len(shown) <= len(times) > 1
    return FrameIndex(
        np.arange(len(times), dtype=np.int64) if unusable else shown,
        np.array(order, np.int64),
        np.array([keys[time] for time in order], np.int64),
        # With B-frames the times in the order of storing jump, unless they are made up.
        counted=unusable or (ordered and reordered),
        end=end_of(times, lasting),
    )
