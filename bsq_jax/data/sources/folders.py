"""Pictures and videos that lie in folders."""

import collections
import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.core.once import say_once
from bsq_jax.data.decoding.file_kinds import (
    EXPECTED_EXTENSIONS,
    IMAGE_EXTENSIONS,
    describe_unread,
)
from bsq_jax.data.decoding.video import VIDEO_EXTENSIONS
from bsq_jax.data.records import NO_LABEL, Record, Source

_VAL_FOLDERS = ("val", "validation", "valid", "test")
VAL_FRACTION = 0.1


class FileSource:
    """Picture or video files in a fixed order, read anew at each access."""

    def __init__(
        self,
        name: str,
        files: Sequence[tuple[str, str]],
        *,
        videos: bool = False,
        classes: Sequence[str] = (),
        labels: Sequence[int] = (),
    ):
        """Takes the files.

        Args:
          name: how the source calls itself.
          files: pairs of (record id, path).
          videos: whether they are videos.
          classes: names of classes.
          labels: for each file the number of its class, if there are classes.
        """
        self.name = name
        self.videos = videos
        self.classes = tuple(classes)
        self._labels = tuple(labels)
        self._files = tuple(files)

    def label(self, index: int) -> int:
        """See `bsq_jax.data.records.Labelled`."""
        return self._labels[index] if self.classes else NO_LABEL

    def fingerprint(self) -> str:
        """See `bsq_jax.data.records.fingerprint_of`."""
        digest = hashlib.sha256()
        for number, (record_id, _) in enumerate(self._files):
            name = record_id.encode("utf-8", "surrogateescape")
            digest.update(b"%d %d %b\n" % (self.label(number), len(name), name))
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Record:
        record_id, path = self._files[index]
        file = pathlib.Path(path)
        return Record(record_id, file if self.videos else file.read_bytes())

    def beginning(self, index: int, most: int) -> Record:
        """See `bsq_jax.data.records.PartlyRead`."""
        record_id, path = self._files[index]
        if self.videos:
            return self[index]
        with pathlib.Path(path).open("rb") as file:
            return Record(record_id, file.read(most))


class _Kind(NamedTuple):
    """What a folder is searched for, and how messages call it."""

    scheme: str
    plural: str
    extensions: frozenset[str]


_PICTURES = _Kind("folder", "pictures", IMAGE_EXTENSIONS)
_VIDEOS = _Kind("clips", "videos", VIDEO_EXTENSIONS)


def pictures(place: str, split: str, divide: bool) -> Source:
    """All pictures below a folder; see `bsq_jax.data.sources.make_source`."""
    return _folder(_PICTURES, place, split, divide)


def clips(place: str, split: str, divide: bool) -> Source:
    """All videos below a folder, or one file; see `bsq_jax.data.sources.make_source`."""
    path = pathlib.Path(place).expanduser()
    if not path.is_file():
        return _folder(_VIDEOS, place, split, divide)
    if divide:
        raise UserError(
            f"clips:{place} is one video, which cannot be divided into train and val: "
            "give a folder of videos, or another data.val_source"
        )
    return FileSource(f"clips:{place}", [(path.name, str(path))], videos=True)


def _folder(kind: _Kind, place: str, split: str, divide: bool) -> Source:
    root = pathlib.Path(place).expanduser()
    if not root.is_dir():
        raise UserError(f"{kind.scheme}:{place} is not a folder: check the path")
    train_folder, val_folder = _subfolder(root, ("train",)), _subfolder(root, _VAL_FOLDERS)
    if train_folder and val_folder:
        folder = train_folder if split == "train" else val_folder
        below, unread = search(root / folder, kind.extensions)
        chosen = [f"{folder}/{path}" for path in below]
        if folder != train_folder:
            below, _ = search(root / train_folder, kind.extensions)
        everything = [f"{train_folder}/{path}" for path in below]
        where, depth = f"{place}/{folder}", 1
    else:
        chosen, unread = search(root, kind.extensions)
        everything, where, depth = chosen, place, 0
        if divide and chosen:
            chosen = _hash_split(kind, chosen, split, place)
    if not chosen:
        hint = _hint(kind, place, root, unread)
        raise UserError(f"{kind.scheme}:{where} holds no {kind.plural}: {hint}")
    report_unread(f"{kind.scheme}:{where}", unread)
    files = [(path, str(root / path)) for path in chosen]
    classes, labels = _classes(everything, chosen, depth)
    return FileSource(
        f"{kind.scheme}:{where}", files, videos=kind is _VIDEOS, classes=classes, labels=labels
    )


