r"""Compresses a picture or a video of any size to a .bsq file.

Examples:
  bsq-jax encode photo.jpg photo.bsq --model runs/prior
  bsq-jax encode clip.mp4 clip.bsq --model runs/prior --frames 100
  bsq-jax encode photo.jpg small.bsq --model runs/residual --stages 1
  BSQ_JAX_MODEL=runs/prior bsq-jax encode - - < photo.png > photo.bsq

The model is the workdir or export of a prior, or of a tokenizer alone. Animated pictures become
videos, and frames of variable rate keep their times. The format is in docs/format.md.
"""

from __future__ import annotations

import argparse
import io
import pathlib
import sys
from typing import Any

from bsq_jax.cli.command import Command
from bsq_jax.cli.inputs import add_model, existing_file, model_path
from bsq_jax.cli.outputs import check_output_file, say, write_output
from bsq_jax.core.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``encode``."""
    parser.add_argument("input", help="picture or video, or - for standard input")
    parser.add_argument("output", help="a .bsq file, or - for standard output")
    add_model(parser)
    parser.add_argument("--mode", choices=("auto", "prior", "raw"), default="auto")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--bits", type=int, help="bits of a token that are kept")
    kept.add_argument("--stages", type=int, help="stages of a residual token that are kept")
    parser.add_argument("--overlap", type=int, help="pixels that tiles share, to hide seams")
    parser.add_argument(
        "--frames", type=int, help="only the first frames of a video or an animated picture"
    )
    parser.add_argument("--force", action="store_true", help="overwrite the output")
    parser.add_argument("--quiet", action="store_true", help="no progress, no notices")


def run(flags: argparse.Namespace) -> int:
    """Encodes."""
    check_output_file(flags.output, force=flags.force)
    _check_name(flags.output)
    if flags.frames is not None and flags.frames < 1:
        raise UserError(f"--frames {flags.frames}: give 1 or more")
    name = "standard input" if flags.input == "-" else flags.input
    data = _encoded(name, _content(flags.input, name), flags)
    write_output(flags.output, data)
    if not flags.quiet:
        say(_summary(flags.output, data))
    return 0


def _check_name(name: str) -> None:
    """A .bsq file under the name of a picture would be taken for a damaged one."""
    from bsq_jax.data.decoding.video import VIDEO_EXTENSIONS
    from bsq_jax.data.sources.folders import IMAGE_EXTENSIONS

    suffix = pathlib.Path(name).suffix.lower()
    if suffix in IMAGE_EXTENSIONS | VIDEO_EXTENSIONS:
        raise UserError(f"{name}: what is encoded is a .bsq file, no {suffix} file: name it so")


def _content(path: str, name: str) -> bytes | pathlib.Path:
    """What is to be encoded: bytes, or the path of a video, which is read piece by piece."""
    from bsq_jax.coding.container import MAGIC
    from bsq_jax.data.decoding.video import VIDEO_EXTENSIONS

    if path == "-":
        content = sys.stdin.buffer.read()
    elif (file := existing_file(path)).suffix.lower() in VIDEO_EXTENSIONS:
        return file
    else:
        content = file.read_bytes()
    if content.startswith(MAGIC):
        raise UserError(f"{name} is a .bsq file already: decode it")
    return content


def _encoded(name: str, content: bytes | pathlib.Path, flags: argparse.Namespace) -> Any:
    """The .bsq file as bytes."""
    from bsq_jax.coding.codec import Codec
    from bsq_jax.coding.frame_source import open_frames
    from bsq_jax.core.compilation_cache import enable_compilation_cache
    from bsq_jax.core.progress import progress
    from bsq_jax.data.records import BrokenRecord

    path = model_path(flags)
    enable_compilation_cache()
    codec = Codec.load(path)
    bits = flags.bits if flags.stages is None else codec.bits_of_stages(flags.stages)
    try:
        with open_frames(name, content, flags.frames) as frames:
            for note in () if flags.quiet else frames.notes:
                say(f"{name}: {note}")
            quiet = flags.quiet or frames.count < 2
            with progress(frames.count, "frames", quiet=quiet) as advance:
                return codec.encode_groups(
                    advance(frames.groups(codec.group), len),
                    rate=frames.rate,
                    bits=bits,
                    mode=None if flags.mode == "auto" else flags.mode,
                    overlap=flags.overlap,
                )
    except BrokenRecord as error:
        raise UserError(f"{name} is no picture or video that can be read: {error}") from None


def _summary(output: str, data: bytes) -> str:
    """Size, rate and settings of a .bsq file."""
    from bsq_jax.coding.container import read_header

    header = read_header(io.BytesIO(data), output)
    pixels = header.frames * header.height * header.width
    return (
        f"{output}: {len(data):,d} bytes, {8 * len(data) / pixels:.4f} bits a pixel "
        f"({header.frames} frame{'s' * (header.frames > 1)} of {header.height}x{header.width}, "
        f"{header.bits} bits a token, {header.mode})"
    )


COMMAND = Command("compress a picture or video to a .bsq file", __doc__, add_arguments, run)
