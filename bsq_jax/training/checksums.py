"""Checksums of a folder: the proof that what is read back is what was written.

Orbax makes a save atomic, but it does not notice when bytes change afterwards: a flipped bit in an
array's file comes back as another number, silently. So every finished checkpoint gets one more
file, ``checksums.json``, with the size and the SHA-256 of each of the others.

The files are read by several threads (hashlib works without Python's lock), and each process of a
run reads a share of them, so that a large checkpoint is not read through one machine's mount. The
processes exchange their shares as files in the folder, because a save is finished in a background
thread, where a collective operation would meet those of the training step.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import logging
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bsq_jax.core.files import sync_folder, write_atomic

NAME = "checksums.json"
_FORMAT = 1
_THREADS = 8  # files read at a time
_PATIENCE = 300.0  # seconds for what another process writes
_SHARES = "checksums-shares.json"  # from process 0: the files that each process reads
_PART = "checksums-part-{}.json"  # from another process: the digests of its files

_log = logging.getLogger(__name__)


def write(folder: pathlib.Path, process: int = 0, processes: int = 1) -> None:
    """Writes ``checksums.json`` for all files below a folder, after they reached the disk.

    Every process calls it, with the same folder on storage that they share. The table is written
    last, by process 0; to the others it may not be there yet when this returns.

    Args:
      folder: a finished checkpoint; nobody may write into it any more.
      process: the index of this process.
      processes: how many there are.
    """
    if process:
        _write_part(folder, process)
        return
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != NAME]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    parts = shares(sizes, processes)
    if processes > 1:
        write_atomic(folder / _SHARES, json.dumps(parts).encode())
    found = dict(_digests(folder, parts[0], sync=True))
    for other in range(1, processes):
        found |= _read_part(folder, other, parts[other])
    for inner in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        sync_folder(inner)
    (folder / _SHARES).unlink(missing_ok=True)
    files = {name: [size, found[name]] for name, size in sizes.items()}
    table = {"format": _FORMAT, "table_sha256": _digest_of_entries(files), "files": files}
    write_atomic(folder / NAME, json.dumps(table, indent=1).encode())


def problem(folder: pathlib.Path, process: int = 0, processes: int = 1) -> str | None:
    """Compares a process's share of the files in a folder with its ``checksums.json``.

    Args:
      folder: a checkpoint folder.
      process: the index of this process.
      processes: how many there are; the folder is sound if none of them finds a problem.

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
    mine = shares({name: size for name, (size, _) in files.items()}, processes)[process]
    try:
        # Sizes are free to look at, so a truncated file is found before any large one is read.
        for name in mine:
            size, found = files[name][0], (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
        for name, digest in _digests(folder, mine, sync=False):
            if digest != files[name][1]:
                return f"{name} differs from its checksum"
    except FileNotFoundError as error:
        return f"{_relative(error, folder)} is missing"
    except OSError as error:
        return f"{_relative(error, folder)} cannot be read ({error.strerror})"
    return None


def shares(sizes: Mapping[str, int], processes: int) -> list[list[str]]:
    """Splits files among processes, so that each reads about as many bytes.

    Args:
      sizes: bytes by name.
      processes: how many there are.

    Returns:
      The names of each process, the same wherever the sizes are the same.
    """
    parts: list[list[str]] = [[] for _ in range(processes)]
    load = [0] * processes
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = load.index(min(load))
        parts[least].append(name)
        load[least] += sizes[name] + 1  # empty files count too
    return parts


def _write_part(folder: pathlib.Path, process: int) -> None:
    """Digests the files that process 0 asks this process for."""
    asked = _wait_for(folder / _SHARES)
    if asked is None:
        _log.warning("process 0 has not asked for checksums of %s", folder)
        return
    found = dict(_digests(folder, asked[process], sync=True))
    write_atomic(folder / _PART.format(process), json.dumps(found).encode())


def _read_part(folder: pathlib.Path, process: int, names: Sequence[str]) -> dict[str, str]:
    """The digests of another process's files; made here if it does not give them."""
    path = folder / _PART.format(process)
    found = _wait_for(path)
    if found is None:
        _log.warning("process %d gives no checksums of %s: does it see it?", process, folder)
        found = dict(_digests(folder, names, sync=True))
    path.unlink(missing_ok=True)
    return found


def _wait_for(path: pathlib.Path) -> Any:
    """What another process writes as JSON; None if it does not come in time."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if path.exists():
            return json.loads(path.read_bytes())
        time.sleep(0.05)
    return None


def _digests(
    folder: pathlib.Path, names: Sequence[str], *, sync: bool
) -> Iterator[tuple[str, str]]:
    """Names and SHA-256 of files in order; several are read at a time."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS, "checksums") as pool:
        found = [pool.submit(_digest, folder / name, sync=sync) for name in names]
        try:
            for name, digest in zip(names, found, strict=True):
                yield name, digest.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _digest(path: pathlib.Path, *, sync: bool) -> str:
    """SHA-256 of a file in hex; with ``sync``, after the file has reached the disk."""
    try:
        with path.open("rb") as file:
            if sync:
                os.fsync(file.fileno())
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        error.filename = str(path)  # an error of `read` does not name its file
        raise


def _relative(error: OSError, folder: pathlib.Path) -> str:
    """The file that could not be read, as the table names it."""
    return os.path.relpath(error.filename, folder)


def _digest_of_entries(files: dict[str, list]) -> str:
    """SHA-256 of the table itself, so that damage to the table is told from damage to a file."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
