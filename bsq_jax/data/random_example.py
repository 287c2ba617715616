"""One training example: a clip of a record, a random crop of it, mirrored or recoloured."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from bsq_jax.data import clip_lengths, transforms
from bsq_jax.data.batches import Example, class_entry, clip_example
from bsq_jax.data.clip_lengths import Step
from bsq_jax.data.reader import Choose
from bsq_jax.data.records import Source
from bsq_jax.data.settings import DataConfig
from bsq_jax.data.transforms import Picture


def random_example(
    config: DataConfig,
    source: Source,
    plan: Step,
    rng: np.random.Generator,
    read: Callable[[Choose], tuple[list[Picture], int]],
    crop: tuple[int, int],
    *,
    own: bool,
) -> Example:
    """One row of a batch, see `train_pipeline.train_batches`.

    Args:
      config: what the augmentation is.
      source: of the record.
      plan: what the examples of the step are.
      rng: where all random numbers of the example come from.
      read: the resized frames that it is asked for, and the number of the record they are of.
      crop: (height, width) of the result.
      own: whether the classes of the source are those of the run.
    """
    length, draw = 1, 0.0
    if source.videos:
        length = int(rng.integers(plan.shortest, plan.frames, endpoint=True))
        draw = rng.random()
    choose = functools.partial(
        clip_lengths.train_frames, length=length, stride=config.stride, draw=draw
    )
    clip, found = read(choose)
    pixels = transforms.random_clip_crop(
        clip, crop, rng, *(config.scale, config.filter, config.backend)
    )
    if config.flip and rng.random() < 0.5:
        pixels = transforms.flip(pixels)
    if config.permute_channels and rng.random() < config.permute_channels:
        pixels = transforms.permute_channels(pixels, rng)
    return clip_example(pixels, plan.frames, found, class_entry(config, source, found, own=own))
