"""Batches of pixels with Grain: endless and resumable for training, exact-once for evaluation.

Position is a pure function of the step. Batch s of a run always holds the same crops of the same
frames, whatever the number of hosts and threads and whether the run was stopped in between: the
order is step -> length -> position -> record (a permutation for each epoch) -> start and
augmentation (a random stream for each position) -> batch, and only then does a host take its share
of the batches. Resuming is asking for ``start_step``.
"""

import dataclasses
import functools
import math
from concurrent import futures
from typing import Any

import grain
import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.data import lengths, transforms
from bsq_jax.data.batch_sizes import BatchSizes
from bsq_jax.data.batches import Batch as Batch
from bsq_jax.data.batches import Batches, EpochOrder, local_batch
from bsq_jax.data.decoding import footage
from bsq_jax.data.notices import warn_once
from bsq_jax.data.reader import FrameCache, Reader
from bsq_jax.data.records import NO_LABEL, BrokenRecord, Source, classes_of, label_of
from bsq_jax.data.retry import with_retries
from bsq_jax.data.settings import DataConfig
from bsq_jax.data.sources import make_source, same_place

_Example = dict[str, Any]

_IMAGE_ORDER = 1  # of the image source: another order than that of the source


def open_source(config: DataConfig, split: str) -> Source:
    """The records of ``split``, 'train' or 'val'.

    With a ``val_source`` of its own for validation, neither source is divided: see ``divide`` of
    :func:`bsq_jax.data.sources.make_source`. For 'train' the ``image_source`` is looked at too.

    Raises:
      UserError: A spec is wrong or there are no records.
    """
    val_source = config.val_source or config.source
    place = same_place(val_source)
    if split == "val":
        divide = place in (same_place(config.source), same_place(config.image_source))
        return _open(val_source, split, divide=divide)
    if config.image_source:
        _open_images(config)
    return _open(config.source, split, divide=place == same_place(config.source))


def _open_images(config: DataConfig) -> Source:
    # Always divided: whoever evaluates the model on this source later must not find it trained on.
    return _open(config.image_source, "train", divide=True)


def _open(spec: str, split: str, *, divide: bool) -> Source:
    source = make_source(spec, split, divide=divide)
    if not len(source):
        raise UserError(f"{source.name} is empty: choose another source for {split}")
    return source


def num_examples(config: DataConfig, split: str) -> int:
    """How many examples an epoch has: records in train; in val crops of clips, counted singly."""
    if split == "train":
        return len(open_source(config, split))
    return len(eval_examples(config).records)


def batch_frames(config: DataConfig) -> tuple[int, ...]:
    """The numbers of frames that training batches will have, increasing: one program each.

    Raises:
      UserError: As :func:`open_source`.
    """
    return lengths.buckets(config) if open_source(config, "train").videos else (1,)


