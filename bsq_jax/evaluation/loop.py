"""The evaluation loop: every example of a validation split once, the same values on every host."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from bsq_jax.core.clips import real_frames
from bsq_jax.core.errors import UserError
from bsq_jax.core.progress import progress
from bsq_jax.core.sharding import (
    batch_shards,
    gather_strings,
    host_shard,
    jit_on,
    replicated,
    to_global,
)
from bsq_jax.data.batches import Batches

_BESIDE = ("frames", "mask", "index")


class Validation(NamedTuple):
    """The validation examples.

    Attributes:
      batches: the batches of a host, for the keywords ``global_batch``, ``shard_index`` and
        ``shard_count``.
      frames: of the clips in a batch; 1 for pictures.
      examples: how many there are.
    """

    batches: Callable[..., Batches]
    frames: int
    examples: int


@dataclasses.dataclass(frozen=True)
class HostBatch:
    """What was computed of a batch, as NumPy arrays; the same on every host.

    Attributes:
      values: what the computation returned.
      counted: bool ``[batch]``, False for padding and unreadable examples.
      frames: ``[batch]``, real frames of each clip.
      real: bool ``[batch, time]``, the real frames of examples that count.
      index: ``[batch]``, index of each example in the split; -1 for padding.
    """

    values: Mapping[str, Any]
    counted: np.ndarray
    frames: np.ndarray
    real: np.ndarray
    index: np.ndarray


class Accumulator(Protocol):
    """Sums up one thing over a split."""

    def update(self, batch: HostBatch) -> None:
        """Adds a batch."""
        ...

    def result(self) -> Mapping[str, Any]:
        """Values by key, after the whole split."""
        ...


class EvaluationLoop:
    """Goes over a validation split.

    Args:
      validation: the examples.
      mesh: the run's mesh.
      batch_size: global; rounded up to a multiple of the number of shards.

    Attributes:
      batch_size: as rounded.
      frames: of the clips in a batch; 1 for pictures.
      examples: number of examples in the split.
      unreadable: names of the records that the last pass could not read.
      shorter: number of clips of the last pass that have fewer frames.
    """

    def __init__(self, validation: Validation, mesh: Mesh, batch_size: int) -> None:
        shards = batch_shards(mesh)
        self.batch_size = -(-batch_size // shards) * shards
        self.frames, self.examples = validation.frames, validation.examples
        self.unreadable, self.shorter = list[str](), 0
        self._batches, self._mesh = validation.batches, mesh
        self.shard = host_shard(mesh, self.batch_size)
        # Replicated: every host then holds the values of all examples.
        self.replicate = jit_on(mesh, lambda tree: tree, out_shardings=replicated(mesh))

    def __call__(
        self,
        compute: Callable[[Mapping[str, jax.Array]], Mapping[str, Any]],
        accumulators: Sequence[Accumulator],
    ) -> dict[str, Any]:
        """One pass over the split.

        Args:
          compute: of a batch on the mesh; gives a tree of replicated arrays.
          accumulators: take what it gave of each batch.

        Returns:
          The results of the accumulators, and ``count``, the number of examples.

        Raises:
          UserError: no example could be read.
        """
        batches = self._batches(
            global_batch=self.batch_size,
            shard_index=self.shard.index,
            shard_count=self.shard.count,
        )
        count = self.shorter = 0
        done = (self._on_host(to_global(local, self._mesh), compute) for local in batches)
        with progress(self.examples, "examples", quiet=jax.process_index() > 0) as advance:
            for batch in advance(done, lambda batch: int(np.sum(batch.index >= 0))):
                count += int(batch.counted.sum())
                self.shorter += int(np.sum(batch.counted & (batch.frames < self.frames)))
                for accumulator in accumulators:
                    accumulator.update(batch)
        self.unreadable = gather_strings(batches.stats()["broken_ids"])
        batches.close()
        if not count:
            raise UserError("no example was counted: check that the split is not empty")
        result: dict[str, Any] = {}
        for accumulator in accumulators:
            result |= accumulator.result()
        return result | {"count": count}

    def _on_host(
        self,
        batch: Mapping[str, jax.Array],
        compute: Callable[[Mapping[str, jax.Array]], Mapping[str, Any]],
    ) -> HostBatch:
        beside = self.replicate({name: batch[name] for name in _BESIDE})
        values, beside = jax.device_get((compute(batch), beside))
        counted = beside["mask"] > 0
        real = real_frames(beside["frames"], self.frames) & counted[:, None]
        return HostBatch(values, counted, beside["frames"], real, beside["index"])