def _subfolder(root: pathlib.Path, names: Sequence[str]) -> str | None:
    """The folder in `root` with the first of the names that is there, in small letters or others.

    Raises:
      UserError: the folder cannot be listed.
    """
    try:
        with os.scandir(root) as entries:
            folders = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        raise _unlisted(error) from error
    found = {name.lower(): name for name in folders} | {name: name for name in folders}
    return next((found[name] for name in names if name in found), None)


def _unlisted(error: OSError) -> UserError:
    return UserError(
        f"{error.filename} cannot be listed ({error.strerror}): repair it or take it out, because "
        "without its files the order of all others and the numbers of classes would change"
    )


def _hint(kind: _Kind, place: str, root: pathlib.Path, unread: str) -> str:
    """What to do about a folder without anything of a kind."""
    other = _VIDEOS if kind is _PICTURES else _PICTURES
    if search(root, other.extensions)[0]:
        return f"it holds {other.plural}, write {other.scheme}:{place}"
    if unread:
        return f"it holds {unread}; convert them to PNG, or to MP4"
    return f"check the path (known file names: *{', *'.join(sorted(kind.extensions))})"


def _classes(
    everything: Sequence[str], chosen: Sequence[str], depth: int
) -> tuple[list[str], list[int]]:
    """Names of the folders that files lie in, ``depth`` down, and the class of each chosen one.

    Where a file lies in none of them, or there is only one, folders are no classes.
    """
    folders = {parts[depth] for path in everything if len(parts := path.split("/")) > depth + 1}
    loose = any(path.count("/") <= depth for path in (*everything, *chosen))
    if loose or len(folders) < 2:
        return [], []
    names = sorted(folders)
    numbers = {name: number for number, name in enumerate(names)}
    return names, [numbers.get(path.split("/")[depth], NO_LABEL) for path in chosen]


def search(root: pathlib.Path, extensions: frozenset[str]) -> tuple[list[str], str]:
    """Paths of files relative to ``root``, sorted, and what is left out; hidden files are no files.

    Args:
      root: a folder; links are followed.
      extensions: the endings of names that count, such as ``.png``.

    Returns:
      The paths, and how many files of kinds that are not read there are, such as ``12 files of
      kinds that are not read: .jxl (10), .dng (2)``: pictures and videos with other endings. It is
      empty where there are none.

    Raises:
      UserError: a folder cannot be listed.
    """

    def stop(error: OSError) -> None:
        raise _unlisted(error) from error

    found: list[str] = []
    unread: collections.Counter[str] = collections.Counter()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=stop):
        if os.path.realpath(folder) in _ancestors(folder, root):  # a link back up the tree
            subfolders.clear()
            continue
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in files:
            ending = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if ending in extensions:
                found.append(pathlib.Path(folder, name).relative_to(root).as_posix())
            elif ending in EXPECTED_EXTENSIONS:
                unread[ending] += 1
    return sorted(found), describe_unread(unread)


def _ancestors(folder: str, root: pathlib.Path) -> set[str]:
    """What the folders between ``folder`` and ``root`` really are."""
    if pathlib.Path(folder) == root:
        return set()
    between = pathlib.Path(folder).relative_to(root).parents
    return {os.path.realpath(root / part) for part in between}


def report_unread(place: str, unread: str) -> None:
    """Logs what `search` left out of a folder, once."""
    if unread:
        say_once(f"{place}: skipped {unread}")


def _hash_split(kind: _Kind, paths: list[str], split: str, place: str) -> list[str]:
    def position(path: str) -> float:
        digest = hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64

    positions = [position(path) for path in paths]
    bound = max(VAL_FRACTION, np.nextafter(min(positions), 1))
    in_val = [value < bound for value in positions]
    if all(in_val):
        raise UserError(
            f"{kind.scheme}:{place} has too few {kind.plural} ({len(paths)}) to divide into train "
            f"and val: add {kind.plural}, or make train/ and val/ folders in it"
        )
    return [path for path, val in zip(paths, in_val, strict=True) if val == (split == "val")]
