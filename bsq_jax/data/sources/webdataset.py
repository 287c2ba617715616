"""Data in tar files, as WebDataset writes them: pictures or videos, with classes beside them.

Members whose names are alike up to the first dot, such as ``0001.jpg`` and ``0001.cls``, belong
together. Nothing is unpacked: an index says where each picture lies, see `tar_index`, so that any
of them is read at any time.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import NamedTuple

import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.core.once import say_once
from bsq_jax.core.progress import labelled, progress
from bsq_jax.data.decoding.file_kinds import IMAGE_EXTENSIONS, describe_unread
from bsq_jax.data.decoding.raw_video import RAW_EXTENSION
from bsq_jax.data.decoding.video import VIDEO_EXTENSIONS
from bsq_jax.data.records import NO_LABEL, BrokenRecord, Record, Source
from bsq_jax.data.sources.folders import VAL_FRACTION
from bsq_jax.data.sources.shard_files import matching_files, names_of, pattern_of
from bsq_jax.data.sources.stored_classes import Value, labels_of, number_classes
from bsq_jax.data.sources.tar_index import TarIndex, tar_index

_SCHEME = "webdataset"
_READ = IMAGE_EXTENSIONS | VIDEO_EXTENSIONS - {RAW_EXTENSION}  # the size of raw video is its name
_THREADS = 8  # that make indexes
_SHOWN = 3  # shards that a message names


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A tar file.

    Attributes:
      path: of the file.
      name: what records are called by.
      index: of its members.
    """

    path: pathlib.Path
    name: str
    index: TarIndex


class _Records(NamedTuple):
    """Where records lie; all arrays are ``[record]``.

    Attributes:
      shards: number of the tar: int32.
      members: number of the member in its index, or -1 for what is lost behind damage: int32.
      labels: number of the class, or `NO_LABEL`: int32.
      cut: for records that are not whole, by number, why.
    """

    shards: np.ndarray
    members: np.ndarray
    labels: np.ndarray
    cut: Mapping[int, str]


class WebDatasetSource:
    """Pictures or videos in tar files, each read at its place."""

    def __init__(
        self,
        name: str,
        shards: Sequence[_Shard],
        records: _Records,
        positions: np.ndarray,
        *,
        videos: bool,
        classes: Sequence[str],
    ):
        """Takes the shards, their records, and which ``positions`` belong to this source."""
        self.name = name
        self.videos = videos
        self.classes = tuple(classes)
        self._shards = tuple(shards)
        self._records = records
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    def label(self, index: int) -> int:
        """See `bsq_jax.data.records.Labelled`."""
        return int(self._records.labels[self._positions[index]]) if self.classes else NO_LABEL

    def fingerprint(self) -> str:
        """See `bsq_jax.data.records.fingerprint_of`."""
        digest = hashlib.sha256(repr([shard.name for shard in self._shards]).encode())
        for shard in self._shards:
            digest.update(shard.index.names.tobytes())
            digest.update(shard.index.ends.astype("<i8").tobytes())
        for array in (self._records.shards, self._records.members, self._records.labels):
            digest.update(array[self._positions].astype("<i4").tobytes())
        return digest.hexdigest()

    def __getitem__(self, index: int) -> Record:
        return self._read(index)

    def beginning(self, index: int, most: int) -> Record:
        """See `bsq_jax.data.records.PartlyRead`."""
        return self._read(index, None if self.videos else most)

    def id(self, index: int) -> str:
        """The names of the tar and of the member; see `bsq_jax.data.records.Identified`."""
        position = self._positions[index]
        shard = self._shards[self._records.shards[position]]
        member = self._records.members[position]
        if member < 0:
            return shard.name
        start = shard.index.ends[member - 1] if member else 0
        name = shard.index.names[start : shard.index.ends[member]].tobytes()
        return f"{shard.name}/{name.decode('utf-8', 'surrogateescape')}"

    def _read(self, index: int, most: int | None = None) -> Record:
        position = int(self._positions[index])
        if position in self._records.cut:
            raise BrokenRecord(self._records.cut[position])
        shard = self._shards[self._records.shards[position]]
        member = self._records.members[position]
        size = int(shard.index.sizes[member])
        wanted = size if most is None else min(size, most)
        with shard.path.open("rb") as file:
            file.seek(int(shard.index.offsets[member]))
            content = file.read(wanted)
        if len(content) < wanted:
            raise BrokenRecord("the file has been cut short since it was opened")
        return Record(self.id(index), content)


