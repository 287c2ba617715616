"""Reading one record at a time, for many threads: the cache, and what to do with broken files."""

import math
import threading

import numpy as np
from absl import logging

from bsq_jax.core.errors import UserError
from bsq_jax.data import transforms
from bsq_jax.data.sources import Source


class ImageCache:
    """Keeps pictures in memory up to a budget: first come, first kept, nothing is evicted.

    Without eviction an epoch larger than the budget still finds the same part of it every time,
    where a least-recently-used cache would find nothing. Safe to use from several threads.
    """

    def __init__(self, megabytes: int):
        """Takes the budget in MiB."""
        self._free = megabytes * 2**20
        self._images: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def get(self, key: int) -> np.ndarray | None:
        """The picture kept under ``key``, or None."""
        return self._images.get(key)

    def put(self, key: int, image: np.ndarray) -> None:
        """Keeps ``image`` if it is new and the budget allows."""
        with self._lock:
            if key not in self._images and image.nbytes <= self._free:
                self._free -= image.nbytes
                self._images[key] = image


class Reader:
    """Reads and resizes records, remembers what is broken, stops the run if that is too much."""

    def __init__(
        self,
        source: Source,
        *,
        size: int,
        filter: str,  # noqa: A002
        draft: bool,
        max_broken: float,
        cache: ImageCache,
        shard_count: int = 1,
    ):
        """Takes what :func:`bsq_jax.data.transforms.load_resized` needs, and the limits.

        Args:
          source: The records.
          size: Short side of the pictures, or 0 for the size they have.
          filter: Name of the resize filter.
          draft: Whether JPEGs may be decoded at reduced size.
          max_broken: Fraction of records that may be broken, rounded up to whole records.
          cache: Where resized pictures are kept, under their index.
          shard_count: Number of hosts that read the source. Each judges by the records it has met
            itself: at first its share, in the end all of them, as each epoch is divided anew.
        """
        self.source = source
        self._size = size
        self._filter = filter
        self._draft = draft
        self._max_broken = max_broken
        self._share = -(-len(source) // shard_count)
        self._met = bytearray(len(source))  # 1 where a record was asked for
        self._met_count = 0
        self._cache = cache
        self._broken: dict[int, str] = {}
        self._lock = threading.Lock()

    def broken_ids(self) -> list[str]:
        """Ids of the records found broken so far, sorted."""
        with self._lock:
            return sorted(self._broken.values())

    def read(self, index: int) -> np.ndarray | None:
        """The resized picture of a record, or None if it is broken.

        Raises:
          UserError: It is broken, and so are too many others.
        """
        with self._lock:
            self._met_count += not self._met[index]
            self._met[index] = 1
        image = self._cache.get(index)
        if image is not None:
            return image
        if index not in self._broken:
            record_id = f"{self.source.name}#{index}"
            try:
                record = self.source[index]
                record_id = record.id
                image = transforms.load_resized(record, self._size, self._filter, draft=self._draft)
            except (transforms.BrokenRecord, OSError) as error:
                self._note_broken(index, record_id, str(error))
            else:
                self._cache.put(index, image)
                return image
        # Checked at known ones too: the thread that found the last may be reading ahead of others.
        of = max(self._met_count, self._share)
        if len(self._broken) > self._limit(of):
            raise UserError(
                f"{self.source.name}: {len(self._broken)} of {of} records are broken "
                f"({self._broken[index]} is one); repair them or raise max_broken"
            )
        return None

    def _limit(self, count: int) -> int:
        """How many of `count` records may be broken."""
        expected, highest = (self._max_broken * n for n in (count, len(self.source)))
        # A part is a sample: by chance it may hold three standard deviations more than the rest.
        return math.ceil(min(highest, expected + 3 * math.sqrt(expected)) - 1e-9)  # 0.1 * 30 > 3

    def read_or_next(self, index: int) -> tuple[np.ndarray, int]:
        """The picture at ``index``, or the first readable one after it, and where it was."""
        total = len(self.source)
        for offset in range(total):
            found = (index + offset) % total
            image = self.read(found)
            if image is not None:
                return image, found
        raise UserError(
            f"{self.source.name}: none of {total} records is a picture that can be read"
        )

    def _note_broken(self, index: int, record_id: str, reason: str) -> None:
        with self._lock:
            if index in self._broken:  # two threads may find out at the same time
                return
            self._broken[index] = record_id
        logging.warning("Skipping broken record %s: %s", record_id, reason)
