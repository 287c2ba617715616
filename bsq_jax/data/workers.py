"""Batches made in processes, for hosts where one process cannot keep enough threads at work.

Decoding and resizing go on in threads at once, but the Python around them does not. Grain starts
the processes, of which each makes every so-many-th batch and hands it over in shared memory. A
batch is a function of its number, so the stream is the same for any number of processes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import cloudpickle
import grain
import numpy as np
from absl import flags

from bsq_jax.core.errors import UserError
from bsq_jax.data.reader import Reader
from bsq_jax.data.settings import DataConfig

_BROKEN = "broken"  # entry of a batch on its way: the ids of the unreadable records, as JSON


class Made(NamedTuple):
    """What gives batches.

    Attributes:
      dataset: whose elements are batches by their numbers.
      readers: which know the unreadable records.
    """

    dataset: grain.MapDataset
    readers: Sequence[Reader]


# Opens sources and readers; given among how many readers a host's share is divided.
Make = Callable[[int], Made]


class _Load:
    """Makes batches in a worker, which opens the sources for itself when it makes the first."""

    def __init__(self, make: Make, workers: int):
        self._make, self._workers = make, workers
        self._made: Made | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._make, self._workers)

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        with self._lock:
            if self._made is None:
                self._made = self._make(self._workers)
        batch = dict(self._made.dataset[number])
        ids = [name for reader in self._made.readers for name in reader.broken_ids()]
        return batch | {_BROKEN: np.frombuffer(json.dumps(ids).encode(), np.uint8)}


class WorkerBatches(Iterator[dict[str, np.ndarray]]):
    """Batches from processes, in order.

    Attributes:
      broken: ids of the records found unreadable so far, by the worker that did.
    """

    def __init__(self, make: Make, config: DataConfig, *, start: int, stop: int):
        """Starts ``config.workers`` processes.

        Args:
          make: opens the sources and readers; is pickled.
          config: how many processes, how many threads in all, and batches held ready.
          start: number of the first batch.
          stop: number of the batch after the last.

        Raises:
          UserError: a source cannot be handed to another process.
        """
        workers = config.workers
        self.broken: dict[int, list[str]] = {}
        self._number = 0
        self._workers = workers
        try:
            cloudpickle.dumps(make)
        except Exception as error:  # whatever the classes of a source raise
            raise UserError(
                f"the source cannot be handed to other processes ({error}): set data.workers=0"
            ) from error
        if not flags.FLAGS.is_parsed():  # Grain hands its own flags on
            flags.FLAGS.mark_as_parsed()
        ready = -(-config.prefetch // workers) or 1
        threads = -(-config.threads // workers)
        options = grain.ReadOptions(
            num_threads=threads, prefetch_buffer_size=ready if threads else 0
        )
        dataset = grain.MapDataset.range(start, stop).map(_Load(make, workers))
        self._iterator: Any = iter(
            dataset.to_iter_dataset(options).mp_prefetch(
                grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ready),
                worker_init_fn=_prepare,
            )
        )

    def __next__(self) -> dict[str, np.ndarray]:
        try:
            batch = dict(next(self._iterator))
        except RuntimeError as error:
            if "Worker process was terminated" not in str(error):
                raise
            raise UserError(
                f"a process that reads data has ended ({str(error).partition('.')[0]}): it was "
                "killed, or the host has too little memory for data.workers="
                f"{self._workers}; a script of your own needs if __name__ == '__main__'"
            ) from None
        ids = json.loads(batch.pop(_BROKEN).tobytes())
        self.broken[self._number % self._workers] = ids
        self._number += 1
        return batch

    def close(self) -> None:
        """Stops the processes."""
        self._iterator.close()
        self._iterator = iter(())  # Grain's complains if it goes after the modules it needs


def _prepare(index: int, count: int) -> None:
    """Runs in each worker first: signals are for the main process, whose end is that of all."""
    del index, count
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    main = multiprocessing.parent_process()
    assert main is not None

    def follow() -> None:
        main.join()
        os._exit(0)

    threading.Thread(target=follow, daemon=True).start()
