"""Batches for evaluation: every validation example once, in order, read by threads with Grain."""

import dataclasses
import functools
import math
from concurrent import futures

import grain
import numpy as np

from bsq_jax.core.once import say_once
from bsq_jax.data import clip_lengths, transforms
from bsq_jax.data.batches import Batches, Example, class_entry, clip_example, local_batch
from bsq_jax.data.decoding.record_frames import size_of
from bsq_jax.data.reader import FrameCache, Reader
from bsq_jax.data.records import NO_LABEL, BrokenRecord, Source, classes_of
from bsq_jax.data.retry import with_retries
from bsq_jax.data.settings import DataConfig
from bsq_jax.data.sources import open_source, same_place


@dataclasses.dataclass(frozen=True)
class EvalExamples:
    """The validation examples: opened once and reused by every evaluation of a run.

    Attributes:
      source: the records.
      frames: frames of the batches: those of the settings for videos, 1 for pictures.
      records: for each example the record it comes from, int64 ``[examples]``.
      clips: for each example which clip of the record, int64 ``[examples]``.
      tiles: for each example which tile of the clip, int64 ``[examples]``.
      cache: resized frames kept from one evaluation to the next.
      sizes: with tiles, (height, width) of each record after it is resized, by which its tiles were
        counted, int64 ``[records, 2]``; 0 where it could not be read. None without tiles.
      classes: for each class of the records its number in the training source, or `NO_LABEL`,
        int64 ``[classes]``; None where both have the same classes, or labels are not asked for.
    """

    source: Source
    frames: int
    records: np.ndarray
    clips: np.ndarray
    tiles: np.ndarray
    cache: FrameCache
    sizes: np.ndarray | None = None
    classes: np.ndarray | None = None


