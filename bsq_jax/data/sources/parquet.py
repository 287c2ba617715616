"""Pictures in Parquet files, as the Hugging Face hub keeps them.

A picture is read with all others of its row group. Row groups that were used last are kept in
memory, and in training the order of records is such that few of them are in use at a time, see
`bsq_jax.data.batches.EpochOrder`: each is read about once in an epoch.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from concurrent import futures

import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.core.once import say_once
from bsq_jax.core.progress import labelled, progress
from bsq_jax.data.records import NO_LABEL, BrokenRecord, Record, Source
from bsq_jax.data.sources.folders import VAL_FRACTION
from bsq_jax.data.sources.parquet_file import ParquetFile, open_parquet_file
from bsq_jax.data.sources.row_group_cache import RowGroupCache
from bsq_jax.data.sources.shard_files import matching_files, names_of, pattern_of
from bsq_jax.data.sources.stored_classes import labels_of, number_classes

_SCHEME = "parquet"
_BUDGET = 512 * 2**20  # bytes of row groups that a process keeps
# Of these as many as fit into half are in use at a time, so that the next ones have room: the order
# of records depends on it.
_IN_USE = _BUDGET // 2
_THREADS = 8  # that open files
_SHOWN = 3  # files that a message names


class ParquetSource:
    """Encoded pictures in Parquet files, which are read by row groups.

    Attributes:
      groups_at_once: see `bsq_jax.data.records.Grouped`.
    """

    videos = False

    def __init__(
        self,
        name: str,
        files: Sequence[ParquetFile],
        *,
        labels: np.ndarray,
        classes: Sequence[str],
    ):
        """Takes the files, whose rows are the records; a file that cannot be read counts as one.

        Args:
          name: how the source calls itself.
          files: in order.
          labels: number of the class of each record, int32 ``[record]``.
          classes: their names.
        """
        self.name = name
        self.classes = tuple(classes)
        self._files = tuple(files)
        self._names = names_of([file.path for file in files])
        self._labels = labels
        rows = [np.ones(1, np.int64) if file.problem else file.rows for file in files]
        counts = [len(each) for each in rows]
        self._file = np.repeat(np.arange(len(files)), counts)  # [group]
        self._group = np.concatenate([np.arange(count) for count in counts])  # in its file
        self._starts = np.cumsum(np.concatenate([[0], *rows]))  # [group + 1]
        self._positions = np.arange(self._starts[-1])
        self._cache = RowGroupCache(_BUDGET)
        self.largest = max((int(file.nbytes.max(initial=0)) for file in files), default=0)
        self.groups_at_once = max(1, _IN_USE // max(1, self.largest))

    def only(self, chosen: np.ndarray) -> None:
        """Keeps the records for which ``chosen``, bool ``[record]``, is true."""
        self._positions = np.flatnonzero(chosen)

    def __len__(self) -> int:
        return len(self._positions)

    def label(self, index: int) -> int:
        """See `bsq_jax.data.records.Labelled`."""
        return int(self._labels[self._positions[index]]) if self.classes else NO_LABEL

    def groups(self) -> np.ndarray:
        """See `bsq_jax.data.records.Grouped`."""
        return np.searchsorted(self._starts, self._positions, side="right") - 1

    def fingerprint(self) -> str:
        """See `bsq_jax.data.records.fingerprint_of`."""
        digest = hashlib.sha256(repr((self._names, self.groups_at_once)).encode())
        for array in (self._file, self._group, self._starts, self._positions, self._labels):
            digest.update(array.astype("<i8").tobytes())
        return digest.hexdigest()

    def id(self, index: int) -> str:
        """The name of the file and the row; see `bsq_jax.data.records.Identified`."""
        position, group = self._place(index)
        file = self._file[group]
        if self._files[file].problem:
            return self._names[file]
        first = self._starts[np.searchsorted(self._file, file)]
        return f"{self._names[file]}#{position - int(first)}"

    def __getitem__(self, index: int) -> Record:
        position, group = self._place(index)
        file = self._files[self._file[group]]
        if file.problem:
            raise BrokenRecord(f"the file is {file.problem}")
        read = functools.partial(file.read, int(self._group[group]))
        content = self._cache.get(group, read)[position - int(self._starts[group])].as_py()
        if content is None:
            raise BrokenRecord("the row has no picture")
        return Record(self.id(index), content)

    def _place(self, index: int) -> tuple[int, int]:
        """Number of the row among those of all files, and of its row group."""
        position = int(self._positions[index])
        return position, int(np.searchsorted(self._starts, position, side="right")) - 1


def open_parquet(place: str, split: str, divide: bool) -> Source:
    """Pictures of Parquet files; see `bsq_jax.data.sources.make_source`."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UserError(f"{_SCHEME}:{place} needs 'pip install pyarrow' ({error})") from error

    pattern = pattern_of(_SCHEME, place, split)
    name = f"{_SCHEME}:{pattern.text}"
    files = _opened(pattern.text)
    _report(name, files)
    train = files if pattern.train == pattern.text else _opened(pattern.train)
    names = next((file.classes for file in train if file.classes), ())
    classes, numbers = number_classes((v for file in train for v in file.values), names)
    labels = [
        np.full(1, NO_LABEL, np.int32)
        if file.problem
        else labels_of(file.codes, file.values, numbers)
        for file in files
    ]
    source = ParquetSource(name, files, labels=np.concatenate(labels), classes=classes)
    if source.largest > _IN_USE:
        say_once(
            f"{name}: a row group has up to {source.largest / 2**30:.1f} GiB of pictures, and is "
            "read and kept whole: write the files with row groups of 100 rows to save memory"
        )
    total = len(source)
    if pattern.alone and divide:
        source.only((np.arange(total) % round(1 / VAL_FRACTION) == 0) == (split == "val"))
    if not len(source):
        raise UserError(f"{name} has no records for {split} ({total} in all)")
    return source


def _opened(pattern: str) -> list[ParquetFile]:
    """The files that a pattern names."""
    paths = matching_files(_SCHEME, pattern)
    with (
        futures.ThreadPoolExecutor(_THREADS) as pool,
        labelled(f"opening {_SCHEME}:{pattern}"),
        progress(len(paths), "files") as advance,
    ):
        return list(advance(pool.map(open_parquet_file, paths), lambda _: 1))


def _report(name: str, files: Sequence[ParquetFile]) -> None:
    """Says once which files cannot be read.

    Raises:
      UserError: none can.
    """
    broken = [f"{file.path.name} is {file.problem}" for file in files if file.problem]
    if len(broken) == len(files):
        raise UserError(f"{name} holds no pictures: {broken[0]}; get the files again")
    if broken:
        shown = ", ".join(broken[:_SHOWN]) + (", ..." if len(broken) > _SHOWN else "")
        say_once(f"{name}: {len(broken)} of {len(files)} files cannot be read: {shown}")
