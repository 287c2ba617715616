"""The frames of a record, whatever it holds; a picture is a video of one frame."""

import contextlib
import functools
import io
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from bsq_jax.data.decoding import heic, stills
from bsq_jax.data.decoding.frame_index import FrameIndex
from bsq_jax.data.decoding.video import Video
from bsq_jax.data.records import BrokenRecord, Record, Still

# Converts one frame to pixels, uint8 [height, width, 3]; costs nothing unless it is called.
Render = Callable[[], np.ndarray]


class RecordFrames(Protocol):
    """Frames of one record.

    Attributes:
      frame_index: what opening the record again can start from.
    """

    @property
    def frame_index(self) -> FrameIndex | int:
        """The frames of a file, or their number."""
        ...

    def __len__(self) -> int:
        """Number of frames."""
        ...

    def frames(self, numbers: Sequence[int]) -> Iterator[tuple[int, Render]]:
        """The frames with these numbers, strictly increasing, and maybe some between."""
        ...


class Stills:
    """Frames that are stored or made one by one."""

    def __init__(self, images: Sequence[Still], draft_side: int, backend: str):
        if not len(images):
            raise BrokenRecord("the video has no frames")
        self._images = images
        self._decode = functools.partial(stills.decode, draft_side=draft_side, backend=backend)
        self.frame_index = len(images)

    def __len__(self) -> int:
        return self.frame_index

    def frames(self, numbers: Sequence[int]) -> Iterator[tuple[int, Render]]:
        """The frames with these numbers; see `RecordFrames`."""
        for number in numbers:
            yield number, functools.partial(self._render, number)

    def _render(self, number: int) -> np.ndarray:
        return self._decode(self._images[number])


@contextlib.contextmanager
def open_record(
    record: Record,
    *,
    draft_side: int = 0,
    frame_index: FrameIndex | int | None = None,
    backend: str = "pillow",
) -> Iterator[RecordFrames]:
    """Opens what a record holds, told apart by its content.

    Args:
      record: what the source holds.
      draft_side: as in `stills.decode` for pictures; colours of videos are converted exactly where
        it is 0 and fast elsewhere.
      frame_index: what ``frame_index`` was when the record was open before; None finds it anew.
      backend: as in `stills.decode`.

    Raises:
      BrokenRecord: it is neither a picture nor a video, or has no frames.
      OSError: its file cannot be read.
    """
    content = record.content
    if is_video(record):
        assert isinstance(content, bytes | pathlib.Path)
        known = frame_index if isinstance(frame_index, FrameIndex) else None
        with Video(content, known, exact=not draft_side, name=record.id) as video:
            yield video
    elif isinstance(content, bytes | np.ndarray):
        yield Stills([content], draft_side, backend)
    else:
        assert not isinstance(content, pathlib.Path)
        yield Stills(content, draft_side, backend)


def is_video(record: Record) -> bool:
    """Whether the record is an encoded video file; what is not known either way is not."""
    if isinstance(record.content, pathlib.Path):
        return True
    if not isinstance(record.content, bytes):
        return False
    try:
        with Image.open(io.BytesIO(record.content)):
            return False
    except Exception:  # Pillow's plugins raise nearly anything on bytes that they do not know
        return looks_like_video(record.content)


def looks_like_video(file: bytes) -> bool:
    """Whether the first bytes are those of a container of videos."""
    head = file[:16]
    return (
        not heic.is_heic(head)
        and (
            head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # MP4, QuickTime
            or head.startswith(b"\x1a\x45\xdf\xa3")  # Matroska, WebM
            or (head.startswith(b"RIFF") and head[8:12] == b"AVI ")
            or head.startswith(
                (b"OggS", b"FLV", b"YUV4MPEG2 ", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3")
            )
            or head.startswith(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11")  # ASF: WMV
            or (head.startswith(b"G") and file[188:189] == b"G")  # MPEG transport stream
        )
    )


def size_of(record: Record) -> tuple[int, int]:
    """(height, width) of the frames; of a picture the header alone is read.

    Raises:
      BrokenRecord: the record cannot be read.
      OSError: its file cannot be read.
    """
    if isinstance(record.content, bytes | np.ndarray) and not is_video(record):
        return stills.image_size(record.content)
    height, width, _ = first_frame(record).shape
    return height, width


def first_frame(record: Record, *, draft_side: int = 0) -> np.ndarray:
    """The picture, or the first frame of the video; uint8 [height, width, 3].

    Raises:
      BrokenRecord: the record cannot be read.
      OSError: its file cannot be read.
    """
    with open_record(record, draft_side=draft_side) as opened:
        for _, render in opened.frames([0]):
            return render()
    raise BrokenRecord("no frame can be decoded")
