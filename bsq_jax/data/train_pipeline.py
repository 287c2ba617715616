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

from bsq_jax.data import clip_lengths, mixed_sizes
from bsq_jax.data.batch_sizes import BatchSizes
from bsq_jax.data.batches import ENDLESS, Batches, EpochOrder, Example, local_batch
from bsq_jax.data.mixed_sizes import IMAGE_ORDER, TrainSizes
from bsq_jax.data.random_example import random_example
from bsq_jax.data.reader import training_reader
from bsq_jax.data.settings import DataConfig
from bsq_jax.data.sources import open_image_source, open_source
from bsq_jax.data.workers import Made, Make


def batch_frames(config: DataConfig) -> tuple[int, ...]:
    """The numbers of frames that training batches will have, increasing: one program each.

    With `mixed_sizes` there is a program for each of these and each size of crops.

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
    sizes: TrainSizes | None = None,
    multiple: int | None = None,
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
      sizes: what `mixed_sizes.open_sizes` gave for the same config; None opens them anew where the
        config has sizes. A step then has one of them, and as many examples as
        `size_schedule.batch_of_size` says.
      multiple: with sizes: what the examples of a step are a multiple of, itself a multiple of
        ``shard_count``, which is the default.

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
    make: Make
    if config.sizes:
        multiple = multiple or shard_count
        history = earlier or BatchSizes(()).going_on(0, global_batch, multiple)
        history = history.going_on(start_step, global_batch, multiple)
        sizes = sizes or mixed_sizes.open_sizes(config)
        make = functools.partial(mixed_sizes.make, config, sizes, history, shard_index, shard_count)
        return _batches(config, make, start_step)
    history = (earlier or BatchSizes(((0, global_batch),))).going_on(start_step, global_batch)
    make = functools.partial(_make, config, history, start_step, local, shard_index, shard_count)
    first = history.examples(start_step) // global_batch
    return _batches(config, make, first)


def _batches(config: DataConfig, make: Make, start: int) -> Batches:
    dataset, readers = make(1)
    return Batches(dataset, config, readers, start=start, make=make)


def _make(
    config: DataConfig,
    history: BatchSizes,
    start_step: int,
    local: int,
    shard_index: int,
    shard_count: int,
    parts: int,
) -> Made:
    """Endless batches of crops of one size, the step that comes first being ``start_step``.

    Args:
      config: what to read.
      history: the batch sizes of all steps.
      start_step: as in `train_batches`.
      local: examples of a step on this host.
      shard_index: as in `train_batches`.
      shard_count: as in `train_batches`.
      parts: among how many readers the share of a host is divided.
    """
    global_batch = local * shard_count
    source = open_source(config, "train")
    readers_of_all = shard_count * parts
    main = training_reader(config, source, readers_of_all), EpochOrder.of(source, config.seed)
    readers, single = [main[0]], None
    if config.image_source:
        source_of_images = open_image_source(config)
        readers.append(training_reader(config, source_of_images, readers_of_all))
        single = readers[1], EpochOrder.of(source_of_images, config.seed, IMAGE_ORDER)
    schedule = clip_lengths.Schedule(config, videos=source.videos)
    begin = history.examples(start_step)

    def load(position: int, rng: np.random.Generator) -> Example:
        steps, row = divmod(position - begin, global_batch)
        step = start_step + steps
        plan = schedule.step(step)
        reader, order = single if plan.images and single else main
        if single:  # each source has epochs of its own
            images = history.examples(step, schedule.images)
            position = (images if plan.images else history.examples(step) - images) + row
        read = functools.partial(reader.read_or_next, order[position])
        own = main[0].source is reader.source
        return random_example(config, reader.source, plan, rng, read, config.crop, own=own)

    dataset = (
        grain.MapDataset.range(ENDLESS)
        .seed(config.seed)
        .random_map(load)
        .slice(slice(begin % global_batch, None))
        .batch(local)
        .slice(slice(shard_index, None, shard_count))
    )
    return Made(dataset, readers)
