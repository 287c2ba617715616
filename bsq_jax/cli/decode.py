r"""Opens .bsq files as pictures and videos.

Examples:
  bsq-jax decode photo.bsq photo.png --model runs/prior
  bsq-jax decode clip.bsq clip.mkv --model runs/prior
  bsq-jax decode coded/ decoded/ --model runs/prior

Pictures become .png. Videos become .mkv, which keeps every pixel, or .mp4, which is lossy and plays
everywhere (of a folder with --video mp4). The model must be the one that encoded: of a workdir the
training step that coded a file is taken, as long as it is kept.

Of a folder each .bsq file is opened and subfolders are kept. What cannot be opened is named and
passed over. Files that are done are skipped, so after Ctrl-C the same command goes on. Exit status:
0 all are done, 2 some are not.
"""

from __future__ import annotations

import argparse
import io
import pathlib

from bsq_jax.cli.command import Command
from bsq_jax.cli.decode_file import EXACT, LOSSY, decoded, notes
from bsq_jax.cli.decode_folder import decode_folder
from bsq_jax.cli.inputs import add_model, model_path, read_input
from bsq_jax.cli.outputs import check_output_file, say, write_output
from bsq_jax.core.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``decode``."""
    parser.add_argument("input", help="a .bsq file or a folder of them, or - for standard input")
    parser.add_argument(
        "output",
        help="a .png; of a video .mkv (exact) or .mp4 (for players, lossy); a folder; or -",
    )
    add_model(parser)
    parser.add_argument(
        "--video", choices=("mkv", "mp4"), help="what videos in a folder become; default: mkv"
    )
    parser.add_argument(
        "--force", action="store_true", help="decode again, and overwrite what is there"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress; only errors")


def run(flags: argparse.Namespace) -> int:
    """Decodes; of a file that is cut short or damaged, the whole frames before the damage."""
    if flags.input != "-" and pathlib.Path(flags.input).is_dir():
        return decode_folder(flags)
    if flags.video:
        raise UserError("--video is for folders: the name of the output says what a video becomes")
    check_output_file(flags.output, force=flags.force)
    from bsq_jax.coding.codec import Codec
    from bsq_jax.coding.container import read_header
    from bsq_jax.core.compilation_cache import enable_compilation_cache

    data = read_input(flags.input)
    header = read_header(io.BytesIO(data), flags.input)
    suffix = _suffix(flags.output, video=header.is_video)
    path = model_path(flags)
    enable_compilation_cache()
    content, problem = decoded(Codec.load(path), data, flags.input, suffix, quiet=flags.quiet)
    write_output(flags.output, content)
    for note in () if flags.quiet else notes(header, suffix):
        say(f"{flags.output}: {note}")
    if problem:
        raise UserError(f"{problem}; the frames before are in {flags.output}")
    return 0


def _suffix(output: str, *, video: bool) -> str:
    """Which kind of file is written, as its suffix.

    Raises:
      UserError: pictures, or videos, are not written as such files.
    """
    suffix = pathlib.Path(output).suffix.lower() or (".mkv" if video else ".png")
    known = (*EXACT, *LOSSY) if video else (".png",)
    if output != "-" and suffix not in known:
        kind = "videos" if video else "pictures"
        raise UserError(f"{output}: {kind} are written as {' or '.join(known)}")
    return suffix


COMMAND = Command(
    "open .bsq files, one or a folder, as pictures or videos", __doc__, add_arguments, run
)
