"""Checksums of a folder: the proof that what is read back is what was written.

Orbax makes a save atomic, but it does not notice when bytes change afterwards: a flipped bit in an
array's file comes back as another number, silently. So every finished checkpoint gets one more
file, ``checksums.json``, with the size and the SHA-256 of each of the others.
"""

import hashlib
import json
import os
import pathlib

from bsq_jax.core.files import sync_folder, write_atomic

NAME = "checksums.json"
_FORMAT = 1


def _digest(path: pathlib.Path, *, sync: bool) -> str:
    """SHA-256 of a file in hex; with ``sync``, after the file has reached the disk."""
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of_entries(files: dict[str, list]) -> str:
    """SHA-256 of the table itself, so that damage to the table is told from damage to a file."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def write(folder: pathlib.Path) -> None:
    """Writes ``checksums.json`` for all files below ``folder``, after they reached the disk.

    Args:
      folder: a finished checkpoint; nobody may write into it any more.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != NAME:
            name = path.relative_to(folder).as_posix()
            files[name] = [path.stat().st_size, _digest(path, sync=True)]
    for inner in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        sync_folder(inner)
    table = {"format": _FORMAT, "table_sha256": _digest_of_entries(files), "files": files}
    write_atomic(folder / NAME, json.dumps(table, indent=1).encode())


def problem(folder: pathlib.Path) -> str | None:
    """Compares a folder with its ``checksums.json``.

    Args:
      folder: a checkpoint folder.

    Returns:
      None when every file is there and unchanged; otherwise a few words that name the first file
      that is not, for a message to the user.
    """
    try:
        table = json.loads((folder / NAME).read_bytes())
        files = table["files"]
        if table["format"] != _FORMAT or table["table_sha256"] != _digest_of_entries(files):
            return f"{NAME} is damaged"
    except FileNotFoundError:
        return f"it has no {NAME} (the run was stopped before it was complete)"
    except OSError as error:
        return f"{NAME} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError):
        return f"{NAME} is damaged"
    try:
        # Sizes are free to look at, so a truncated file is found before any large one is read.
        for name, (size, _) in files.items():
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
        for name, (_, digest) in files.items():
            if _digest(folder / name, sync=False) != digest:
                return f"{name} differs from its checksum"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return None
