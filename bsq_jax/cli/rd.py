"""Rate-distortion curves of codecs of this project beside those that everybody has.

::

    python -m bsq_jax rd kodak/ --models runs/prior --against jpeg,webp,av1 --out curves/kodak
    python -m bsq_jax rd uvg/ --models runs/video --against h264,h265 --frames 96 --out curves/uvg

Inputs are pictures or videos, or folders of them; of an animated picture the first frame. Each is
coded at every setting of every codec, decoded from the bytes, and measured against the original;
rates are those of real files. OUT gets ``points.csv`` (every input at every setting),
``summary.csv`` (means over inputs), ``bd_rate.csv`` (Bjontegaard rates against the first codec of
``--against``) and ``rate_distortion.png``.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
import numpy as np
import tqdm

from bsq_jax.coding.rd_results import FILES, METRICS, Point, save, tables
from bsq_jax.coding.references import DEFAULT_RATE, Coded, Coder, reference
from bsq_jax.core.compilation_cache import enable_compilation_cache
from bsq_jax.core.errors import UserError
from bsq_jax.core.paths import local_path
from bsq_jax.core.pixels import to_float
from bsq_jax.data.input_files import Input, distinct, find_inputs
from bsq_jax.evaluation import metrics
from bsq_jax.evaluation.networks.lpips import load_lpips, lpips

_MOST_POINTS = 6  # of a curve, unless --bits asks for more


# --- what is compared ---


def _load_codec(path: str) -> Any:
    from bsq_jax.coding.codec import Codec

    return Codec.load(path)


def our_coders(
    paths: Sequence[str], bits: Sequence[int] | None, overlap: int | None
) -> list[Coder]:
    """Two curves for a model with a prior, one for a tokenizer alone.

    Args:
      paths: workdirs or exports.
      bits: numbers of bits of a token that are kept; None: up to six of those that a model takes.
      overlap: pixels that neighbouring tiles share; None: what the codec does by itself.

    Raises:
      UserError: a folder is no model, or takes none of these numbers.
    """
    codecs = [_load_codec(path) for path in paths]
    coders = []
    for codec, name in zip(codecs, distinct([codec.name for codec in codecs]), strict=True):
        able = sorted(codec.variable_bits)
        settings = _spread(able) if bits is None else sorted(set(bits) & set(able))
        if not settings:
            raise UserError(
                f"--bits {','.join(map(str, bits or ()))}: {name} takes "
                + (str(able[0]) if len(able) == 1 else f"{able[0]} to {able[-1]}")
            )
        for mode in ("raw", "prior") if codec.has_prior else ("raw",):
            code = functools.partial(_code, codec, mode, overlap)
            coders.append(Coder(f"{name}, {mode}", mode, "bits", tuple(settings), code))
    return coders


def _spread(numbers: Sequence[int]) -> list[int]:
    """Up to six of them, the first and the last included, evenly spaced."""
    places = np.linspace(0, len(numbers) - 1, min(_MOST_POINTS, len(numbers)))
    return [numbers[place] for place in np.rint(places).astype(int)]


def _code(
    codec: Any,
    mode: str,
    overlap: int | None,
    frames: np.ndarray,
    setting: int,
    rate: Fraction | None,
) -> Coded:
    more = {} if overlap is None else {"overlap": overlap}
    data = codec.encode(frames, rate=rate, bits=setting, mode=mode, **more)
    decoded = codec.decode(data)
    return Coded(decoded.frames, len(data), len(data) - len(decoded.header.pack()))


# --- measuring ---


def make_measure(names: Sequence[str]) -> Callable[[np.ndarray, np.ndarray], dict[str, float]]:
    """A function of original and decoded frames, both uint8 ``[time, height, width, 3]``.

    Args:
      names: of `METRICS`. The function returns each as the mean over frames.

    Raises:
      UserError: the weights of LPIPS are missing.
    """
    params = load_lpips("alexnet") if "lpips" in names else {}

    @jax.jit
    def frame(params: Mapping[str, Any], a: jax.Array, b: jax.Array) -> dict[str, jax.Array]:
        known: dict[str, Callable[[], jax.Array]] = {
            "psnr": lambda: metrics.psnr(a, b),
            "ms_ssim": lambda: metrics.ms_ssim(a, b),
            "lpips": lambda: lpips(params, to_float(a), to_float(b), net="alexnet"),
        }
        return {name: known[name]() for name in names}

    def measure(original: np.ndarray, decoded: np.ndarray) -> dict[str, float]:
        # One frame at a time, so that memory does not grow with the video.
        each = [
            jax.device_get(frame(params, a[None, None], b[None, None]))
            for a, b in zip(original, decoded, strict=True)
        ]
        return {name: float(np.mean([np.float64(one[name]) for one in each])) for name in names}

    return measure


def choose_metrics(
    wanted: Sequence[str] | None, inputs: Sequence[Input], size: int
) -> tuple[list[str], list[str]]:
    """The metrics that all inputs are large enough for.

    Args:
      wanted: names of `METRICS`; None: all that are possible.
      inputs: looked at one by one, so that a broken one is found before hours of coding.
      size: short side to which they are resized, or 0.

    Returns:
      Names, and lines that say what is left out.

    Raises:
      UserError: an input cannot be read, or is too small for a metric that is wanted.
    """
    sides = {one.name: min(one.shape(size)) for one in inputs}
    small = min(sides, key=lambda name: sides[name])
    names, notes = [], []
    for name in wanted or METRICS:
        if sides[small] >= METRICS[name].least:
            names.append(name)
            continue
        line = (
            f"{name} needs frames of at least {METRICS[name].least} pixels a side, and {small} has "
            f"{sides[small]}"
        )
        if wanted:
            raise UserError(f"{line}: choose other --metrics, or a larger --size")
        notes.append(f"{line}: left out")
    return names, notes


# --- the run ---


def run(flags: argparse.Namespace) -> str:
    """Does what the flags ask.

    Returns:
      What to print at the end.

    Raises:
      UserError: a flag is wrong, an input or a model cannot be read, results would be overwritten.
    """
    against = _names("--against", flags.against)
    wanted = _names("--metrics", flags.metrics) if flags.metrics else None
    if unknown := sorted(set(wanted or ()) - set(METRICS)):
        raise UserError(f"unknown metric {unknown[0]!r}: choose from {', '.join(METRICS)}")
    for flag in ("frames", "size", "overlap"):
        if (getattr(flags, flag) or 0) < 0:
            raise UserError(f"--{flag} {getattr(flags, flag)}: give 0 or more")
    references = [reference(name) for name in against]
    folder = local_path(flags.out)
    _check_folder(folder, force=flags.force)
    inputs = find_inputs(flags.inputs)
    names, notes = choose_metrics(wanted, inputs, flags.size)
    if "psnr" in names and any(one.video for one in inputs):
        notes.append("psnr of a video: mean of its frames' PSNR, as the other metrics")
    ours = our_coders(flags.models, _numbers(flags.bits), flags.overlap)
    measure = make_measure(names)
    folder.mkdir(parents=True, exist_ok=True)
    coders = [*ours, *references]
    points = []
    total = len(inputs) * sum(len(coder.settings) for coder in coders)
    with tqdm.tqdm(total=total, unit=" files", file=sys.stderr, disable=None, leave=False) as bar:
        for one in inputs:
            frames, rate = one.read(flags.frames, flags.size)
            rate = (rate or DEFAULT_RATE) if one.video else None
            for coder in coders:
                for setting in coder.settings:
                    label = f"{coder.scale} {setting}"
                    bar.set_postfix_str(f"{one.name}, {coder.name} {label}")
                    coded = coder.code(frames, setting, rate)
                    points.append(
                        Point(
                            one.name,
                            coder.name,
                            coder.about,
                            label,
                            frames.shape[:3],
                            coded.file_bytes,
                            coded.packet_bytes,
                            measure(frames, coded.frames),
                        )
                    )
                    bar.update()
    names_of_ours = [coder.name for coder in ours]
    save(folder, points, against[0], ours=names_of_ours, logarithmic=flags.axis == "log")
    lines = [tables(points, against[0]), *notes, f"results: {flags.out} ({', '.join(FILES)})"]
    return "\n".join(lines)


def _names(flag: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise UserError(f"{flag} {text!r}: give different names with a comma between them")
    return names


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise UserError(f"--bits {text}: give whole numbers, such as 6,12,18") from None


def _check_folder(folder: pathlib.Path, *, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file: give a folder")
    old = [name for name in FILES if (folder / name).exists()]
    if old and not force:
        raise UserError(
            f"{folder} holds results ({', '.join(old)}): choose another --out, or add --force"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the flags and measures; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bsq_jax rd", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("inputs", nargs="+", help="pictures or videos (.yuv, too), or folders of them")
    add("--models", nargs="+", default=[], help="workdirs or exports of this project")
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
    add("--metrics", help=f"some of {','.join(METRICS)}; by default all that are possible")
    add("--axis", choices=("log", "linear"), default="log", help="of bits a pixel in the figure")
    add("--force", action="store_true", help="overwrite results in the folder")
    flags = parser.parse_args(arguments)
    try:
        enable_compilation_cache()
        text = run(flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or flags.out}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
