"""Endless batches for training, read by threads with Grain.

Which pixels a step gets depends on the settings and the step alone, not on the number of hosts or
threads, nor on whether the run was stopped in between: the step gives the length of the clips and
the positions of its examples, a position gives the record (a permutation for each epoch) and the
random numbers of the crop, and the hosts take their shares of the finished global batch. So a run
resumes by asking for ``start_step``.
"""

import functools

import grain
import numpy as np

from bsq_jax.data import clip_lengths, transforms
from bsq_jax.data.batch_sizes import BatchSizes
from bsq_jax.data.batches import (
    ENDLESS,
    Batches,
    EpochOrder,
    Example,
    class_entry,
    clip_example,
    local_batch,
)
from bsq_jax.data.reader import FrameCache, Reader
from bsq_jax.data.records import Source
from bsq_jax.data.settings import DataConfig
from bsq_jax.data.sources import open_image_source, open_source

_IMAGE_ORDER = 1  # third number of the seed for the order of ``image_source``


def batch_frames(config: DataConfig) -> tuple[int, ...]:
    """The numbers of frames that training batches will have, increasing: one program each.

    Raises:
      UserError: as `open_source`.
    """
    return clip_lengths.buckets(config) if open_source(config, "train").videos else (1,)


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
      config: what to read.
      global_batch: examples in a step over all hosts, a multiple of ``shard_count``.
      shard_index: which host this is; host h gets rows [h * local, (h + 1) * local) of each global
        batch, where local = global_batch / shard_count.
      shard_count: number of hosts.
      start_step: step whose batch comes first.
      earlier: batch sizes of the steps before ``start_step``; None: all were ``global_batch``.

    Returns:
      An iterator of ``{'pixels': uint8 [local batch, time, height, width, channel 3], 'frames':
      int32 [local batch], 'index': int64 [local batch]}``. Time is the same on all hosts, and one
      of `batch_frames`; it is 1 for pictures. Of each example the first ``frames`` frames are
      real, the others repeat the last of these. The index is the position of the record in its
      source. With ``labels`` also ``'label': int32 [local batch]``, the number of its class in the
      ``source``, or -1.

    Raises:
      UserError: from here if a setting or a source is wrong; from ``next`` if more than
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
        source_of_images = open_image_source(config)
        readers.append(reader_of(source_of_images))
        single = readers[1], EpochOrder(len(source_of_images), config.seed, _IMAGE_ORDER)
    schedule = clip_lengths.Schedule(config, videos=source.videos)
    sizes = (earlier or BatchSizes(((0, global_batch),))).going_on(start_step, global_batch)
    begin = sizes.examples(start_step)

    def load(position: int, rng: np.random.Generator) -> Example:
        steps, row = divmod(position - begin, global_batch)
        step = start_step + steps
        plan = schedule.step(step)
        reader, order = single if plan.images and single else main
        if single:  # each source has epochs of its own
            images = sizes.examples(step, schedule.images)
            position = (images if plan.images else sizes.examples(step) - images) + row
        length, draw = 1, 0.0
        if reader.source.videos:
            length = int(rng.integers(plan.shortest, plan.frames, endpoint=True))
            draw = rng.random()
        choose = functools.partial(
            clip_lengths.train_frames, length=length, stride=config.stride, draw=draw
        )
        clip, found = reader.read_or_next(order[position], choose)
        crop = transforms.random_clip_crop(clip, config.crop, rng, config.scale, config.filter)
        if config.flip and rng.random() < 0.5:
            crop = transforms.flip(crop)
        if config.permute_channels and rng.random() < config.permute_channels:
            crop = transforms.permute_channels(crop, rng)
        own = main[0].source is reader.source
        label = class_entry(config, reader.source, found, own=own)
        return clip_example(crop, plan.frames, found, label)

    dataset = (
        grain.MapDataset.range(ENDLESS)
        .seed(config.seed)
        .random_map(load)
        .slice(slice(begin % global_batch, None))
        .batch(local)
        .slice(slice(shard_index, None, shard_count))
    )
    return Batches(dataset, config, readers, start=begin // global_batch)