def eval_examples(config: DataConfig) -> EvalExamples:
    """Opens the validation split; with tiles it reads the size of every picture and video.

    Raises:
      UserError: the spec is wrong or there are no records.
    """
    source = open_source(config, "val")
    tiles, sizes = np.ones(len(source), np.int64), None
    if config.eval_crop == "tiles":
        tiles, sizes = _count_tiles(config, source)
    # In the order record, clip, tile.
    clips = config.eval_clips if source.videos else 1
    counts = np.repeat(tiles, clips)  # of each clip
    records = np.repeat(np.arange(len(source)), clips * tiles)
    clip_numbers = np.repeat(np.tile(np.arange(clips), len(source)), counts)
    tile_numbers = np.arange(len(records)) - np.repeat(np.cumsum(counts) - counts, counts)
    frames = config.frames if source.videos else 1
    cache = FrameCache(config.cache_mb)
    classes = _training_classes(config, source) if config.labels else None
    return EvalExamples(source, frames, records, clip_numbers, tile_numbers, cache, sizes, classes)


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
      config: what to read.
      global_batch: as in `train_batches`.
      shard_index: as in `train_batches`.
      shard_count: as in `train_batches`.
      examples: what `eval_examples` gave for the same config; None opens them anew.

    Returns:
      A finite iterator of ``{'pixels': uint8 [local batch, time, height, width, channel 3],
      'frames': int32 [local batch], 'mask': float32 [local batch], 'index': int64 [local
      batch]}``. Time is ``frames`` of the examples; ``frames`` here is as in
      `train_batches`. The index counts examples; it is -1 where the last batch is padded. The
      mask is 0 for padding and broken records, whose pixels are 0, and 1 elsewhere. ``label`` is
      as in `train_batches`.

    Raises:
      UserError: as `train_batches`.
    """
    local = local_batch(global_batch, shard_index, shard_count)
    shown = eval_examples(config) if examples is None else examples
    total = len(shown.records)
    reader = Reader(
        shown.source,
        size=config.eval_resize,
        filter=config.eval_filter,
        draft=False,  # a reduced decode would change what is measured
        max_broken=config.max_broken,
        cache=shown.cache,
        shard_count=shard_count,
    )

    def read(example: int) -> np.ndarray | None:
        choose = functools.partial(
            clip_lengths.eval_frames,
            length=shown.frames,
            stride=config.stride,
            clip=int(shown.clips[example]),
            clips=config.eval_clips if shown.source.videos else 1,
        )
        record = int(shown.records[example])
        clip = reader.read(record, choose)
        if clip is None:
            return None
        if shown.sizes is not None and tuple(shown.sizes[record]) != clip[0].shape[:2]:
            counted = "x".join(map(str, shown.sizes[record])) if shown.sizes[record].any() else ""
            found = "x".join(map(str, clip[0].shape[:2]))
            reason = f"it is {found} pixels when it is read and was {counted} when it was counted"
            reader.reject(record, reason if counted else "its size could not be read")
            return None
        if config.eval_crop == "tiles":
            tile = int(shown.tiles[example])
            return np.stack([transforms.tile(image, tile, config.crop) for image in clip])
        return np.stack([transforms.center_crop(image, config.crop) for image in clip])

    def load(example: int) -> Example:
        crop = read(example) if example < total else None
        mask = np.float32(crop is not None)
        if crop is None:
            crop = np.zeros((1, *config.crop, 3), np.uint8)
        record = int(shown.records[example]) if example < total else None
        label = class_entry(config, shown.source, record, numbers=shown.classes)
        index = example if example < total else -1
        return clip_example(crop, shown.frames, index, label) | {"mask": mask}

    padded = -(-total // global_batch) * global_batch
    dataset = (
        grain.MapDataset.range(padded)
        .map(load)
        .batch(local)
        .slice(slice(shard_index, None, shard_count))
    )
    return Batches(dataset, config, [reader], start=0)


def num_examples(config: DataConfig, split: str) -> int:
    """How many examples an epoch has: records in train; in val crops of clips, counted singly."""
    if split == "train":
        return len(open_source(config, split))
    return len(eval_examples(config).records)


def _training_classes(config: DataConfig, source: Source) -> np.ndarray | None:
    """For each class of the validation records its number in training, or `NO_LABEL`.

    Each source numbers its own classes: only their names tell which are the same. None where the
    numbers are the same.
    """
    if not config.val_source or same_place(config.val_source) == same_place(config.source):
        return None  # splits of one source share their numbers
    mine = classes_of(source)
    known = {name: number for number, name in enumerate(classes_of(open_source(config, "train")))}
    if mine == tuple(known):
        return None
    missing = [name for name in mine if name not in known]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        say_once(
            f"{source.name}: {len(missing)} of its {len(mine)} classes are not among those of "
            f"{config.source}, their examples count as of no class: {shown}"
        )
    return np.array([known.get(name, NO_LABEL) for name in mine], np.int64)


def _count_tiles(config: DataConfig, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """How many crops are cut from each record, and the size of it; see `EvalExamples`.

    Returns:
      int64 ``[records]`` and int64 ``[records, 2]``.
    """
    cut: list[int] = []

    def count(index: int) -> tuple[int, int, int]:
        try:
            height, width = with_retries(lambda: size_of(source[index]))
        except (BrokenRecord, OSError):
            return 1, 0, 0  # a masked example, so that the damage is met, counted and named
        resized = transforms.resized_shape(height, width, config.eval_resize)
        long = transforms.is_long(height, width, config.eval_resize)
        if long:
            cut.append(index)
        return math.prod(transforms.tile_grid(resized, config.crop, long=long)), *resized

    with futures.ThreadPoolExecutor(max(1, config.threads)) as pool:
        found = np.array(list(pool.map(count, range(len(source)))), np.int64)
    if cut:
        say_once(
            f"{source.name}: {len(cut)} of {len(source)} records are more than "
            f"{transforms.LONGEST} times as long as wide and enlarged: tiles are cut from their "
            f"middle only ({source[min(cut)].id} is one)"
        )
    return found[:, 0], found[:, 1:]
