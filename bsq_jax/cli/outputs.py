"""What commands write: checks before the work begins, files, and words for the terminal."""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bsq_jax.core.errors import UserError
from bsq_jax.core.paths import local_path

if TYPE_CHECKING:
    from bsq_jax.coding.container import Header


def check_output_file(path: str, *, force: bool, suffix: str = "") -> None:
    """Checks a file before work is done for it; ``-`` stands for standard output.

    Args:
      path: as given.
      force: whether it may replace a file.
      suffix: what the name must end in, such as ``.npz``; empty for anything.

    Raises:
      UserError: it exists, is a folder, has another suffix, or its folder is missing or not
        writable; or binary data would go to a terminal.
    """
    if path == "-":
        if sys.stdout.isatty():
            raise UserError("refusing to write binary data to a terminal: pipe it, or give a file")
        return
    target = local_path(path)
    parent = target.absolute().parent
    if suffix and target.suffix != suffix:
        raise UserError(f"{target}: the name must end in {suffix}")
    if target.is_dir():
        raise UserError(f"{target} is a folder: give the name of a file")
    if target.exists() and not force:
        raise UserError(f"{target} exists: choose another name, or add --force")
    if not parent.is_dir():
        raise UserError(f"the folder of {target} does not exist: make it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"the folder of {target} cannot be written to: choose another")


def check_output_folder(path: str, results: Sequence[str], *, force: bool) -> pathlib.Path:
    """Checks a folder for results before work is done for it; it is not made yet.

    Args:
      path: as given.
      results: names of files that an earlier command would have left there.
      force: whether these may be replaced.

    Raises:
      UserError: it is a file, or holds such results.
    """
    folder = local_path(path)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder")
    old = [name for name in results if (folder / name).exists()]
    if old and not force:
        raise UserError(
            f"{folder} holds results ({', '.join(old)}): choose another folder, or add --force"
        )
    return folder


def check_new_folder(path: str, *, force: bool) -> pathlib.Path:
    """Checks a folder that is to be made for an export.

    Raises:
      UserError: it exists.
    """
    folder = local_path(path)
    if folder.exists() and not force:
        raise UserError(f"{folder} exists: choose another folder, or add --force")
    return folder


def write_output(path: str, data: bytes) -> None:
    """Writes a file whole or not at all; ``-`` is standard output."""
    if path == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    from bsq_jax.core.files import write_atomic

    write_atomic(pathlib.Path(path), data)


def bits_a_pixel(size: int, pixels: int) -> str:
    """The rate of coded pictures and videos, of so many bytes for the pixels of all frames."""
    return f"{8 * size / pixels:.4f} bits a pixel"


def size_and_rate(size: int, pixels: int) -> str:
    """Such as ``1,234 bytes, 0.2411 bits a pixel``."""
    return f"{size:,d} bytes, {bits_a_pixel(size, pixels)}"


def tiles_of(header: Header) -> str:
    """How the frames of a .bsq file are cut, such as ``, tiles of 512x768 share 8 pixels``."""
    clip = ", all frames as one clip" if header.stream else ""
    if header.tile == (0, 0):
        return f", without tiles{clip}"
    size = "x".join(map(str, header.tile)) if header.tile else "the model's size"
    return f", tiles of {size} share {header.overlap} pixels{clip}"


def say(text: str) -> None:
    """Tells the user something on standard error, so that standard output holds results only."""
    print(text, file=sys.stderr)