def train_batches(
    config: DataConfig,
    *,
    global_batch: int,
    shard_index: int,
    shard_count: int,
    start_step: int = 0,
    earlier: BatchSizes | None = None,
) -> Batches:
    """Endless training batches of this host.

    Each epoch visits every record once, in an order of its own, and takes one clip of it. A broken
    record is replaced by the next readable one.

    Args:
      config: What to read.
      global_batch: Examples in a step over all hosts, a multiple of ``shard_count``.
      shard_index: Which host this is; host h gets rows [h * local, (h + 1) * local) of each global
        batch, where local = global_batch / shard_count.
      shard_count: Number of hosts.
      start_step: Step whose batch comes first.
      earlier: Batch sizes of the steps before ``start_step``; None: all were ``global_batch``.

    Returns:
      An iterator of ``{'pixels': uint8 [local batch, time, height, width, channel 3], 'frames':
      int32 [local batch], 'index': int64 [local batch]}``. Time is the same on all hosts, and one
      of :func:`batch_frames`; it is 1 for pictures. Of each example the first ``frames`` frames are
      real, the others repeat the last of these. The index is the position of the record in its
      source. With ``labels`` also ``'label': int32 [local batch]``, the number of its class in the
      ``source``, or -1.

    Raises:
      UserError: From here if a setting or a source is wrong; from ``next`` if more than
        ``max_broken`` of the records cannot be read.
    """
    local = local_batch(global_batch, shard_index, shard_count)

    def reader_of(source: Source) -> Reader:
        return Reader(
            source,
            size=config.resize,
            filter=config.filter,
            draft=True,
            max_broken=config.max_broken,
            cache=FrameCache(config.cache_mb),
            shard_count=shard_count,
        )

    source = open_source(config, "train")
    main = reader_of(source), EpochOrder(len(source), config.seed)
    readers, single = [main[0]], None
    if config.image_source:
        source_of_images = _open_images(config)
        readers.append(reader_of(source_of_images))
        single = readers[1], EpochOrder(len(source_of_images), config.seed, _IMAGE_ORDER)
    schedule = lengths.Schedule(config, videos=source.videos)
    sizes = (earlier or BatchSizes(((0, global_batch),))).going_on(start_step, global_batch)
    begin = sizes.examples(start_step)

    def load(position: int, rng: np.random.Generator) -> _Example:
        steps, row = divmod(position - begin, global_batch)
        step = start_step + steps
        plan = schedule.step(step)
        reader, order = single if plan.images and single else main
        if single:  # each source has epochs of its own
            images = sizes.examples(step, schedule.images)
            position = (images if plan.images else sizes.examples(step) - images) + row
        choose = functools.partial(lengths.train_frames, length=1, stride=config.stride, draw=0.0)
        if reader.source.videos:
            length = int(rng.integers(plan.shortest, plan.frames, endpoint=True))
            choose = functools.partial(choose, length=length, draw=rng.random())
        clip, found = reader.read_or_next(order[position], choose)
        crop = transforms.random_clip_crop(clip, config.crop, rng, config.scale, config.filter)
        if config.flip and rng.random() < 0.5:
            crop = transforms.flip(crop)
        if config.permute_channels and rng.random() < config.permute_channels:
            crop = transforms.permute_channels(crop, rng)
        own = main[0].source is reader.source
        return _example(crop, plan.frames, found, _label(config, reader.source, found, own=own))

    dataset = (
        grain.MapDataset.range(2**62)  # endless; Grain rounds lengths as floats, so not to the brim
        .seed(config.seed)
        .random_map(load)
        .slice(slice(begin % global_batch, None))
        .batch(local)
        .slice(slice(shard_index, None, shard_count))
    )
    return Batches(dataset, config, readers, start=begin // global_batch)


@dataclasses.dataclass(frozen=True)
class EvalExamples:
    """The validation examples: opened once, evaluated as often as one likes.

    Attributes:
      source: The records.
      frames: Frames of the batches: those of the settings for videos, 1 for pictures.
      records: For each example the record it comes from, int64 ``[examples]``.
      clips: For each example which clip of the record, int64 ``[examples]``.
      tiles: For each example which tile of the clip, int64 ``[examples]``.
      cache: Resized frames kept from one evaluation to the next.
      sizes: With tiles, (height, width) of each record after it is resized, by which its tiles were
        counted, int64 ``[records, 2]``; 0 where it could not be read. None without tiles.
      classes: For each class of the records its number in the training source, or `NO_LABEL`,
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
      UserError: The spec is wrong or there are no records.
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
        warn_once(
            f"{source.name}: {len(missing)} of its {len(mine)} classes are not among those of "
            f"{config.source}, their examples count as of no class: {shown}"
        )
    return np.array([known.get(name, NO_LABEL) for name in mine], np.int64)


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
      A finite iterator of ``{'pixels': uint8 [local batch, time, height, width, channel 3],
      'frames': int32 [local batch], 'mask': float32 [local batch], 'index': int64 [local
      batch]}``. Time is ``frames`` of the examples; ``frames`` here is as in
      :func:`train_batches`. The index counts examples; it is -1 where the last batch is padded. The
      mask is 0 for padding and broken records, whose pixels are 0, and 1 elsewhere. ``label`` is
      as in :func:`train_batches`.

    Raises:
      UserError: As :func:`train_batches`.
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
            lengths.eval_frames,
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

    def load(example: int) -> _Example:
        crop = read(example) if example < total else None
        mask = np.float32(crop is not None)
        if crop is None:
            crop = np.zeros((1, *config.crop, 3), np.uint8)
        record = int(shown.records[example]) if example < total else None
        label = _label(config, shown.source, record, numbers=shown.classes)
        index = example if example < total else -1
        return _example(crop, shown.frames, index, label) | {"mask": mask}

    padded = -(-total // global_batch) * global_batch
    dataset = (
        grain.MapDataset.range(padded)
        .map(load)
        .batch(local)
        .slice(slice(shard_index, None, shard_count))
    )
    return Batches(dataset, config, [reader], start=0)


def _label(
    config: DataConfig,
    source: Source,
    index: int | None,
    *,
    own: bool = True,
    numbers: np.ndarray | None = None,
) -> _Example:
    """The class of a record, where it is asked for; that of a second source is not known.

    With ``numbers`` it is the entry there of the class in the record's own source.
    """
    if not config.labels:
        return {}
    number = label_of(source, index) if own and index is not None else NO_LABEL
    if numbers is not None and number != NO_LABEL:
        number = int(numbers[number])
    return {"label": np.int32(number)}


def _example(crop: np.ndarray, frames: int, index: int, label: _Example) -> _Example:
    """One row of a batch: the clip, filled up to `frames` with its last frame."""
    filling = np.broadcast_to(crop[-1], (frames - len(crop), *crop.shape[1:]))
    return {
        "pixels": np.concatenate([crop, filling]),
        "frames": np.int32(len(crop)),
        "index": np.int64(index),
        **label,
    }


def _count_tiles(config: DataConfig, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """How many crops are cut from each record, and the size of it; see `EvalExamples`.

    Returns:
      int64 ``[records]`` and int64 ``[records, 2]``.
    """
    cut: list[int] = []

    def count(index: int) -> tuple[int, int, int]:
        try:
            height, width = with_retries(lambda: footage.size_of(source[index]))
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
        warn_once(
            f"{source.name}: {len(cut)} of {len(source)} records are more than "
            f"{transforms.LONGEST} times as long as wide and enlarged: tiles are cut from their "
            f"middle only ({source[min(cut)].id} is one)"
        )
    return found[:, 0], found[:, 1:]
