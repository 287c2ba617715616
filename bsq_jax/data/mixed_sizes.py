"""Training batches of several sizes: each step has crops of one of ``data.sizes``.

What a step has follows from its number: `bsq_jax.data.clip_lengths` gives the frames,
`bsq_jax.data.size_schedule` the size of the crops, the size that the records belong to, the number
of examples and how many of such records came before. The records of each size have an order of
their own for each of their epochs. Lengths and sizes are drawn independently of each other.

The number of examples depends on the size alone: a step of clips has as many tokens a frame as any
other, and a step of shorter clips fewer in all, as without sizes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import grain
import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.data import clip_lengths
from bsq_jax.data.batch_sizes import BatchSizes
from bsq_jax.data.batches import ENDLESS, Batch, EpochOrder
from bsq_jax.data.random_example import random_example
from bsq_jax.data.reader import Choose, Reader, training_reader
from bsq_jax.data.settings import DataConfig
from bsq_jax.data.size_buckets import Size, SizedSource, choices, covering_side, open_sized
from bsq_jax.data.size_schedule import SizedStep, SizeSchedule
from bsq_jax.data.sources import open_image_source, open_source
from bsq_jax.data.transforms import Picture
from bsq_jax.data.workers import Made

IMAGE_ORDER = 1  # third number of the seed for the order of ``image_source``
_ORDERS, _CROPS = 4, 5  # streams of random numbers, beside those of lengths and sizes


@dataclasses.dataclass(frozen=True)
class TrainSizes:
    """The training records by size: opened once for a run.

    Attributes:
      main: of ``source``.
      single: of ``image_source``; None where there is none.
    """

    main: SizedSource
    single: SizedSource | None = None

    @property
    def sources(self) -> list[SizedSource]:
        """Both, or one."""
        return [self.main, *([self.single] if self.single else [])]


def open_sizes(config: DataConfig) -> TrainSizes:
    """Reads the sizes of the training records; see `size_buckets.open_sized`.

    Raises:
      UserError: as `open_source`.
    """
    main = open_sized(open_source(config, "train"), config.sizes, config.threads)
    if not config.image_source:
        return TrainSizes(main)
    return TrainSizes(main, open_sized(open_image_source(config), config.sizes, config.threads))


def batch_shapes(config: DataConfig, sizes: TrainSizes) -> tuple[tuple[int, int, int], ...]:
    """(frames, height, width) of the batches that training will have: a program each."""
    found: set[tuple[int, int, int]] = set()
    for sized in sizes.sources:
        drawn = {n for own in sized.members() for n in choices(own, sized.sizes)}
        lengths = _lengths(config, sizes, sized)
        found |= {(frames, *sized.sizes[number]) for frames in lengths for number in drawn}
    return tuple(sorted(found))


def _lengths(config: DataConfig, sizes: TrainSizes, sized: SizedSource) -> tuple[int, ...]:
    """The numbers of frames that batches of one of the sources have."""
    if sized is sizes.single or not sized.source.videos:
        return (1,)
    if sizes.single is None:
        return clip_lengths.buckets(config)
    if config.image_share == 1:
        return ()
    return clip_lengths.buckets(dataclasses.replace(config, image_share=0.0, image_source=""))


class _Stream:
    """The examples of one source: which records a step has, and each of them resized."""

    def __init__(
        self,
        config: DataConfig,
        sized: SizedSource,
        reader: Reader,
        schedule: SizeSchedule,
        number: int,
    ):
        self.sized, self.reader, self.schedule = sized, reader, schedule
        self._config, self._number = config, number
        self._members: Mapping[int, np.ndarray] = sized.members()
        self._orders = {
            own: EpochOrder.of(sized.source, config.seed, _ORDERS, number, own, records=records)
            for own, records in self._members.items()
        }

    def rng(self, belongs: int, position: int) -> np.random.Generator:
        """The random numbers of an example, by its position among the records of a size."""
        return np.random.default_rng([self._config.seed, _CROPS, self._number, belongs, position])

    def read(self, step: SizedStep, position: int, choose: Choose) -> tuple[list[Picture], int]:
        """The frames of a record, or of the next readable one of its size, and which it is."""
        records, size = self._members[step.belongs], self.sized.sizes[step.size]
        first = self._orders[step.belongs][position]
        for offset in range(len(records)):
            record = int(records[(first + offset) % len(records)])
            clip = self.reader.read(record, choose, self._side(record, size))
            if clip is not None:
                return clip, record
        source = self.sized.source
        kind = "video" if source.videos else "picture"
        height, width = self.sized.sizes[step.belongs]
        raise UserError(
            f"{source.name}: none of the {len(records)} records that belong to {height}x{width} of "
            f"data.sizes is a {kind} that can be read"
        )

    def _side(self, record: int, size: Size) -> int:
        shape = self.sized.shapes[record]
        factor = self._config.cover
        return covering_side((int(shape[0]), int(shape[1])), size, factor) if factor else 0


def make(
    config: DataConfig,
    sizes: TrainSizes,
    history: BatchSizes,
    shard_index: int,
    shard_count: int,
    parts: int,
) -> Made:
    """Endless batches by their steps; see `train_pipeline.train_batches`.

    Args:
      config: what to read.
      sizes: what `open_sizes` gave for it.
      history: the batch sizes of all steps.
      shard_index: as there.
      shard_count: as there.
      parts: among how many readers the share of a host is divided.
    """
    lengths = clip_lengths.Schedule(config, videos=sizes.main.source.videos)

    def before(step: int) -> int:
        return step - lengths.images(step)

    # Each source has epochs of its own.
    places: list[Callable[[int], int]] = [before, lengths.images]
    if sizes.single is None:
        places = [lambda step: step]
    streams = []
    for number, (sized, place) in enumerate(zip(sizes.sources, places, strict=True)):
        records = {own: len(members) for own, members in sized.members().items()}
        seed = config.seed, number
        schedule = SizeSchedule(records, sized.sizes, config.crop, history, *seed, place=place)
        reader = training_reader(config, sized.source, shard_count * parts)
        streams.append(_Stream(config, sized, reader, schedule, number))

    def load(step: int) -> Batch:
        plan = lengths.step(step)
        own = not (plan.images and sizes.single)
        chosen = streams[0 if own else IMAGE_ORDER]
        sized = chosen.schedule.step(plan.place if sizes.single else step)
        local = sized.examples // shard_count
        rows = []
        for row in range(shard_index * local, (shard_index + 1) * local):
            position = sized.first + row
            rows.append(
                random_example(
                    *(config, chosen.sized.source, plan, chosen.rng(sized.belongs, position)),
                    functools.partial(chosen.read, sized, position),
                    chosen.sized.sizes[sized.size],
                    own=own,
                )
            )
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    dataset = grain.MapDataset.range(ENDLESS).map(load)
    return Made(dataset, [each.reader for each in streams])
