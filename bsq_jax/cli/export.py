"""Writes a trained model and its tokenizer as one folder, without checkpoints.

Examples:
  bsq-jax export runs/prior my_codec
  bsq-jax export runs/digits_lm my_generator
  bsq-jax export runs/prior small_codec --half
  bsq-jax export runs/quickstart deployed --format stablehlo
  bsq-jax export deployed --format stablehlo

Every command that takes a model takes such a folder too, but for those of --format stablehlo: they
hold the tokenizer as programs for CPUs, GPUs and TPUs that jax runs without this package. Without a
model the starter model of bsq_jax is taken.
"""

from __future__ import annotations

import argparse
import os
import pathlib
from typing import TYPE_CHECKING

from bsq_jax.cli.command import Command
from bsq_jax.cli.outputs import check_new_folder, say
from bsq_jax.core.errors import UserError
from bsq_jax.core.files import new_folder
from bsq_jax.core.paths import local_path

if TYPE_CHECKING:
    from bsq_jax.coding.codec import Codec
    from bsq_jax.inference.generator import Generator
    from bsq_jax.inference.portable_folder import PortableFolder

FORMATS = ("safetensors", "stablehlo")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``export``."""
    parser.add_argument(
        "input", nargs="?", help="workdir or export of a tokenizer, a prior or a masked LM"
    )
    parser.add_argument("output", help="folder to make")
    parser.add_argument("--force", action="store_true", help="write into a folder that exists")
    parser.add_argument(
        "--half",
        action="store_true",
        help="round a tokenizer and its prior to float16: a model of half the size, of its own",
    )
    parser.add_argument("--license", metavar="ID", help="for the model card, such as apache-2.0")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="of the folder")
    only = parser.add_argument_group("--format stablehlo")
    only.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="to compute in; float32 by default"
    )
    only.add_argument(
        "--size", metavar="HxW", help="one size of all pictures, in pixels; else any, if possible"
    )
    only.add_argument("--frames", type=int, metavar="N", help="length of clips; else the model's")


def run(flags: argparse.Namespace) -> int:
    """Exports."""
    _check_flags(flags)
    target = check_new_folder(flags.output, force=flags.force)
    from bsq_jax.training.hub import model_folder
    from bsq_jax.training.saved_models import read_saved_config
    from bsq_jax.training.starter import unnamed_model

    source = model_folder(flags.input) if flags.input else unnamed_model()
    if not source.is_dir():
        raise UserError(f"{source} does not exist or is not a folder: give a workdir or export")
    task = read_saved_config(source).task
    if flags.format == "stablehlo":
        return _programs(source, task, target, flags)
    what = write_model(source, target, half=flags.half, license_id=flags.license)
    say(f"{target}: {what}")
    return 0


def write_model(
    source: pathlib.Path,
    target: pathlib.Path,
    *,
    half: bool = False,
    license_id: str | None = None,
) -> str:
    """Writes an export of a workdir or an export, with its card.

    Returns:
      What it holds, for a message.

    Raises:
      UserError: there is no such model, or the folder cannot be written.
    """
    from bsq_jax.coding.codec import Codec
    from bsq_jax.inference.generator import Generator
    from bsq_jax.training.model_card import with_license, write_card
    from bsq_jax.training.saved_models import read_saved_config

    with_license("", license_id)  # before work is done
    if read_saved_config(source).task == "masked_lm":
        if half:
            raise UserError("--half is for tokenizers and priors, not for masked language models")
        _save(Generator.load(source), target)
        what = "masked language model and tokenizer"
    else:
        codec = Codec.load(source)
        _save(codec, target, half=half)
        what = "tokenizer and prior" if codec.has_prior else "a tokenizer"
    write_card(target, source, license_id)
    return what


def _check_flags(flags: argparse.Namespace) -> None:
    """Refuses flags of the other format.

    Raises:
      UserError: there is one, or the size is none.
    """
    from bsq_jax.config.sizes import is_size

    if flags.format == "stablehlo" and flags.half:
        raise UserError(
            "--half is for --format safetensors: export with --half, and then that folder with "
            "--format stablehlo"
        )
    given = [name for name in ("dtype", "size", "frames") if getattr(flags, name) is not None]
    if flags.format == "stablehlo" and flags.license is not None:
        raise UserError("--license is for --format safetensors: its folders have a model card")
    if flags.format != "stablehlo" and given:
        raise UserError(f"--{given[0]} is for --format stablehlo")
    if flags.size is not None and not is_size(flags.size):
        raise UserError(f"--size {flags.size}: give HEIGHTxWIDTH in pixels, such as 256x256")


def _programs(
    source: pathlib.Path, task: str, target: pathlib.Path, flags: argparse.Namespace
) -> int:
    """Writes the tokenizer of a model in the format ``stablehlo``."""
    from bsq_jax.config.sizes import parse_sizes
    from bsq_jax.inference.portable import PLATFORMS
    from bsq_jax.inference.portable_folder import PortableFolder
    from bsq_jax.inference.tokenizer import Tokenizer
    from bsq_jax.training.saved_models import TOKENIZER_FOLDER

    inside = source / TOKENIZER_FOLDER
    if task not in ("tokenizer", "prior"):
        raise UserError(
            f"{source} holds a {task}, and --format stablehlo is for tokenizers: export its "
            f"tokenizer, {inside}"
        )
    tokenizer = Tokenizer.load(
        source if task == "tokenizer" else inside, dtype=flags.dtype or "float32"
    )
    size = parse_sizes([flags.size])[0] if flags.size else None
    model = PortableFolder(tokenizer, size=size, frames=flags.frames)
    _save(model, target)
    programs = model.portable
    sizes = "x".join(map(str, programs.size)) if programs.size else "any size"
    why = f", because {programs.fixed} (--size sets another)" if programs.fixed else ""
    say(
        f"{target}: encode and decode for {', '.join(PLATFORMS)}, of "
        + (f"clips of {programs.frames} frames, " if programs.clips else "pictures, ")
        + f"{sizes}{why}"
        + ("; the prior is not in it" if task == "prior" else "")
    )
    return 0


def _save(model: Codec | Generator | PortableFolder, folder: pathlib.Path, **how: bool) -> None:
    """Writes an export, into a new or empty folder whole or not at all.

    A folder that cannot be replaced, such as one with files or where a disk is mounted, gets the
    files one by one.

    Raises:
      UserError: the folder cannot be written.
    """
    if folder.is_dir() and (
        any(folder.iterdir())
        or folder.is_mount()
        or not os.access(folder.resolve().parent, os.W_OK | os.X_OK)
    ):
        model.save(folder, **how)
        return
    try:
        with new_folder(folder) as temporary:
            model.save(temporary, **how)
    except OSError as error:
        raise UserError(f"cannot write the export {folder}: {error.strerror}") from error


def keep_model(codec: Codec, path: str) -> None:
    """Writes an export of the codec, unless it is there.

    Raises:
      UserError: as `check_kept_model`, or the folder cannot be written.
    """
    if not check_kept_model(codec, path):
        _save(codec, local_path(path))


def check_kept_model(codec: Codec, path: str) -> bool:
    """Checks a folder that an export of the codec is written to, before work is done.

    Returns:
      Whether the export is there already.

    Raises:
      UserError: there is something else in it, such as another model, which files may need.
    """
    from bsq_jax.training.export import is_export

    folder = local_path(path)
    if folder.is_dir() and not any(folder.iterdir()):
        return False
    if is_export(folder):
        there = type(codec).load(folder)
        if there.has_prior == codec.has_prior and all(
            there.fingerprint(mode) == codec.fingerprint(mode)
            for mode in (("raw", "prior") if codec.has_prior else ("raw",))
        ):
            return True
        raise UserError(
            f"--export {folder}: it holds another model ({there.origin() or there.name}), which "
            "files may need: choose another folder, or code with that one: --model "
            f"{folder}"
        )
    if folder.exists():
        raise UserError(f"--export {folder}: it exists and is no such model: choose another folder")
    return False


COMMAND = Command(
    "write a model as one folder without checkpoints, or as programs",
    __doc__,
    add_arguments,
    run,
    intermixed=True,
)
