r"""Writes a checkpoint of the published PyTorch code as an export; PyTorch is not needed.

Examples:
  bsq-jax convert checkpoint.pt my_tokenizer
  bsq-jax convert checkpoint.pt my_tokenizer --heads 12 --image-size 256x256
  bsq-jax evaluate --workdir my_tokenizer
  bsq-jax train --workdir runs/a --config.train.init=my_tokenizer

What shapes cannot tell comes from the config inside the file, or from the flags: the heads, the
size of a picture, and the quantizer (bsq, leech, vq; vq-cosine compares codes by their angle).
Nothing in the file is executed.
"""

from __future__ import annotations

import argparse
import pathlib
import re

from bsq_jax.cli.command import Command
from bsq_jax.core.errors import UserError
from bsq_jax.core.paths import local_path
from bsq_jax.torch_import.setting import QUANTIZERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``convert``."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT.pt", help="file of torch.save")
    parser.add_argument("out", metavar="OUT", help="folder of the export")
    parser.add_argument("--heads", type=int, metavar="N", help="attention heads")
    parser.add_argument("--image-size", type=_size, metavar="HxW", help="size in pixels")
    parser.add_argument(
        "--quantizer", choices=QUANTIZERS, help="where the file does not say which it has"
    )
    parser.add_argument("--no-discriminator", action="store_true", help="leave it out")


def run(flags: argparse.Namespace) -> int:
    """Converts, and prints a report."""
    from bsq_jax.torch_import.convert import convert, report
    from bsq_jax.training.export import save_export

    folder = local_path(flags.out)
    _check_free(folder)
    converted = convert(
        flags.checkpoint,
        heads=flags.heads,
        image_size=flags.image_size,
        quantizer=flags.quantizer,
        discriminator=not flags.no_discriminator,
    )
    save_export(folder, converted.config, converted.weights, origin=converted.origin)
    print(f"{report(converted)}\nexport: {folder}")
    return 0


def _check_free(folder: pathlib.Path) -> None:
    """Refuses a folder whose files an export would replace."""
    from bsq_jax.training.export import is_export

    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder for the export")
    if folder.is_dir() and any(folder.iterdir()) and not is_export(folder):
        raise UserError(f"{folder} holds other files: give a new folder for the export")


def _size(text: str) -> tuple[int, int]:
    if not (found := re.fullmatch(r"(\d+)(?:x(\d+))?", text)):
        raise argparse.ArgumentTypeError(f"'{text}' is not like 256 or 128x256 (height x width)")
    height, width = found.groups()
    return int(height), int(width or height)


COMMAND = Command(
    "write a checkpoint of the published PyTorch code as an export", __doc__, add_arguments, run
)
