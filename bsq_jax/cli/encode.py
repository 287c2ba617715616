r"""Compresses pictures and videos of any size to .bsq files.

Examples:
  bsq-jax encode photo.jpg photo.bsq --model runs/prior
  bsq-jax encode photos/ coded/ --model runs/prior
  bsq-jax encode photos/ coded/ --model runs/prior --export coded/model
  bsq-jax encode clip.mp4 clip.bsq --model runs/prior --frames 100
  bsq-jax encode large.jpg large.bsq --model runs/windows --tile 1024
  bsq-jax encode photo.jpg small.bsq --model runs/residual --stages 1
  BSQ_JAX_MODEL=runs/prior bsq-jax encode - - < photo.png > photo.bsq

The model is the workdir or export of a prior, or of a tokenizer alone. A file is opened by the
training step that coded it; a run that goes on removes its older steps, and --export keeps this
one. Animated pictures become videos, and frames of variable rate keep their times.

Models with model.spatial_window code pictures of up to 2 megapixels (patches of 8) as a whole and
larger ones in tiles of that size; other models in tiles of their own size. --tile and --memory say
it otherwise.

Of a folder each picture and video is coded, subfolders are kept, and photo.jpg becomes photo.bsq
(photo.jpg.bsq where there is a photo.png too). What cannot be read is named and passed over. Files
that are done are skipped, so after Ctrl-C the same command goes on. Exit status: 0 all are done, 2
some are not. The format is in docs/format.md.
"""

from __future__ import annotations

import argparse
import io
import pathlib

from bsq_jax.cli.command import Command
from bsq_jax.cli.encode_file import content_of, encoded, keep_model, load_codec
from bsq_jax.cli.encode_folder import encode_folder
from bsq_jax.cli.inputs import add_model
from bsq_jax.cli.outputs import check_output_file, say, size_and_rate, tiles_of, write_output
from bsq_jax.core.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``encode``."""
    parser.add_argument("input", help="picture, video or a folder of them, or - for standard input")
    parser.add_argument("output", help="a .bsq file, a folder for a folder, or - for output")
    add_model(parser)
    parser.add_argument("--step", type=int, help="of the workdir's training; default: its newest")
    parser.add_argument("--mode", choices=("auto", "prior", "raw"), default="auto")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--bits", type=int, help="bits of a token that are kept")
    kept.add_argument("--stages", type=int, help="stages of a residual token that are kept")
    parser.add_argument("--overlap", type=int, help="pixels that tiles share, to hide seams")
    tiles = parser.add_mutually_exclusive_group()
    tiles.add_argument(
        "--tile",
        metavar="PIXELS",
        help="side of the tiles, HEIGHTxWIDTH, or 0 for none; default: what the model takes",
    )
    tiles.add_argument(
        "--memory", type=float, metavar="MB", help="choose tiles that need about so much memory"
    )
    parser.add_argument(
        "--frames", type=int, help="only the first frames of a video or an animated picture"
    )
    parser.add_argument(
        "--export", metavar="FOLDER", help="write the model there, for decode --model FOLDER"
    )
    parser.add_argument(
        "--force", action="store_true", help="overwrite the output, also that of other models"
    )
    parser.add_argument(
        "--quiet", action="store_true", help="no progress; only warnings and errors"
    )


def run(flags: argparse.Namespace) -> int:
    """Encodes."""
    if flags.frames is not None and flags.frames < 1:
        raise UserError(f"--frames {flags.frames}: give 1 or more")
    if flags.input != "-" and pathlib.Path(flags.input).is_dir():
        return encode_folder(flags)
    check_output_file(flags.output, force=flags.force)
    _check_name(flags.output)
    name = "standard input" if flags.input == "-" else flags.input
    content = content_of(flags.input, name)
    codec = load_codec(flags)
    data, notes = encoded(name, content, codec, flags)
    keep_model(codec, flags)
    write_output(flags.output, data)
    if not flags.quiet:
        for note in notes:
            say(f"{name}: {note}")
        say(_summary(flags.output, data))
    return 0


def _check_name(name: str) -> None:
    """A .bsq file under the name of a picture would be taken for a damaged one."""
    from bsq_jax.data.decoding.video import VIDEO_EXTENSIONS
    from bsq_jax.data.sources.folders import IMAGE_EXTENSIONS

    suffix = pathlib.Path(name).suffix.lower()
    if suffix in IMAGE_EXTENSIONS | VIDEO_EXTENSIONS:
        raise UserError(f"{name}: what is encoded is a .bsq file, no {suffix} file: name it so")


def _summary(output: str, data: bytes) -> str:
    """Size, rate and settings of a .bsq file."""
    from bsq_jax.coding.container import read_header

    header = read_header(io.BytesIO(data), output)
    coded_by = f", {header.origin}" if header.origin else ""
    return (
        f"{output}: {size_and_rate(len(data), header.pixels)} "
        f"({header.frames} frame{'s' * (header.frames > 1)} of {header.height}x{header.width}, "
        f"{header.bits} bits a token, {header.mode}{tiles_of(header)}{coded_by})"
    )


COMMAND = Command(
    "compress a picture, a video or a folder of them to .bsq",
    __doc__,
    add_arguments,
    run,
    memory="give smaller tiles (--tile 256, or --memory MB)",
)
