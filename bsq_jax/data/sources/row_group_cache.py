"""Row groups of Parquet files that are kept in memory, up to a number of bytes."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from typing import Any

from bsq_jax.data.records import BrokenRecord


class _Entry:
    """A row group: not read yet, read, or one that cannot be read."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.column: Any = None
        self.problem = ""
        self.nbytes = 0


class RowGroupCache:
    """Keeps the row groups that were used last; several threads may use it.

    At least one is kept, whatever its size. Threads that want the same one read it once. A copy in
    another process starts empty.
    """

    def __init__(self, budget: int):
        """Takes the bytes that all kept row groups may have."""
        self._budget = budget
        self._entries: collections.OrderedDict[int, _Entry] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._budget,)

    @property
    def nbytes(self) -> int:
        """Bytes of the row groups that are kept."""
        with self._lock:
            return sum(entry.nbytes for entry in self._entries.values())

    def get(self, number: int, read: Callable[[], Any]) -> Any:
        """The row group of a number, which ``read`` gives if it is not kept.

        Args:
          number: of the row group.
          read: gives something with ``nbytes``.

        Raises:
          BrokenRecord: ``read`` raised it, now or before.
          OSError: the same; it is tried again the next time.
        """
        with self._lock:
            entry = self._entries.setdefault(number, _Entry())
            self._entries.move_to_end(number)
        with entry.lock:
            if entry.problem:
                raise BrokenRecord(entry.problem)
            if entry.column is None:
                try:
                    entry.column = read()
                except BrokenRecord as error:
                    entry.problem = str(error)
                    raise
                self._take_in(number, entry)
            return entry.column

    def _take_in(self, number: int, entry: _Entry) -> None:
        """Counts a row group that was read, and drops those that were used longest ago."""
        with self._lock:
            entry.nbytes = entry.column.nbytes
            total = sum(kept.nbytes for kept in self._entries.values())
            for other in [key for key in self._entries if key != number]:
                if total <= self._budget:
                    break
                if self._entries[other].nbytes:
                    total -= self._entries.pop(other).nbytes
