r"""Shows what a model makes of a picture: encodes, decodes, and measures the difference.

Examples:
  bsq-jax reconstruct photo.jpg photo_again.png
  bsq-jax reconstruct photo.jpg both.png --beside --stages 2
  bsq-jax reconstruct photo.jpg again.png --model runs/prior

The output is the picture that `bsq-jax decode` would give for the file of `bsq-jax encode`; with
--beside the original is to the left of it. Bytes of that file, bits a pixel and the PSNR are said.
Of videos and animated pictures the first frame is taken.
"""

from __future__ import annotations

import argparse

from bsq_jax.cli.command import Command
from bsq_jax.cli.encode_file import content_of, load_codec
from bsq_jax.cli.inputs import add_model
from bsq_jax.cli.outputs import check_output_file, say, size_and_rate, write_output
from bsq_jax.core.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``reconstruct``."""
    parser.add_argument("input", help="a picture, or - for standard input")
    parser.add_argument("output", help="a .png, or - for standard output")
    add_model(parser)
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--bits", type=int, help="bits of a token that are kept")
    kept.add_argument("--stages", type=int, help="stages of a residual token that are kept")
    parser.add_argument("--beside", action="store_true", help="the original to the left")
    parser.add_argument("--force", action="store_true", help="overwrite the output")
    parser.add_argument("--quiet", action="store_true", help="only errors")
    # What else `load_codec` takes, as `encode` has it by default.
    parser.set_defaults(step=None, mode="auto", overlap=None, tile=None, memory=None, export=None)


def run(flags: argparse.Namespace) -> int:
    """Encodes, decodes, measures."""
    check_output_file(flags.output, force=flags.force, suffix=".png")
    name = "standard input" if flags.input == "-" else flags.input
    content = content_of(flags.input, name)
    import numpy as np

    from bsq_jax.coding.frame_source import open_frames
    from bsq_jax.data.records import BrokenRecord
    from bsq_jax.evaluation.metrics.image_quality import psnr
    from bsq_jax.media.pictures import encode_png

    try:
        with open_frames(name, content, 1) as frames:
            original = next(iter(frames.groups(1)))
    except BrokenRecord as error:
        raise UserError(f"{name} is no picture that can be read: {error}") from None
    codec = load_codec(flags)
    data = codec.encode(original, bits=flags.bits, mode=flags.mode)
    again = codec.decode(data).frames
    shown = np.concatenate([original, again], axis=2) if flags.beside else again
    write_output(flags.output, encode_png(shown[0]))
    if not flags.quiet:
        height, width = original.shape[1:3]
        decibels = float(psnr(original[None], again[None])[0, 0])
        say(
            f"{flags.output}: {height}x{width}, {decibels:.2f} dB, "
            f"{size_and_rate(len(data), height * width)} as a .bsq file of {codec.name}"
        )
    return 0


COMMAND = Command(
    "encode and decode a picture, and measure it",
    __doc__,
    add_arguments,
    run,
    memory="give a smaller picture, or take encode with --tile",
)
