"""Batches of this host, as an iterator that can say what it has read; and the order of records."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Self

import grain
import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.data.reader import Reader
from bsq_jax.data.records import NO_LABEL, Grouped, Source, label_of
from bsq_jax.data.settings import DataConfig
from bsq_jax.data.workers import Make, WorkerBatches

# Length of an endless dataset: 2**62 because Grain converts lengths to float, which would round
# the largest integer, 2**63 - 1, up.
ENDLESS = 2**62

Batch = dict[str, np.ndarray]
Example = dict[str, Any]  # one row of a batch


class Batches(Iterator[Batch]):
    """An iterator of batches that can say what it has read, and be closed.

    ``len()`` is the number of batches from the very first one, whatever has been read already.
    """

    def __init__(
        self,
        dataset: grain.MapDataset,
        config: DataConfig,
        readers: Sequence[Reader],
        *,
        start: int,
        make: Make | None = None,
    ):
        """Starts reading ``dataset``, whose elements are batches, at batch ``start``.

        With ``make``, which makes the same once more, ``config.workers`` processes read.

        Raises:
          UserError: there are threads, and no batch that they may read ahead; or the processes
            cannot be given what they are to read.
        """
        if config.threads and not config.prefetch:  # Grain would then read in the caller's thread
            raise UserError(
                f"data.prefetch=0 leaves nothing to do for data.threads={config.threads}: set "
                "data.threads=0 to read without threads, or data.prefetch to 1 or more"
            )
        self._length = len(dataset)
        self._readers = readers
        self._examples = 0
        self._iterator: Any
        if make is not None and config.workers:
            self._iterator = WorkerBatches(make, config, start=start, stop=len(dataset))
            return
        options = grain.ReadOptions(
            num_threads=config.threads,
            prefetch_buffer_size=config.prefetch if config.threads else 0,
        )
        self._iterator = iter(dataset.to_iter_dataset(options))
        self._iterator.set_state({"next_index": start})

    def __iter__(self) -> Self:
        return self

    def __len__(self) -> int:
        return self._length

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        self._examples += len(batch["index"])
        return batch

    def stats(self) -> dict[str, Any]:
        """What this host has seen so far.

        Returns:
          ``examples``: examples handed out, padding included; ``broken``: number of distinct
          unreadable records; ``broken_ids``: their ids, sorted.
        """
        if isinstance(self._iterator, WorkerBatches):  # several may have met the same record
            ids = sorted({name for found in self._iterator.broken.values() for name in found})
        else:
            ids = sorted(name for reader in self._readers for name in reader.broken_ids())
        return {"examples": self._examples, "broken": len(ids), "broken_ids": ids}

    def close(self) -> None:
        """Stops the reading threads or processes; the iterator cannot be used afterwards."""
        self._iterator.close()


class EpochOrder:
    """Which record comes at a position of the endless stream: a new permutation each epoch.

    Where records are read in groups, the groups of an epoch come in a random order, some at a time,
    and the records of those in a random order: so each group is read once, see
    `bsq_jax.data.records.Grouped`.

    Grain's own shuffle finds a permutation of n by walking through 65,536 places, which takes
    milliseconds an example when n is a handful of photographs. A table is quicker for any n that
    fits into memory.
    """

    def __init__(
        self, count: int, *seed: int, groups: np.ndarray | None = None, groups_at_once: int = 1
    ):
        """Takes the number of records, and what their order depends on.

        Args:
          count: number of records.
          seed: numbers that tell this order from others.
          groups: number of the group of each record, int ``[record]``; None: there are none.
          groups_at_once: how many groups are in use at a time.
        """
        self._count = count
        self._seed = seed
        self._groups = np.zeros(count, np.int64)
        if groups is not None:
            self._groups = np.unique(groups, return_inverse=True)[1]
        self._at_once = groups_at_once
        # Reading threads work in several epochs at a time when an epoch is shorter than a batch.
        kept = max(2, min(64, 2**20 // count))
        self._table = functools.lru_cache(maxsize=kept)(self._permutation)

    @classmethod
    def of(cls, source: Source, *seed: int, records: np.ndarray | None = None) -> Self:
        """The order of the records of a source, or of some of them.

        Args:
          source: the records.
          seed: numbers that tell this order from others.
          records: numbers of those that are ordered, int ``[record]``; None: all. The order is of
            their places in this array.
        """
        count = len(source) if records is None else len(records)
        if not isinstance(source, Grouped):
            return cls(count, *seed)
        groups = source.groups() if records is None else source.groups()[records]
        return cls(count, *seed, groups=groups, groups_at_once=source.groups_at_once)

    def _permutation(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self._seed[0], epoch, *self._seed[1:]])
        order: np.ndarray = rng.permutation(self._count)
        groups = int(self._groups.max()) + 1
        if groups <= self._at_once:
            return order
        window = rng.permutation(groups)[self._groups] // self._at_once
        return order[np.argsort(window[order], kind="stable")]

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self._count)
        return int(self._table(epoch)[place])


def local_batch(global_batch: int, shard_index: int, shard_count: int) -> int:
    """This host's share of a batch.

    Raises:
      UserError: the batch does not divide.
    """
    if not 0 <= shard_index < shard_count:
        raise ValueError(f"shard_index={shard_index} is not one of {shard_count} shards")
    if global_batch < 1 or global_batch % shard_count:
        raise UserError(
            f"batch size {global_batch} is not a positive multiple of the {shard_count} hosts"
        )
    return global_batch // shard_count


def class_entry(
    config: DataConfig,
    source: Source,
    index: int | None,
    *,
    own: bool = True,
    numbers: np.ndarray | None = None,
) -> Example:
    """The class of a record, where it is asked for; that of a second source is not known.

    With ``numbers`` it is the entry there of the class in the record's own source.
    """
    if not config.labels:
        return {}
    number = label_of(source, index) if own and index is not None else NO_LABEL
    if numbers is not None and number != NO_LABEL:
        number = int(numbers[number])
    return {"label": np.int32(number)}


def clip_example(crop: np.ndarray, frames: int, index: int, label: Example) -> Example:
    """One row of a batch: the clip, filled up to `frames` with its last frame."""
    real = len(crop)
    if real < frames:
        filling = np.broadcast_to(crop[-1], (frames - real, *crop.shape[1:]))
        crop = np.concatenate([crop, filling])
    return {
        "pixels": crop,
        "frames": np.int32(real),
        "index": np.int64(index),
        **label,
    }
