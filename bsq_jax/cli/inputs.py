"""What commands read: the model, a file or standard input."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys

from bsq_jax.core.errors import UserError

_VARIABLE = "BSQ_JAX_MODEL"


def add_model(parser: argparse.ArgumentParser) -> None:
    """The flag that names a trained model."""
    parser.add_argument("--model", help=f"workdir or export; by default ${_VARIABLE}")


def model_path(flags: argparse.Namespace) -> str:
    """The model that ``--model`` or else the environment names.

    Raises:
      UserError: neither does.
    """
    path = flags.model or os.environ.get(_VARIABLE)
    if not path:
        raise UserError(f"which model? Give --model WORKDIR_OR_EXPORT, or set {_VARIABLE}")
    return path


def existing_file(path: str) -> pathlib.Path:
    """The file at a path.

    Raises:
      UserError: there is none.
    """
    found = pathlib.Path(path)
    if not found.is_file():
        raise UserError(f"{found} does not exist or is not a file")
    return found


def read_input(path: str) -> bytes:
    """The content of a file, or of standard input for ``-``.

    Raises:
      UserError: there is no such file.
    """
    return sys.stdin.buffer.read() if path == "-" else existing_file(path).read_bytes()
