"""What ``encode`` does for a file, alone or in a folder: content, model, and the coded bytes."""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import TYPE_CHECKING

from bsq_jax.cli.inputs import existing_file, model_path
from bsq_jax.cli.outputs import say
from bsq_jax.core.errors import UserError

if TYPE_CHECKING:
    from bsq_jax.coding.codec import Codec


def content_of(path: str, name: str) -> bytes | pathlib.Path:
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


def load_codec(flags: argparse.Namespace) -> Codec:
    """The model; the settings are checked too.

    Raises:
      UserError: it has no such mode, bits, stages or tiles, or ``--export`` cannot be written.
    """
    from bsq_jax.cli.export import check_kept_model
    from bsq_jax.coding.codec import Codec
    from bsq_jax.core.compilation_cache import enable_compilation_cache

    path = model_path(flags)
    enable_compilation_cache()
    codec = Codec.load(path, step=flags.step)
    if flags.stages is not None:
        flags.bits = codec.bits_of_stages(flags.stages)
    if flags.mode == "auto":
        flags.mode = None
    settings = codec.settings(flags.mode, flags.bits, flags.overlap, flags.tile, flags.memory)
    flags.mode, flags.bits = settings.mode, settings.bits
    if flags.export:
        check_kept_model(codec, flags.export)
    return codec


def keep_model(codec: Codec, flags: argparse.Namespace) -> None:
    """Writes the model that ``--export`` asks for, or says that it will be gone."""
    from bsq_jax.cli import export

    if flags.export:
        export.keep_model(codec, flags.export)
        if not flags.quiet:
            say(f"{flags.export}: the model of these files, for decode --model {flags.export}")
    elif removal := codec.removal(flags.mode):
        say(f"{removal}, and no other step opens what it codes: keep it with --export FOLDER")


def encoded(
    name: str, content: bytes | pathlib.Path, codec: Codec, flags: argparse.Namespace
) -> tuple[bytes, tuple[str, ...]]:
    """The .bsq file, and lines on what it leaves out.

    Raises:
      UserError: the content cannot be read.
    """
    from bsq_jax.coding.frame_source import open_frames
    from bsq_jax.core.progress import labelled, progress
    from bsq_jax.data.records import BrokenRecord

    try:
        with open_frames(name, content, flags.frames) as frames:
            quiet = flags.quiet or frames.count < 2
            with labelled(name), progress(frames.count, "frames", quiet=quiet) as advance:
                data = codec.encode_groups(
                    advance(frames.groups(codec.group), len),
                    rate=frames.rate,
                    bits=flags.bits,
                    mode=flags.mode,
                    overlap=flags.overlap,
                    tile=flags.tile,
                    memory_mb=flags.memory,
                    shown=not flags.quiet and frames.count < 2,
                )
            return data, frames.notes
    except BrokenRecord as error:
        raise UserError(f"{name} is no picture or video that can be read: {error}") from None
