"""What commands read: the model, a file or standard input."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys

from bsq_jax.cli.outputs import say
from bsq_jax.core.errors import UserError

_VARIABLE = "BSQ_JAX_MODEL"


def add_model(parser: argparse.ArgumentParser, *, starter: bool = True) -> None:
    """The flag that names a trained model; `starter` is that of `model_path`."""
    last = ", or else the starter model of the package" if starter else ""
    parser.add_argument("--model", help=f"workdir or export; by default ${_VARIABLE}{last}")


def model_path(flags: argparse.Namespace, *, starter: bool = True) -> str:
    """The model that ``--model`` or else the environment names, or else the starter model.

    Args:
      flags: with ``model``; with ``quiet``, nothing is said of the starter model.
      starter: whether the starter model will do.

    Raises:
      UserError: none is named, and the starter model will not do or is not there.
    """
    path = flags.model or os.environ.get(_VARIABLE)
    if path:
        return path
    if not starter:
        raise UserError(f"which model? Give --model WORKDIR_OR_EXPORT, or set {_VARIABLE}")
    from bsq_jax.training.starter import TAKEN, starter_folder

    folder = starter_folder()
    if not getattr(flags, "quiet", False):
        say(TAKEN)
    return str(folder)


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
