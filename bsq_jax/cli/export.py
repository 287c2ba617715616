"""Writes a trained model and its tokenizer as one folder, without checkpoints.

Examples:
  bsq-jax export runs/prior my_codec
  bsq-jax export runs/digits_lm my_generator
  bsq-jax export runs/prior small_codec --half

Every command that takes a model takes such a folder too.
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``export``."""
    parser.add_argument("input", help="workdir of a tokenizer, a prior or a masked language model")
    parser.add_argument("output", help="folder to make")
    parser.add_argument("--force", action="store_true", help="write into a folder that exists")
    parser.add_argument(
        "--half",
        action="store_true",
        help="round a tokenizer and its prior to float16: a model of half the size, of its own",
    )


def run(flags: argparse.Namespace) -> int:
    """Exports."""
    target = check_new_folder(flags.output, force=flags.force)
    from bsq_jax.coding.codec import Codec
    from bsq_jax.inference.generator import Generator
    from bsq_jax.training.saved_models import read_saved_config

    source = local_path(flags.input)
    if not source.is_dir():
        raise UserError(f"{source} does not exist or is not a folder: give a workdir or export")
    if read_saved_config(source).task == "masked_lm":
        if flags.half:
            raise UserError("--half is for tokenizers and priors, not for masked language models")
        _save(Generator.load(source), target)
        say(f"{target}: masked language model and tokenizer")
        return 0
    codec = Codec.load(source)
    _save(codec, target, half=flags.half)
    say(f"{target}: {'tokenizer and prior' if codec.has_prior else 'a tokenizer'}")
    return 0


def _save(model: Codec | Generator, folder: pathlib.Path, **how: bool) -> None:
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


COMMAND = Command("write a model as one folder without checkpoints", __doc__, add_arguments, run)