def open_webdataset(place: str, split: str, divide: bool) -> Source:
    """Pictures or videos of tar files; see `bsq_jax.data.sources.make_source`."""
    pattern = pattern_of(_SCHEME, place, split)
    name = f"{_SCHEME}:{pattern.text}"
    shards = _opened(pattern.text)
    train = shards if pattern.train == pattern.text else _opened(pattern.train)
    classes, numbers = number_classes(value for shard in train for value in shard.index.values)

    readable, videos = IMAGE_EXTENSIONS, False
    if not any(IMAGE_EXTENSIONS.intersection(shard.index.endings) for shard in shards):
        readable, videos = VIDEO_EXTENSIONS - {RAW_EXTENSION}, True
    chosen = [_chosen(shard.index, readable) for shard in shards]
    unread = _unread(shards, readable)
    fitting = sum(int(_has_ending(shard.index, readable).sum()) for shard in shards)
    beside = fitting - sum(map(len, chosen))
    if not any(map(len, chosen)):
        raise UserError(f"{name} holds no pictures and no videos: {_hint(shards, unread)}")
    if beside:
        files = "1 file" if beside == 1 else f"{beside} files"
        say_once(f"{name}: skipped {files} beside a picture or video of the same name")
    _report(name, shards, chosen, unread)
    records = _records(shards, chosen, numbers)
    positions = np.arange(len(records.shards))
    if pattern.alone and divide:
        positions = positions[(positions % round(1 / VAL_FRACTION) == 0) == (split == "val")]
    if not positions.size:
        raise UserError(f"{name} has no records for {split} ({len(records.shards)} in all)")
    return WebDatasetSource(name, shards, records, positions, videos=videos, classes=classes)


def _opened(pattern: str) -> list[_Shard]:
    """The tar files that a pattern names, with their indexes."""
    paths = matching_files(_SCHEME, pattern)
    with (
        futures.ThreadPoolExecutor(_THREADS) as pool,
        labelled(f"listing {_SCHEME}:{pattern}"),
        progress(len(paths), "files") as advance,
    ):
        indexes = list(advance(pool.map(tar_index, paths), lambda _: 1))
    return [_Shard(*parts) for parts in zip(paths, names_of(paths), indexes, strict=True)]


def _has_ending(index: TarIndex, endings: frozenset[str]) -> np.ndarray:
    """Which members have one of the endings, bool ``[member]``."""
    table = np.array([ending in endings for ending in index.endings], bool)
    return table[index.kinds] if table.size else np.zeros(len(index), bool)


def _chosen(index: TarIndex, endings: frozenset[str]) -> np.ndarray:
    """Numbers of the members that are records, increasing.

    Of members that belong together it is the first whose ending has one dot, such as ``a.jpg``
    beside ``a.mask.png``. Where none has, as with dots in names of files, each is a record.
    """
    fitting = _has_ending(index, endings)
    plain = np.flatnonzero(fitting & index.plain)
    samples, first = np.unique(index.samples[plain], return_index=True)
    others = np.flatnonzero(fitting & ~np.isin(index.samples, samples))
    return np.sort(np.concatenate([plain[first], others]))


def _unread(shards: Sequence[_Shard], readable: frozenset[str]) -> str:
    """Of which kinds there are files that are not read, in words."""
    unread: collections.Counter[str] = collections.Counter()
    for index in (shard.index for shard in shards):
        counts = np.bincount(index.kinds, minlength=len(index.endings))
        for ending, count in zip(index.endings, counts, strict=True):
            if ending not in readable:
                unread[ending] += int(count)
    return describe_unread(unread)


def _hint(shards: Sequence[_Shard], unread: str) -> str:
    """Why there is nothing to read."""
    damaged = [f"{shard.name} is {shard.index.problem}" for shard in shards if shard.index.problem]
    if damaged:
        return f"{damaged[0]}; make the tar files again"
    if unread:
        return f"it holds {unread}; convert them to PNG, or to MP4"
    return f"check the pattern (known names: *{', *'.join(sorted(_READ))})"


def _report(name: str, shards: Sequence[_Shard], chosen: Sequence[np.ndarray], unread: str) -> None:
    """Says once what is left out."""
    if unread:
        say_once(f"{name}: skipped {unread}")
    damaged = [f"{shard.name} is {shard.index.problem}" for shard in shards if shard.index.problem]
    if damaged:
        say_once(
            f"{name}: {len(damaged)} of {len(shards)} tar files are damaged, and what follows the "
            f"damage is not read: {_some(damaged)}"
        )
    none = [
        shard.name
        for shard, members in zip(shards, chosen, strict=True)
        if not len(members) and not shard.index.problem
    ]
    if none:
        say_once(f"{name}: {len(none)} of {len(shards)} tar files hold no picture: {_some(none)}")


def _some(texts: Sequence[str]) -> str:
    return ", ".join(texts[:_SHOWN]) + (", ..." if len(texts) > _SHOWN else "")


def _records(
    shards: Sequence[_Shard], chosen: Sequence[np.ndarray], numbers: Mapping[Value, int]
) -> _Records:
    """All records of the shards; what is lost behind damage counts as one that is broken."""
    columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    cut: dict[int, str] = {}
    count = 0
    for place, (shard, members) in enumerate(zip(shards, chosen, strict=True)):
        index = shard.index
        labels = labels_of(index.codes, index.values, numbers)[members]
        if index.problem:
            if not (index.cut and len(members) and members[-1] == len(index) - 1):
                members = np.append(members, -1)
                labels = np.append(labels, NO_LABEL)
            cut[count + len(members) - 1] = f"the file is {index.problem}"
        columns.append((np.full(len(members), place), members, labels))
        count += len(members)
    places, members, labels = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return _Records(places.astype(np.int32), members.astype(np.int32), labels, cut)
