r"""Compresses pictures and videos of any size to ``.bsq`` files, and opens them.

::

    python -m bsq_jax encode photo.jpg photo.bsq --model runs/prior
    python -m bsq_jax decode photo.bsq photo.png --model runs/prior
    python -m bsq_jax info photo.bsq
    python -m bsq_jax.cli.codec export runs/prior my_codec

A model is the workdir or export of a prior, or of a tokenizer alone; BSQ_JAX_MODEL names it where
``--model`` does not. ``-`` stands for stdin and stdout. Animated pictures are videos here, and
frames of variable rate keep their times. The format is in docs/format.md.
"""

from __future__ import annotations

import argparse
import io
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from bsq_jax.core.errors import UserError

_VARIABLE = "BSQ_JAX_MODEL"
_LOSSY = (".mp4", ".mov")
_EXACT = (".mkv",)


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the flags and does what they ask; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bsq_jax.cli.codec",
        description="Compress pictures and videos to .bsq files.",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, what: str, *, model: bool, output: str = "") -> Any:
        made = commands.add_parser(name, help=what, description=what)
        made.add_argument("input", help="a file, or - for stdin")
        if output:
            made.add_argument("output", help=output)
            made.add_argument("--force", action="store_true", help="overwrite the output")
        if model:
            made.add_argument("--model", help=f"workdir or export; by default ${_VARIABLE}")
            made.add_argument("--quiet", action="store_true", help="no progress, no notices")
        return made

    encode = command("encode", "picture or video to .bsq", model=True, output="a .bsq file, or -")
    encode.add_argument("--mode", choices=("auto", "prior", "raw"), default="auto")
    encode.add_argument("--bits", type=int, help="bits of a token that are kept")
    encode.add_argument("--overlap", type=int, help="pixels that tiles share, to hide seams")
    encode.add_argument(
        "--frames", type=int, help="only the first frames of a video or an animated picture"
    )
    outputs = "a .png; of a video .mkv (exact) or .mp4 (for players, lossy); or -"
    command("decode", ".bsq to picture or video", model=True, output=outputs)
    command("info", "what a .bsq file says of itself", model=False)
    export = commands.add_parser("export", help="a model as one folder without checkpoints")
    export.add_argument("input", help="workdir of a prior or a tokenizer")
    export.add_argument("output", help="folder to make")
    export.add_argument("--force", action="store_true", help="write into a folder that exists")
    flags = parser.parse_args(arguments)
    try:
        {"encode": _encode, "decode": _decode, "info": _info, "export": _export}[flags.command](
            flags
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"error: {error.filename or flags.input}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


# --- commands ---


def _encode(flags: argparse.Namespace) -> None:
    _check_output(flags)
    _check_encoded_name(flags.output)
    if flags.frames is not None and flags.frames < 1:
        raise UserError(f"--frames {flags.frames}: give 1 or more")
    from bsq_jax.cli.progress import progress
    from bsq_jax.coding.container import MAGIC
    from bsq_jax.coding.input_frames import open_frames
    from bsq_jax.data.records import BrokenRecord

    name = "stdin" if flags.input == "-" else flags.input
    content = sys.stdin.buffer.read() if flags.input == "-" else _existing(flags.input)
    if isinstance(content, pathlib.Path) and not _is_video_file(content):
        content = content.read_bytes()
    if isinstance(content, bytes) and content.startswith(MAGIC):
        raise UserError(f"{name} is a .bsq file already: decode it")
    codec = _load(flags)
    try:
        with open_frames(name, content, flags.frames) as frames:
            for note in () if flags.quiet else frames.notes:
                _say(f"{name}: {note}")
            quiet = flags.quiet or frames.count < 2
            with progress(frames.count, "frames", quiet=quiet) as advance:
                data = codec.encode_groups(
                    advance(frames.groups(codec.group), len),
                    rate=frames.rate,
                    bits=flags.bits,
                    mode=None if flags.mode == "auto" else flags.mode,
                    overlap=flags.overlap,
                )
    except BrokenRecord as error:
        raise UserError(f"{name} is no picture or video that can be read: {error}") from None
    _write(flags.output, data)
    if not flags.quiet:
        from bsq_jax.coding.container import read_header

        header = read_header(io.BytesIO(data), flags.output)
        pixels = header.frames * header.height * header.width
        _say(
            f"{flags.output}: {len(data):,d} bytes, {8 * len(data) / pixels:.4f} bits a pixel "
            f"({header.frames} frame{'s' * (header.frames > 1)} of {header.height}x{header.width}, "
            f"{header.bits} bits a token, {header.mode})"
        )


def _decode(flags: argparse.Namespace) -> None:
    _check_output(flags)
    from bsq_jax.cli.progress import progress
    from bsq_jax.coding.container import DamagedFile, TruncatedFile, read_header

    data = sys.stdin.buffer.read() if flags.input == "-" else _existing(flags.input).read_bytes()
    header = read_header(io.BytesIO(data), flags.input)
    video = header.is_video
    kind = pathlib.Path(flags.output).suffix.lower() or (".mkv" if video else ".png")
    known = (*_EXACT, *_LOSSY) if video else (".png",)
    if flags.output != "-" and kind not in known:
        raise UserError(
            f"{flags.output}: {'videos' if video else 'pictures'} are written as "
            f"{' or '.join(known)}"
        )
    codec = _load(flags)
    groups = codec.decode_groups(io.BytesIO(data), flags.input)
    problem = ""

    def whole() -> Iterator[Any]:
        nonlocal problem
        given = 0
        try:
            for frames in groups:
                given += len(frames)
                yield frames
        except (DamagedFile, TruncatedFile) as error:
            if not given:
                raise
            problem = str(error)

    quiet = flags.quiet or header.frames < 2
    with progress(header.frames, "frames", quiet=quiet) as advance:
        if header.rate is not None:
            from bsq_jax.media.videos import encode_video

            rate = header.timing or header.rate
            made = encode_video(advance(whole(), len), rate, exact=kind in _EXACT)
        else:
            from bsq_jax.media.pictures import encode_png

            made = encode_png(next(whole())[0])
    _write(flags.output, made)
    for note in () if flags.quiet else _decoded_notes(header, lossy=kind in _LOSSY):
        _say(f"{flags.output}: {note}")
    if problem:
        raise UserError(f"{problem}; the frames before are in {flags.output}")


def _decoded_notes(header: Any, *, lossy: bool) -> Iterator[str]:
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


def _info(flags: argparse.Namespace) -> None:
    from bsq_jax.coding.container import DamagedFile, TruncatedFile, read_chunks, read_header

    data = sys.stdin.buffer.read() if flags.input == "-" else _existing(flags.input).read_bytes()
    file = io.BytesIO(data)
    header = read_header(file, flags.input)
    frames = chunks = payload = 0
    problem = ""
    try:
        for chunk in read_chunks(file, header, flags.input, lambda _: len(data)):
            frames, chunks = frames + chunk.frames, chunks + 1
            payload += len(chunk.payload)
    except (DamagedFile, TruncatedFile) as error:
        problem = str(error)
    pixels = header.frames * header.height * header.width
    rate = "a picture" if header.rate is None else f"{float(header.rate):g} frames a second"
    if header.timing is not None:
        rate += f" on average: their times vary ({float(header.timing.seconds):.3f} seconds)"
    print(f"size      {header.height}x{header.width} pixels, {header.frames} frame(s), {rate}")
    kept = f"{header.bits} bits a token, tiles share {header.overlap} pixels"
    print(f"mode      {header.mode}, {kept}")
    print(f"model     {header.fingerprint.hex()}")
    print(
        f"bytes     {len(data):,d} ({8 * len(data) / pixels:.4f} bits a pixel): {payload:,d} of "
        f"tokens in {chunks} chunk(s), {len(data) - payload:,d} around them"
    )
    if problem:
        raise UserError(problem)
    print("whole     yes: all checksums are right")


def _export(flags: argparse.Namespace) -> None:
    from bsq_jax.coding.codec import Codec

    target = pathlib.Path(flags.output)
    if target.exists() and not flags.force:
        raise UserError(f"{target} exists: choose another folder, or add --force")
    codec = Codec.load(flags.input)
    codec.save(target)
    _say(f"{target}: {'tokenizer and prior' if codec.has_prior else 'a tokenizer'}")


# --- files ---


def _load(flags: argparse.Namespace) -> Any:
    path = flags.model or os.environ.get(_VARIABLE)
    if not path:
        raise UserError(f"which model? Give --model WORKDIR_OR_EXPORT, or set {_VARIABLE}")
    from bsq_jax.coding.codec import Codec
    from bsq_jax.core.compilation_cache import enable_compilation_cache

    enable_compilation_cache()
    return Codec.load(path)


def _check_output(flags: argparse.Namespace) -> None:
    if flags.output == "-":
        if sys.stdout.isatty():
            raise UserError("these bytes are not for a terminal: pipe them, or give a file")
        return
    target = pathlib.Path(flags.output)
    if target.is_dir():
        raise UserError(f"{target} is a folder: give the name of a file")
    if target.exists() and not flags.force:
        raise UserError(f"{target} exists: choose another name, or add --force")
    if not target.absolute().parent.is_dir():
        raise UserError(f"the folder of {target} does not exist: make it first")
    if not os.access(target.absolute().parent, os.W_OK | os.X_OK):
        raise UserError(f"the folder of {target} cannot be written to: choose another")


def _check_encoded_name(name: str) -> None:
    """A .bsq file under the name of a picture would be taken for a damaged one."""
    from bsq_jax.data.decoding.video import VIDEO_EXTENSIONS
    from bsq_jax.data.sources.folders import IMAGE_EXTENSIONS

    suffix = pathlib.Path(name).suffix.lower()
    if suffix in IMAGE_EXTENSIONS | VIDEO_EXTENSIONS:
        raise UserError(f"{name}: what is encoded is a .bsq file, no {suffix} file: name it so")


def _existing(path: str) -> pathlib.Path:
    found = pathlib.Path(path)
    if not found.is_file():
        raise UserError(f"{found} does not exist or is not a file")
    return found


def _is_video_file(path: pathlib.Path) -> bool:
    from bsq_jax.data.decoding.video import VIDEO_EXTENSIONS

    return path.suffix.lower() in VIDEO_EXTENSIONS


def _write(path: str, data: bytes) -> None:
    if path == "-":
        stream: BinaryIO = sys.stdout.buffer
        stream.write(data)
        stream.flush()
        return
    from bsq_jax.core.files import write_atomic

    write_atomic(pathlib.Path(path), data)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
