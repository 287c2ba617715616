"""Batches of pixels with Grain: endless and resumable for training, exact-once for evaluation.

Position is a pure function of the step. Batch s of a run always holds the same crops of the same
records, whatever the number of hosts and threads and whether the run was stopped in between: the
order is position -> record (a permutation for each epoch) -> augmentation (a random stream for
each position) -> batch, and only then does a host take its share of the batches. Resuming is asking
for ``start_step``.
"""

import dataclasses
import functools
from collections.abc import Iterator
from concurrent import futures
from typing import Any, Self

import grain
import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.data import transforms
from bsq_jax.data.reader import ImageCache, Reader
from bsq_jax.data.sources import Source, make_source

EVAL_CROPS = ("center", "tiles")

Batch = dict[str, np.ndarray]
_Example = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What to read and how; lengths in pixels.

    Attributes:
      source: Spec of the pictures, see :func:`bsq_jax.data.sources.make_source`.
      val_source: Spec for validation; '' takes the val split of ``source``.
      image_size: Side of the square crop, or (height, width).
      resize: Short side of a picture before it is cropped in training; 0 keeps the file's size.
      scale: (lowest, highest) factor between the window cut out and the crop, log-uniform.
      flip: Whether half of the training crops are mirrored left and right.
      permute_channels: Share of training crops whose colour channels are put in a random order;
        makes more colours out of few pictures.
      eval_resize: Short side of a picture before it is cropped in evaluation.
      eval_crop: 'center' cuts one crop a picture; 'tiles' cuts every non-overlapping one.
      filter: Resize filter in training, a key of :data:`bsq_jax.data.transforms.FILTERS`;
        'bilinear' resizes in half the time that 'lanczos' takes.
      eval_filter: Resize filter in evaluation; published figures are mostly with 'lanczos'.
      threads: Reading threads; 0 reads in the caller's.
      prefetch: Batches held ready.
      cache_mb: Memory for resized pictures, in MiB; 0 decodes anew each time.
      max_broken: Largest fraction of records that may be unreadable, rounded up to whole records.
      seed: Seed of the order and the augmentation.
    """

    source: str = "photos"
    val_source: str = ""
    image_size: int | tuple[int, int] = 64
    resize: int = 160
    scale: tuple[float, float] = (1.0, 1.0)
    flip: bool = True
    permute_channels: float = 0.0
    eval_resize: int = 160
    eval_crop: str = "center"
    filter: str = "lanczos"
    eval_filter: str = "lanczos"
    threads: int = 2
    prefetch: int = 4
    cache_mb: int = 256
    max_broken: float = 0.01
    frames: int = 1
    stride: int = 1
    min_frames: int = 0
    image_share: float = 0.0
    image_source: str = ""
    eval_clips: int = 1
    seed: int = 0

    def __post_init__(self):
        """Checks every field; raises ``UserError`` with the field's name."""
        crop = self.crop
        if len(crop) != 2 or min(crop) < 1:
            raise UserError(f"image_size must be positive, got {self.image_size}")
        if self.resize and self.resize < min(crop):
            raise UserError(f"resize={self.resize} is below image_size: use {min(crop)} or more")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise UserError(f"scale must be (lowest, highest), both positive, got {self.scale}")
        if self.eval_resize < max(crop):
            raise UserError(
                f"eval_resize={self.eval_resize} is below image_size: use {max(crop)} or more"
            )
        if self.eval_crop not in EVAL_CROPS:
            raise UserError(f"eval_crop={self.eval_crop!r} is not one of {', '.join(EVAL_CROPS)}")
        for name in ("filter", "eval_filter"):
            if getattr(self, name) not in transforms.FILTERS:
                known = ", ".join(transforms.FILTERS)
                raise UserError(f"{name}={getattr(self, name)!r} is not one of {known}")
        for name in ("threads", "prefetch", "cache_mb"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("max_broken", "permute_channels"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is a fraction from 0 to 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed must be from 0 to 2**32 - 1, got {self.seed}")

    @property
    def crop(self) -> tuple[int, int]:
        """(height, width) of every crop."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])


class Batches(Iterator[Batch]):
    """An iterator of batches that can say what it has read, and be closed.

    ``len()`` is the number of batches from the very first one, whatever has been read already.
    """

    def __init__(
        self, dataset: grain.MapDataset, config: DataConfig, reader: Reader, *, start: int
    ):
        """Starts reading ``dataset``, whose elements are batches, at batch ``start``."""
        options = grain.ReadOptions(
            num_threads=config.threads,
            prefetch_buffer_size=config.prefetch if config.threads else 0,
        )
        self._length = len(dataset)
        self._reader = reader
        self._examples = 0
        self._iterator: Any = iter(dataset.to_iter_dataset(options))
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
        ids = self._reader.broken_ids()
        return {"examples": self._examples, "broken": len(ids), "broken_ids": ids}

    def close(self) -> None:
        """Stops the reading threads; the iterator cannot be used afterwards."""
        self._iterator.close()


class _EpochOrder:
    """Which record comes at a position of the endless stream: a new permutation each epoch.

    Grain's own shuffle finds a permutation of n by walking through 65,536 places, which takes
    milliseconds an example when n is a handful of photographs. A table is quicker for any n that
    fits into memory.
    """

    def __init__(self, count: int, seed: int):
        self._count = count
        # Reading threads work in several epochs at a time when an epoch is shorter than a batch.
        kept = max(2, min(64, 2**20 // count))
        self._table = functools.lru_cache(maxsize=kept)(
            lambda epoch: np.random.default_rng([seed, epoch]).permutation(count)
        )

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self._count)
        return int(self._table(epoch)[place])


def open_source(config: DataConfig, split: str) -> Source:
    """The records of ``split``, 'train' or 'val'.

    With a ``val_source`` of its own for validation, neither source is divided: see ``divide`` of
    :func:`bsq_jax.data.sources.make_source`.

    Raises:
      UserError: The spec is wrong or there are no records.
    """
    val_source = config.val_source or config.source
    spec = val_source if split == "val" else config.source
    source = make_source(spec, split, divide=val_source == config.source)
    if not len(source):
        raise UserError(f"{source.name} is empty: choose another source for {split}")
    return source


def num_examples(config: DataConfig, split: str) -> int:
    """How many examples an epoch has: records in train; crops in val, tiles counted one by one."""
    source = open_source(config, split)
    if split == "train":
        return len(source)
    return len(_eval_crops(config, source)[0])


def train_batches(
    config: DataConfig,
    *,
    global_batch: int,
    shard_index: int,
    shard_count: int,
    start_step: int = 0,
) -> Batches:
    """Endless training batches of this host.

    Each epoch visits every record once, in an order of its own. A broken record is replaced by the
    next readable one.

    Args:
      config: What to read.
      global_batch: Examples in a step over all hosts, a multiple of ``shard_count``.
      shard_index: Which host this is; host h gets rows [h * local, (h + 1) * local) of each global
        batch, where local = global_batch / shard_count.
      shard_count: Number of hosts.
      start_step: Step whose batch comes first.

    Returns:
      An iterator of ``{'pixels': uint8 [local batch, time 1, height, width, channel 3], 'index':
      int64 [local batch]}``, index being the position of the record in its source.

    Raises:
      UserError: From here if a setting or the source is wrong; from ``next`` if more than
        ``max_broken`` of the records cannot be read.
    """
    local = _local_batch(global_batch, shard_index, shard_count)
    source = open_source(config, "train")
    reader = Reader(
        source,
        size=config.resize,
        filter=config.filter,
        draft=True,
        max_broken=config.max_broken,
        cache=ImageCache(config.cache_mb),
        shard_count=shard_count,
    )

    order = _EpochOrder(len(source), config.seed)

    def load(position: int, rng: np.random.Generator) -> _Example:
        image, found = reader.read_or_next(order[position])
        crop = transforms.random_crop(image, config.crop, rng, config.scale, config.filter)
        if config.flip and rng.random() < 0.5:
            crop = transforms.flip(crop)
        if config.permute_channels and rng.random() < config.permute_channels:
            crop = transforms.permute_channels(crop, rng)
        return {"pixels": crop[None], "index": np.int64(found)}

    dataset = (
        grain.MapDataset.range(2**62)  # endless; Grain rounds lengths as floats, so not to the brim
        .seed(config.seed)
        .random_map(load)
        .batch(local)
        .slice(slice(shard_index, None, shard_count))
    )
    return Batches(dataset, config, reader, start=start_step)


@dataclasses.dataclass(frozen=True)
class EvalExamples:
    """The validation examples: opened once, evaluated as often as one likes.

    Attributes:
      source: The records.
      records: For each example the record it comes from, int64 ``[examples]``.
      tiles: For each example which tile of it, int64 ``[examples]``.
      cache: Resized pictures kept from one evaluation to the next.
    """

    source: Source
    records: np.ndarray
    tiles: np.ndarray
    cache: ImageCache


def eval_examples(config: DataConfig) -> EvalExamples:
    """Opens the validation split; with tiles it reads the size of every picture.

    Raises:
      UserError: The spec is wrong or there are no records.
    """
    source = open_source(config, "val")
    return EvalExamples(source, *_eval_crops(config, source), ImageCache(config.cache_mb))


def eval_batches(
    config: DataConfig,
    *,
    global_batch: int,
    shard_index: int,
    shard_count: int,
    examples: EvalExamples | None = None,
) -> Batches:
    """All validation examples once, in order, in equally many batches on every host.

    Args:
      config: What to read.
      global_batch: As in :func:`train_batches`.
      shard_index: As in :func:`train_batches`.
      shard_count: As in :func:`train_batches`.
      examples: What :func:`eval_examples` gave for the same config; None opens them anew.

    Returns:
      A finite iterator of ``{'pixels': uint8 [local batch, time 1, height, width, channel 3],
      'mask': float32 [local batch], 'index': int64 [local batch]}``. The index counts examples; it
      is -1 where the last batch is padded. The mask is 0 for padding and broken records, whose
      pixels are 0, and 1 elsewhere.

    Raises:
      UserError: As :func:`train_batches`.
    """
    local = _local_batch(global_batch, shard_index, shard_count)
    examples = eval_examples(config) if examples is None else examples
    records, tiles = examples.records, examples.tiles
    reader = Reader(
        examples.source,
        size=config.eval_resize,
        filter=config.eval_filter,
        draft=False,  # a reduced decode would change what is measured
        max_broken=config.max_broken,
        cache=examples.cache,
        shard_count=shard_count,
    )

    def load(example: int) -> _Example:
        padding = example >= len(records)
        image = None if padding else reader.read(int(records[example]))
        if image is None:
            crop = np.zeros((*config.crop, 3), np.uint8)
        elif config.eval_crop == "tiles":
            crop = transforms.tile(image, int(tiles[example]), config.crop)
        else:
            crop = transforms.center_crop(image, config.crop)
        return {
            "pixels": crop[None],
            "mask": np.float32(image is not None),
            "index": np.int64(-1 if padding else example),
        }

    padded = -(-len(records) // global_batch) * global_batch
    dataset = (
        grain.MapDataset.range(padded)
        .map(load)
        .batch(local)
        .slice(slice(shard_index, None, shard_count))
    )
    return Batches(dataset, config, reader, start=0)


def _local_batch(global_batch: int, shard_index: int, shard_count: int) -> int:
    if not 0 <= shard_index < shard_count:
        raise ValueError(f"shard_index={shard_index} is not one of {shard_count} shards")
    if global_batch < 1 or global_batch % shard_count:
        raise UserError(
            f"batch size {global_batch} is not a positive multiple of the {shard_count} hosts"
        )
    return global_batch // shard_count


def _eval_crops(config: DataConfig, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Which record each example comes from, and which tile of it; int64 [examples] each."""
    total = len(source)
    if config.eval_crop == "center":
        return np.arange(total), np.zeros(total, np.int64)

    def count(index: int) -> int:
        try:
            height, width = transforms.image_size(source[index].image)
        except (transforms.BrokenRecord, OSError):
            return 1  # one masked example, so that the damage is met, counted and named
        resized = transforms.resized_shape(height, width, config.eval_resize)
        return transforms.tile_count(*resized, config.crop)

    with futures.ThreadPoolExecutor(max(1, config.threads)) as pool:
        counts = np.array(list(pool.map(count, range(total))), np.int64)
    records = np.repeat(np.arange(total), counts)
    firsts = np.repeat(np.cumsum(counts) - counts, counts)
    return records, np.arange(len(records)) - firsts
