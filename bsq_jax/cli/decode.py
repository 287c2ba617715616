r"""Opens a .bsq file as a picture or a video.

Examples:
  bsq-jax decode photo.bsq photo.png --model runs/prior
  bsq-jax decode clip.bsq clip.mkv --model runs/prior

Pictures become .png. Videos become .mkv, which keeps every pixel, or .mp4, which is lossy and plays
everywhere. The model must be the one that encoded.
"""

from __future__ import annotations

import argparse
import io
import pathlib
from collections.abc import Iterator
from typing import Any

from bsq_jax.cli.command import Command
from bsq_jax.cli.inputs import add_model, model_path, read_input
from bsq_jax.cli.outputs import check_output_file, say, write_output
from bsq_jax.core.errors import UserError

_LOSSY = (".mp4", ".mov")
_EXACT = (".mkv",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``decode``."""
    parser.add_argument("input", help="a .bsq file, or - for standard input")
    parser.add_argument(
        "output", help="a .png; of a video .mkv (exact) or .mp4 (for players, lossy); or -"
    )
    add_model(parser)
    parser.add_argument("--force", action="store_true", help="overwrite the output")
    parser.add_argument("--quiet", action="store_true", help="no progress, no notices")


def run(flags: argparse.Namespace) -> int:
    """Decodes; of a file that is cut short or damaged, the whole frames before the damage."""
    check_output_file(flags.output, force=flags.force)
    from bsq_jax.coding.codec import Codec
    from bsq_jax.coding.container import read_header
    from bsq_jax.core.compilation_cache import enable_compilation_cache
    from bsq_jax.core.progress import progress

    data = read_input(flags.input)
    header = read_header(io.BytesIO(data), flags.input)
    suffix = _suffix(flags.output, video=header.is_video)
    path = model_path(flags)
    enable_compilation_cache()
    whole = _WholeFrames(Codec.load(path).decode_groups(io.BytesIO(data), flags.input))
    quiet = flags.quiet or header.frames < 2
    with progress(header.frames, "frames", quiet=quiet) as advance:
        write_output(flags.output, _file(advance(iter(whole), len), header, suffix))
    for note in () if flags.quiet else _notes(header, lossy=suffix in _LOSSY):
        say(f"{flags.output}: {note}")
    if whole.problem:
        raise UserError(f"{whole.problem}; the frames before are in {flags.output}")
    return 0


def _suffix(output: str, *, video: bool) -> str:
    """Which kind of file is written, as its suffix.

    Raises:
      UserError: pictures, or videos, are not written as such files.
    """
    suffix = pathlib.Path(output).suffix.lower() or (".mkv" if video else ".png")
    known = (*_EXACT, *_LOSSY) if video else (".png",)
    if output != "-" and suffix not in known:
        kind = "videos" if video else "pictures"
        raise UserError(f"{output}: {kind} are written as {' or '.join(known)}")
    return suffix


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


def _file(groups: Iterator[Any], header: Any, suffix: str) -> bytes:
    """The picture or video as the bytes of a file."""
    if header.rate is not None:
        from bsq_jax.media.videos import encode_video

        return encode_video(groups, header.timing or header.rate, exact=suffix in _EXACT)
    from bsq_jax.media.pictures import encode_png

    return encode_png(next(groups)[0])


def _notes(header: Any, *, lossy: bool) -> Iterator[str]:
    """What there is to say of a decoded file."""
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


COMMAND = Command("open a .bsq file as a picture or video", __doc__, add_arguments, run)
