"""What ``decode`` does for a file, alone or in a folder: the picture or video, and what to say."""

from __future__ import annotations

import hashlib
import io
import mmap
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bsq_jax.coding.codec import Codec

LOSSY = (".mp4", ".mov")
EXACT = (".mkv",)
"""What videos become: for players, and with every pixel as it is."""


def mark(data: bytes) -> str:
    """The comment in a picture or video that says which .bsq file it is decoded from."""
    return f"decoded by bsq_jax from sha256:{hashlib.sha256(data).hexdigest()}"


def is_decoded_from(data: bytes, path: pathlib.Path) -> bool:
    """Whether a file is the picture or video that a .bsq file was decoded to.

    Args:
      data: the .bsq file.
      path: of the other one, which exists.
    """
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return content.find(mark(data).encode()) >= 0
    except (OSError, ValueError):  # a folder, or an empty file
        return False


def decoded(codec: Codec, data: bytes, name: str, suffix: str, *, quiet: bool) -> tuple[bytes, str]:
    """The picture or video of a .bsq file, and what is wrong with it if it is cut short or damaged.

    Args:
      codec: the model.
      data: the .bsq file.
      name: of the file, for messages.
      suffix: of the kind of file that is made.
      quiet: no progress.

    Raises:
      UserError: nothing of it can be decoded.
    """
    from bsq_jax.coding.container import read_header
    from bsq_jax.core.progress import labelled, progress

    header = read_header(io.BytesIO(data), name)
    shown = not quiet and header.frames < 2
    whole = _WholeFrames(codec.decode_groups(io.BytesIO(data), name, shown=shown))
    quiet = quiet or header.frames < 2
    with labelled(name), progress(header.frames, "frames", quiet=quiet) as advance:
        content = _file(advance(iter(whole), len), header, suffix, mark(data))
    return content, whole.problem


class _WholeFrames:
    """Groups of frames up to the first damage.

    Attributes:
      problem: what is wrong with the rest; empty if nothing is.
    """

    def __init__(self, groups: Iterator[Any]):
        self._groups = groups
        self.problem = ""

    def __iter__(self) -> Iterator[Any]:
        from bsq_jax.coding.container import DamagedFile, TruncatedFile

        given = 0
        try:
            for frames in self._groups:
                given += len(frames)
                yield frames
        except (DamagedFile, TruncatedFile) as error:
            if not given:
                raise
            self.problem = str(error)


def _file(groups: Iterator[Any], header: Any, suffix: str, comment: str) -> bytes:
    """The picture or video as the bytes of a file."""
    if header.rate is not None:
        from bsq_jax.media.videos import encode_video

        return encode_video(
            groups, header.timing or header.rate, exact=suffix in EXACT, comment=comment
        )
    from bsq_jax.media.pictures import encode_png

    return encode_png(next(groups)[0], comment=comment)


def notes(header: Any, suffix: str) -> Iterator[str]:
    """What there is to say of a decoded file."""
    lossy = suffix in LOSSY
    if lossy:
        yield "it is for players: .mkv keeps the pixels as they are"
    lost = [
        f"the last {line}"
        for line, side in (("row", header.height), ("column", header.width))
        if side % 2 and side > 1
    ]
    if lossy and lost:
        yield (
            f"{' and '.join(lost)} of {header.height}x{header.width} pixels is left out, as MP4 "
            "takes even sides"
        )
    if header.timing is not None:
        yield f"its frames come at a variable rate, {float(header.timing.seconds):.3f} seconds"
