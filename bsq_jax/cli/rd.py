r"""Rate-distortion curves of models of this project beside standard codecs.

Examples:
  bsq-jax rd kodak/ --models runs/prior --against jpeg,webp,av1 --out curves/kodak
  bsq-jax rd uvg/ --models runs/video --against h264,h265 --frames 96 --out curves/uvg

Inputs are pictures or videos, or folders of them; of an animated picture the first frame. Each is
coded at every setting of every codec, decoded from the bytes, and measured against the original;
rates are those of real files. OUT gets points.csv (every input at every setting), summary.csv
(means over inputs), bd_rate.csv (Bjontegaard rates against the first codec of --against) and
rate_distortion.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from bsq_jax.cli.command import Command
from bsq_jax.cli.outputs import check_output_folder
from bsq_jax.core.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``rd``."""
    add = parser.add_argument
    add("inputs", nargs="+", help="pictures or videos (.yuv, too), or folders of them")
    add(
        "--models",
        nargs="*",
        help="workdirs or exports of this project; default: the starter model; no names: none",
    )
    add(
        "--against",
        default="jpeg,webp,h264,h265,av1",
        help="codecs to compare with (also h264-444, h265-444); rates are against the first",
    )
    add("--out", required=True, help="folder for the results")
    add("--frames", type=int, default=0, help="only the first frames of a video; 0: all")
    add("--size", type=int, default=0, help="resize to this short side first; 0: do not")
    add(
        "--bits", help="bits of a token that are kept, such as 6,12,18; by default up to six points"
    )
    add("--overlap", type=int, help="pixels that tiles share, to hide seams")
    add("--tile", metavar="PIXELS", help="as that of encode")
    add("--metrics", help="some of psnr,ms_ssim,lpips; by default all that are possible")
    add("--axis", choices=("log", "linear"), default="log", help="of bits a pixel in the figure")
    add("--force", action="store_true", help="overwrite results in the folder")


def run(flags: argparse.Namespace) -> int:
    """Codes, measures, writes the results and prints their tables."""
    from bsq_jax.coding import rate_distortion, rate_distortion_tables
    from bsq_jax.coding.codec import Codec
    from bsq_jax.coding.reference_codecs import reference
    from bsq_jax.core.compilation_cache import enable_compilation_cache
    from bsq_jax.data.command_line_files import find_inputs

    against = _names("--against", flags.against)
    wanted = _metrics(flags.metrics, list(rate_distortion_tables.METRICS))
    bits = _numbers(flags.bits)
    for flag in ("frames", "size", "overlap"):
        if (getattr(flags, flag) or 0) < 0:
            raise UserError(f"--{flag} {getattr(flags, flag)}: give 0 or more")
    references = [reference(name) for name in against]
    folder = check_output_folder(flags.out, rate_distortion_tables.FILES, force=flags.force)
    inputs = find_inputs(flags.inputs)
    names, notes = rate_distortion.choose_metrics(wanted, inputs, flags.size)
    if "psnr" in names and any(one.video for one in inputs):
        notes.append("psnr of a video: mean of its frames' PSNR, as the other metrics")
    enable_compilation_cache()
    codecs = [Codec.load(path) for path in ([None] if flags.models is None else flags.models)]
    ours = rate_distortion.our_coders(codecs, bits, flags.overlap, flags.tile)
    points = rate_distortion.measure_points(
        inputs, [*ours, *references], names, frames=flags.frames, size=flags.size
    )
    folder.mkdir(parents=True, exist_ok=True)
    names_of_ours = [coder.name for coder in ours]
    log = flags.axis == "log"
    rate_distortion_tables.save(folder, points, against[0], ours=names_of_ours, logarithmic=log)
    results = f"results: {flags.out} ({', '.join(rate_distortion_tables.FILES)})"
    tables = rate_distortion_tables.tables(points, against[0])
    print("\n".join([tables, *notes, results]))
    return 0


def _metrics(text: str | None, known: Sequence[str]) -> list[str] | None:
    """The metrics that a flag names, if it is given."""
    if not text:
        return None
    wanted = _names("--metrics", text)
    if unknown := sorted(set(wanted) - set(known)):
        raise UserError(f"unknown metric {unknown[0]!r}: choose from {', '.join(known)}")
    return wanted


def _names(flag: str, text: str) -> list[str]:
    """Names with a comma between them."""
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise UserError(f"{flag} {text!r}: give different names with a comma between them")
    return names


def _numbers(text: str | None) -> list[int] | None:
    """Numbers of bits that a flag names, if it is given."""
    if text is None:
        return None
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise UserError(f"--bits {text}: give whole numbers, such as 6,12,18") from None


COMMAND = Command("rate-distortion curves beside standard codecs", __doc__, add_arguments, run)
