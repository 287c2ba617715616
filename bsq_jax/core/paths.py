"""Paths that a user gives."""

import os
import pathlib
import re

from bsq_jax.core.errors import UserError


def local_path(text: str | os.PathLike[str]) -> pathlib.Path:
    """The path, unless it is the address of a bucket, which ``pathlib`` would take for a folder.

    Raises:
      UserError: it begins like a URL, or like what ``pathlib`` has made of one: ``gs:/``.
    """
    if re.match(r"[A-Za-z][\w+.-]+:/", os.fspath(text)):
        raise UserError(
            f"{os.fspath(text)} is not a path on a file system: mount the bucket on every host and "
            "give the path of the mount"
        )
    return pathlib.Path(text)
