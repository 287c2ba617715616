"""Files and folders that are written whole or not at all."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator


def sync_folder(folder: pathlib.Path) -> None:
    """Makes the names in a folder durable, which an ``fsync`` of the files alone does not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: pathlib.Path, data: bytes) -> None:
    """Writes a file so that a reader, or a crash, sees the old content or the new, never half.

    Args:
      path: the file to write; its folder must exist.
      data: the new content.
    """
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a hidden folder beside a path, which takes its place once it is filled.

    Args:
      path: of the folder to make: it is not there, or is an empty folder.

    Raises:
      OSError: the folder cannot take its place.
    """
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(path.parent)
