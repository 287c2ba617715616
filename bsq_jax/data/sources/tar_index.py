"""Which pictures and videos a tar file holds, and where: listed once and saved.

The index of ``folder/NAME.tar`` is ``folder/.bsq_jax_index/NAME.tar.npz``; where nothing can be
written there, a file in the user's cache folder (``$XDG_CACHE_HOME`` or ``~/.cache``); where that
fails too, it is made anew by each process. It is made again when size or time of the tar change.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import tarfile
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.data.decoding.file_kinds import EXPECTED_EXTENSIONS
from bsq_jax.data.decoding.video import VIDEO_EXTENSIONS
from bsq_jax.data.retry import with_retries
from bsq_jax.data.sources.stored_classes import Value, class_value

_VERSION = 1  # of the format, and of what is listed
_FOLDER = ".bsq_jax_index"
_BLOCK = 512
_LONGEST_LABEL = 2**20  # bytes of a .json or .cls that are read
_LISTED = EXPECTED_EXTENSIONS | VIDEO_EXTENSIONS
# What compressed files begin with, and what unpacks them.
_COMPRESSED = (
    (re.compile(rb"\x1f\x8b"), "gunzip"),
    (re.compile(rb"BZh[1-9]1AY&SY"), "bunzip2"),
    (re.compile(rb"\xfd7zXZ\0"), "unxz"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "unzstd"),
)


@dataclasses.dataclass(frozen=True)
class TarIndex:
    """The members of a tar that are pictures or videos by the endings of their names.

    Attributes:
      names: of the members, as UTF-8 one behind the other: uint8.
      ends: where each name ends in ``names``: int64 ``[member]``.
      offsets: of the first byte of each member's content in the tar: int64 ``[member]``.
      sizes: bytes of each member's content: int64 ``[member]``.
      kinds: number of the ending of each member's name: int32 ``[member]``.
      plain: whether the ending is all that follows the first dot of the name: bool ``[member]``.
      samples: the same number for members whose names are alike up to the first dot: int32
        ``[member]``.
      codes: which of ``values`` says the class, or -1: int32 ``[member]``.
      endings: those that there are, in small letters, such as ``.jpg``.
      values: what is stored of classes.
      problem: what the file is, such as ``cut short``; empty if it is whole. Members behind the
        damage are not listed.
      cut: whether the last member listed is not there to its end.
    """

    names: np.ndarray
    ends: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    kinds: np.ndarray
    plain: np.ndarray
    samples: np.ndarray
    codes: np.ndarray
    endings: list[str]
    values: list[Value]
    problem: str
    cut: bool

    def __len__(self) -> int:
        return len(self.offsets)


_ARRAYS = ("names", "ends", "offsets", "sizes", "kinds", "plain", "samples", "codes")
_TEXTS = ("endings", "values", "problem", "cut")


def tar_index(path: pathlib.Path) -> TarIndex:
    """The index of a tar file: the one that is saved, if it fits, or a new one, which is saved.

    Raises:
      UserError: the file cannot be read, or is compressed.
    """
    try:
        return with_retries(lambda: _tar_index(path))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}): repair it or take it out, because "
            "without its pictures the order of all others would change"
        ) from error


def _tar_index(path: pathlib.Path) -> TarIndex:
    status = path.stat()
    stamp = [_VERSION, status.st_size, status.st_mtime_ns]
    places = [_beside(path), *_cached(path)]
    for place in places:
        found = _load(place, stamp)
        if found is not None:
            return found
    with path.open("rb") as file:
        made = _listed(path, file, status.st_size)
    for place in places:
        with contextlib.suppress(OSError):
            _save(place, stamp, made)
            break
    return made


def _beside(path: pathlib.Path) -> pathlib.Path:
    return path.parent / _FOLDER / f"{path.name}.npz"


def _cached(path: pathlib.Path) -> Iterator[pathlib.Path]:
    name = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:32]
    with contextlib.suppress(RuntimeError):  # a user without a home
        root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path("~/.cache").expanduser()
        yield pathlib.Path(root, "bsq_jax", "tar_index", f"{name}.npz")


def _load(place: pathlib.Path, stamp: list[int]) -> TarIndex | None:
    """A saved index; None if there is none, or it is damaged or of another state of the tar."""
    try:
        with place.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            header = json.loads(stored["header"].tobytes())
            if header["stamp"] != stamp:
                return None
            arrays = {name: stored[name] for name in _ARRAYS}
            return TarIndex(**arrays, **{name: header[name] for name in _TEXTS})
    except Exception:  # of the archive, of JSON, of what is not there
        return None


def _save(place: pathlib.Path, stamp: list[int], index: TarIndex) -> None:
    """Writes an index under a name of its own first: other hosts may be writing the same."""
    header = {"stamp": stamp} | {name: getattr(index, name) for name in _TEXTS}
    place.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.tmp-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(
                file,
                header=np.frombuffer(json.dumps(header).encode(), np.uint8),
                **{name: getattr(index, name) for name in _ARRAYS},
            )
        os.chmod(temporary, 0o644)
        os.replace(temporary, place)
    except BaseException:
        os.unlink(temporary)
        raise


class _Lists:
    """What is known of the members so far."""

    def __init__(self) -> None:
        self.names: list[bytes] = []
        self.rows: list[tuple[int, int, int, bool, int]] = []  # offset, size, kind, plain, sample
        self.endings: dict[str, int] = {}
        self.samples: dict[str, int] = {}
        self.labels: dict[int, tuple[int, Value]] = {}  # by sample, with how much it counts

    def add(self, member: tarfile.TarInfo, file: BinaryIO) -> None:
        """Takes a member in, if it is a picture, a video or the class of one."""
        folder, _, base = member.name.rpartition("/")
        stem, _, rest = base.partition(".")
        if not member.isreg() or member.issparse() or not stem:  # hidden files are no files
            return
        ending = f".{rest.rpartition('.')[2].lower()}"
        sample = self.samples.setdefault(f"{folder}/{stem}", len(self.samples))
        if ending in (".cls", ".json"):
            value = _stored_class(ending, _content(member, file))
            rank = int(ending == ".cls")
            if value is not None and rank >= self.labels.get(sample, (0, value))[0]:
                self.labels[sample] = rank, value
        elif ending in _LISTED:
            kind = self.endings.setdefault(ending, len(self.endings))
            row = member.offset_data, member.size, kind, "." not in rest, sample
            self.rows.append(row)
            name = member.name.removeprefix("./")
            self.names.append(name.encode("utf-8", "surrogateescape"))

    def index(self, problem: str, *, cut: bool) -> TarIndex:
        """All of them."""
        table = np.array(self.rows, np.int64).reshape(-1, 5)
        values = list(dict.fromkeys(value for _, value in self.labels.values()))
        places = {value: place for place, value in enumerate(values)}
        codes = [
            places[self.labels[sample][1]] if sample in self.labels else -1
            for *_, sample in self.rows
        ]
        return TarIndex(
            names=np.frombuffer(b"".join(self.names), np.uint8),
            ends=np.cumsum([len(name) for name in self.names], dtype=np.int64),
            offsets=table[:, 0],
            sizes=table[:, 1],
            kinds=table[:, 2].astype(np.int32),
            plain=table[:, 3].astype(bool),
            samples=table[:, 4].astype(np.int32),
            codes=np.array(codes, np.int32),
            endings=list(self.endings),
            values=values,
            problem=problem,
            cut=cut,
        )


def _listed(path: pathlib.Path, file: BinaryIO, size: int) -> TarIndex:
    """Goes through the headers of a tar.

    Raises:
      UserError: it is compressed.
      OSError: it cannot be read.
    """
    head = file.read(10)
    for magic, tool in _COMPRESSED:
        if magic.match(head):
            raise UserError(
                f"{path} is compressed, so that no picture in it can be read without all before "
                f"it: unpack it with '{tool} {path}' and name the .tar"
            )
    lists, count, cut = _Lists(), 0, False
    if not size:
        return lists.index("empty", cut=False)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:", errorlevel=2) as tar:
            for member in _members(tar):
                count += 1
                whole = not member.isreg() or member.issparse()  # those have less than their size
                cut = not whole and member.offset_data + member.size > size
                before = len(lists.rows)
                lists.add(member, file)
                if cut:
                    problem = f"cut short within member {count}, {member.name}"
                    return lists.index(problem, cut=len(lists.rows) > before)
            problem = _end(file, tar.offset, size, count)
    except OSError:
        raise
    except Exception as error:  # tarfile raises many kinds on damaged headers
        reason = str(error).partition("\n")[0] or type(error).__name__
        problem = f"damaged after {count} members ({reason})" if count else f"no tar ({reason})"
    return lists.index(problem, cut=False)


def _members(tar: Any) -> Iterator[tarfile.TarInfo]:
    last = 0
    while (member := tar.next()) is not None:
        tar.members.clear()  # which would keep all of them
        if tar.offset <= last or member.size < 0:
            raise tarfile.ReadError("a negative size")
        last = tar.offset
        yield member


def _end(file: BinaryIO, offset: int, size: int, count: int) -> str:
    """What is wrong with the place behind the last member; tarfile takes damage for the end."""
    file.seek(offset)
    block = file.read(_BLOCK)
    if any(block):
        place = f"after {count} members, at byte {offset:,d} of {size:,d}"
        return f"cut short {place}" if len(block) < _BLOCK else f"damaged {place}"
    return ""


def _content(member: tarfile.TarInfo, file: BinaryIO) -> bytes:
    file.seek(member.offset_data)
    return file.read(min(member.size, _LONGEST_LABEL))


def _stored_class(ending: str, content: bytes) -> Value | None:
    """The class that a .cls file is, or that stands as "label" in a .json file."""
    try:
        text = content.decode()
        if ending == ".cls":
            return class_value(text)
        stored: Any = json.loads(text)
        return class_value(stored.get("label")) if isinstance(stored, dict) else None
    except (ValueError, RecursionError):
        return None
