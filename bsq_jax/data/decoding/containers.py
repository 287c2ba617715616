"""Opens video containers with FFmpeg and turns its errors on damaged files into `BrokenRecord`.

Whatever FFmpeg or PyAV raise on the bytes of a file says something about the file. So every call
into them on a foreign file is made here or goes through `reason`, which makes a
``BrokenRecord`` of any exception; our own code around these calls is not covered, so that a mistake
in it is not taken for a broken file.
"""

import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import av
from av.stream import Disposition

from bsq_jax.data.decoding.raw_video import RawLayout
from bsq_jax.data.records import BrokenRecord

MAX_PIXELS = 2**26  # of a frame: 8192 x 8192; a header may claim more than there is memory for

_OPTIONS = {
    # A playlist could name files of others or places on the network: only containers are opened.
    "protocol_whitelist": "file",
    "format_whitelist": "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,yuv4mpegpipe",
    "max_pixels": str(MAX_PIXELS),
}

# Pictures that go with a film or a song: its cover, previews of its chapters.
_NO_FILM = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image


def open_film(file: bytes | pathlib.Path, raw: RawLayout | None) -> tuple[Any, Any]:
    """Opens a file; gives the container and its video stream.

    Of several videos it is the first that is marked as the default among those with a decoder;
    covers and thumbnails are no videos.

    Args:
      file: the encoded file, or its path.
      raw: what is known of a file of raw video, which has no header.

    Raises:
      BrokenRecord: it is no container that is read here, has no video, or none with a decoder.
      OSError: the file cannot be read.
    """
    # FFmpeg takes what stands before a colon in a relative path for a protocol.
    opened = io.BytesIO(file) if isinstance(file, bytes) else os.path.abspath(file)
    kind, options = None, _OPTIONS
    if raw is not None:
        kind, size = "rawvideo", f"{raw.width}x{raw.height}"
        options = {**options, "format_whitelist": kind, "video_size": size}
    try:
        container = av.open(opened, format=kind, options=options, metadata_errors="ignore")
    except av.ArgumentError as error:
        raise BrokenRecord("not a container of videos that is read here") from error
    except Exception as error:
        raise reason(error, file) from error
    try:
        return container, _film(container)
    except BaseException:
        container.close()
        raise


def _film(container: Any) -> Any:
    streams = [s for s in container.streams.video if not s.disposition & _NO_FILM]
    if not streams:
        raise BrokenRecord("there is no video in the file")
    stream = min(
        streams,
        key=lambda s: (s.codec_context is None, not s.disposition & Disposition.default, s.index),
    )
    context = stream.codec_context
    if context is None:
        raise BrokenRecord("there is no decoder for its video")
    if context.width * context.height > MAX_PIXELS:
        raise BrokenRecord(f"frames of {context.height}x{context.width} pixels are too large")
    context.options = {"max_pixels": str(MAX_PIXELS)}
    # A second thread would decode ahead; the pipeline has threads of its own.
    context.thread_count = 1
    return stream


def packets(container: Any, stream: Any, file: bytes | pathlib.Path) -> Iterator[Any]:
    """The packets of a stream from where the container stands, and an empty one at the end.

    Raises:
      BrokenRecord: the file is damaged, or has no end.
      OSError: the file cannot be read.
    """
    found = container.demux(stream)
    # A packet has a byte at least; a damaged index may send the reader round for ever.
    for _ in range((len(file) if isinstance(file, bytes) else os.path.getsize(file)) + 2):
        try:
            packet = next(found, None)
        except Exception as error:
            raise reason(error, file) from error
        if packet is None:
            return
        yield packet
    raise BrokenRecord("it has more frames than bytes")


def reason(error: Exception, file: bytes | pathlib.Path) -> Exception:
    """What to raise for an error that reading a file gave."""
    if isinstance(error, OSError) and error.errno and isinstance(file, pathlib.Path):
        return OSError(error.errno, error.strerror, str(file))
    if not (file if isinstance(file, bytes) else file.stat().st_size):
        return BrokenRecord("the file is empty")
    return damage(error)


def damage(error: Exception) -> BrokenRecord:
    """A ``BrokenRecord`` with the first line of what a library says of an error."""
    if isinstance(error, MemoryError):
        return BrokenRecord("it needs more memory than there is")
    text = error.strerror if isinstance(error, av.FFmpegError) else str(error)
    return BrokenRecord((text or "").partition("\n")[0] or type(error).__name__)
