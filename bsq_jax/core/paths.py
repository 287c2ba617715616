"""Paths that a user gives."""

import os
import pathlib
import re

from bsq_jax.core.errors import UserError
from bsq_jax.core.hub_address import HUB_SCHEME


def local_path(text: str | os.PathLike[str]) -> pathlib.Path:
    """The path, unless it is the address of a bucket, which ``pathlib`` would take for a folder.

    Raises:
      UserError: it begins like a URL, or like what ``pathlib`` has made of one: ``gs:/``.
    """
    if os.fspath(text).startswith(HUB_SCHEME):
        raise UserError(
            f"{os.fspath(text)} is a model on the hub, which is only read: give a folder here "
            f"(`bsq-jax export {os.fspath(text)} FOLDER` makes one of it)"
        )
    if re.match(r"[A-Za-z][\w+.-]+:/", os.fspath(text)):
        raise UserError(
            f"{os.fspath(text)} is not a path on a file system: mount the bucket on every host and "
            "give the path of the mount"
        )
    return pathlib.Path(text)
