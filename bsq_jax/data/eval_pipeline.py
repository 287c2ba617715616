"""Batches for evaluation: every validation example once, in order, read by threads with Grain."""

import dataclasses
import functools
import math

import grain
import numpy as np

from bsq_jax.core.once import say_once
from bsq_jax.data import clip_lengths, transforms
from bsq_jax.data.batches import Batch, Batches, Example, class_entry, clip_example, local_batch
from bsq_jax.data.reader import FrameCache, Reader
from bsq_jax.data.records import NO_LABEL, Source, classes_of
from bsq_jax.data.settings import DataConfig
from bsq_jax.data.size_buckets import Size, covering_side, open_sized, shapes_of
from bsq_jax.data.size_schedule import batch_of_size
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
      crops: (height, width) of the crops, those of ``config.sizes`` with ``eval_crop=bucket``.
      belongs: for each record the number of its crop among these, int64 ``[records]``.
      sides: for each record the short side that it is resized to, int64 ``[records]``.
      sizes: with tiles and buckets, (height, width) of each record after it is resized, by which
        its tiles were counted or its crop was chosen, int64 ``[records, 2]``; 0 where it could not
        be read. None without.
      classes: for each class of the records its number in the training source, or `NO_LABEL`,
        int64 ``[classes]``; None where both have the same classes, or labels are not asked for.
    """

    source: Source
    frames: int
    records: np.ndarray
    clips: np.ndarray
    tiles: np.ndarray
    cache: FrameCache
    crops: tuple[Size, ...]
    belongs: np.ndarray
    sides: np.ndarray
    sizes: np.ndarray | None = None
    classes: np.ndarray | None = None

    def used_crops(self) -> tuple[Size, ...]:
        """The sizes of crops that some example has, in the order of ``crops``."""
        return tuple(self.crops[number] for number in np.unique(self.belongs))


def eval_examples(config: DataConfig) -> EvalExamples:
    """Opens the validation split.

    With tiles and buckets it reads the size of every picture and video.

    Raises:
      UserError: the spec is wrong or there are no records.
    """
    source = open_source(config, "val")
    tiles, sizes = np.ones(len(source), np.int64), None
    crops: tuple[Size, ...] = (config.crop,)
    belongs = np.zeros(len(source), np.int64)
    sides = np.full(len(source), config.eval_resize)
    if config.eval_crop == "tiles":
        tiles, sizes = _count_tiles(config, source)
    if config.eval_crop == "bucket":
        sized = open_sized(source, config.sizes, config.threads, "validation")
        crops, belongs = sized.sizes, sized.belongs
        pairs = [(int(height), int(width)) for height, width in sized.shapes]
        sides = np.array(
            [covering_side(pair, crops[own]) for pair, own in zip(pairs, belongs, strict=True)]
        )
        resized = [
            transforms.resized_shape(*pair, side) if all(pair) else pair
            for pair, side in zip(pairs, sides, strict=True)
        ]
        sizes = np.array(resized, np.int64).reshape(-1, 2)
    # In the order record, clip, tile.
    clips = config.eval_clips if source.videos else 1
    counts = np.repeat(tiles, clips)  # of each clip
    records = np.repeat(np.arange(len(source)), clips * tiles)
    clip_numbers = np.repeat(np.tile(np.arange(clips), len(source)), counts)
    tile_numbers = np.arange(len(records)) - np.repeat(np.cumsum(counts) - counts, counts)
    frames = config.frames if source.videos else 1
    cache = FrameCache(config.cache_mb)
    classes = _training_classes(config, source) if config.labels else None
    return EvalExamples(
        *(source, frames, records, clip_numbers, tile_numbers, cache),
        *(crops, belongs, sides, sizes, classes),
    )


def eval_batches(
    config: DataConfig,
    *,
    global_batch: int,
    shard_index: int,
    shard_count: int,
    examples: EvalExamples | None = None,
    multiple: int | None = None,
) -> Batches:
    """All validation examples once, in order, in equally many batches on every host.

    With ``eval_crop=bucket`` those of one size come after those of another, in the order of
    ``config.sizes``, and a batch has as many as `size_schedule.batch_of_size` says.

    Args:
      config: what to read.
      global_batch: as in `train_batches`.
      shard_index: as in `train_batches`.
      shard_count: as in `train_batches`.
      examples: what `eval_examples` gave for the same config; None opens them anew.
      multiple: as in `train_batches`.

    Returns:
      A finite iterator of ``{'pixels': uint8 [local batch, time, height, width, channel 3],
      'frames': int32 [local batch], 'mask': float32 [local batch], 'index': int64 [local
      batch]}``. Time is ``frames`` of the examples; ``frames`` here is as in
      `train_batches`. The index counts examples in the order of their records; it is -1 where the
      last batch, or the last of a size, is padded. The
      mask is 0 for padding and broken records, whose pixels are 0, and 1 elsewhere. ``label`` is
      as in `train_batches`.

    Raises:
      UserError: as `train_batches`.
    """
    local_batch(global_batch, shard_index, shard_count)
    shown = eval_examples(config) if examples is None else examples
    plan = _batch_plan(config, shown, global_batch, multiple or shard_count)
    reader = Reader(
        shown.source,
        size=config.eval_resize,
        filter=config.eval_filter,
        draft=False,  # a reduced decode would change what is measured
        max_broken=config.max_broken,
        cache=shown.cache,
        shard_count=shard_count,
    )

    def read(example: int, crop: Size) -> np.ndarray | None:
        choose = functools.partial(
            clip_lengths.eval_frames,
            length=shown.frames,
            stride=config.stride,
            clip=int(shown.clips[example]),
            clips=config.eval_clips if shown.source.videos else 1,
        )
        record = int(shown.records[example])
        clip = reader.read(record, choose, int(shown.sides[record]))
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
            return np.stack([transforms.tile(image, tile, crop) for image in clip])
        return np.stack([transforms.center_crop(image, crop) for image in clip])

    def load(example: int, crop: Size) -> Example:
        pixels = read(example, crop) if example >= 0 else None
        mask = np.float32(pixels is not None)
        if pixels is None:
            pixels = np.zeros((1, *crop, 3), np.uint8)
        record = int(shown.records[example]) if example >= 0 else None
        label = class_entry(config, shown.source, record, numbers=shown.classes)
        return clip_example(pixels, shown.frames, example, label) | {"mask": mask}

    def load_batch(number: int) -> Batch:
        crop, numbers = plan[number]
        local = len(numbers) // shard_count
        mine = numbers[shard_index * local : (shard_index + 1) * local]
        rows = [load(int(example), crop) for example in mine]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    dataset = grain.MapDataset.range(len(plan)).map(load_batch)
    return Batches(dataset, config, [reader], start=0)


def _batch_plan(
    config: DataConfig, shown: EvalExamples, global_batch: int, multiple: int
) -> list[tuple[Size, np.ndarray]]:
    """The crop of each global batch, and the numbers of its examples, -1 for padding."""
    found = []
    belongs = shown.belongs[shown.records]
    for number, crop in enumerate(shown.crops):
        count = global_batch
        if config.eval_crop == "bucket":
            count = batch_of_size(crop, global_batch, config.crop, multiple)
        mine = np.flatnonzero(belongs == number)
        padded = np.full(-(-len(mine) // count) * count, -1)
        padded[: len(mine)] = mine
        found += [(crop, rows) for rows in padded.reshape(-1, count)]
    return found


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
    cut, found = [], []
    for index, (height, width) in enumerate(shapes_of(source, config.threads)):
        if not height:
            found.append((1, 0, 0))  # a masked example: the damage is met, counted and named
            continue
        resized = transforms.resized_shape(int(height), int(width), config.eval_resize)
        long = transforms.is_long(int(height), int(width), config.eval_resize)
        if long:
            cut.append(index)
        grid = transforms.tile_grid(resized, config.crop, long=long)
        found.append((math.prod(grid), *resized))
    if cut:
        say_once(
            f"{source.name}: {len(cut)} of {len(source)} records are more than "
            f"{transforms.LONGEST} times as long as wide and enlarged: tiles are cut from their "
            f"middle only ({source[min(cut)].id} is one)"
        )
    counted = np.array(found, np.int64).reshape(-1, 3)
    return counted[:, 0], counted[:, 1:]
