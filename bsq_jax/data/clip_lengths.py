"""How long the clips of a training step are, and which of their video's frames they take.

A program is compiled for each number of frames that batches have. So a step draws a bucket, the
number of frames of its arrays, and its clips draw their lengths between the bucket before and this
one; shorter ones are filled up at the end. Buckets double, so that few programs serve all lengths
and less than half of an array is filling. A bucket is drawn in proportion to the lengths it holds,
which makes lengths uniform over all clips.

All here is a function of (seed, step), so that every host draws the same and a run can go on from
any step.
"""

import functools
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from bsq_jax.data.settings import DataConfig

# Among this many steps in a row the share of those with single frames is as exact as it can be;
# that lets a step know in closed form how many such came before it.
_BLOCK = 64
# Streams of random numbers of their own, beside that of the order of the records.
_IMAGES, _BUCKETS = 1, 2


class Step(NamedTuple):
    """What the examples of one step are.

    Attributes:
      frames: frames of the step's arrays.
      shortest: the least real frames that an example is meant to have; the most are ``frames``.
      images: whether the examples are single frames.
      place: how many steps of the same kind, of single frames or of clips, came before.
    """

    frames: int
    shortest: int
    images: bool
    place: int


def buckets(config: DataConfig) -> tuple[int, ...]:
    """The numbers of frames that training batches of a source of videos have, increasing.

    Powers of two from ``min_frames`` on, and ``frames`` as the last; 1 besides where some steps
    have single frames. A source of pictures gives 1 alone: see
    `train_pipeline.batch_frames`.
    """
    found = {last for _, last in _spans(config.frames, config.min_frames)}
    share = _share(config)
    return tuple(sorted((found if share < 1 else set()) | ({1} if share else set())))


class Schedule:
    """The lengths of all steps of a run."""

    def __init__(self, config: DataConfig, *, videos: bool = True):
        """Takes the settings, and whether the source holds videos; pictures have one frame."""
        self._seed = config.seed
        self._share = _share(config)
        self._spans = _spans(config.frames, config.min_frames) if videos else [(1, 1)]
        self._images_in = functools.lru_cache(maxsize=16)(self._draw_images)
        self.step = functools.lru_cache(maxsize=64)(self._draw_step)  # asked for by each example

    def images(self, step: int) -> int:
        """How many of the steps before ``step``, counted from 0, have single frames."""
        block, inside = divmod(step, _BLOCK)
        return int(self._share * _BLOCK * block) + int(self._images_in(block)[:inside].sum())

    def _draw_step(self, step: int) -> Step:
        """What the examples of ``step``, counted from 0, are."""
        block, inside = divmod(step, _BLOCK)
        chosen, images = self._images_in(block), self.images(step)
        if chosen[inside]:
            return Step(1, 1, images=True, place=images)
        counts = np.cumsum([last - first + 1 for first, last in self._spans])
        draw = np.random.default_rng([self._seed, step, _BUCKETS]).integers(counts[-1])
        first, last = self._spans[int(np.searchsorted(counts, draw, side="right"))]
        return Step(last, first, images=False, place=step - images)

    def _draw_images(self, block: int) -> np.ndarray:
        """Which steps of a block have single frames; bool [_BLOCK]."""
        before, after = (int(self._share * _BLOCK * b) for b in (block, block + 1))
        order = np.random.default_rng([self._seed, block, _IMAGES]).permutation(_BLOCK)
        return order < after - before


def train_frames(count: int, length: int, stride: int, draw: float) -> range:
    """Frames of a clip that starts anywhere in a video, all places being equally likely.

    Args:
      count: frames of the video.
      length: frames that the clip should have; it has fewer where the video is too short.
      stride: frames of the video from one to the next.
      draw: a random number in [0, 1) that decides where it starts.
    """
    real, room = _fit(count, length, stride)
    start = int(draw * (room + 1))
    return range(start, start + real * stride, stride)


def eval_frames(count: int, length: int, stride: int, clip: int, clips: int) -> range:
    """Frames of clip number ``clip`` of ``clips`` that are spread evenly over a video.

    The first begins with the video and the last ends with it; one alone is from the middle. The
    other arguments are as in `train_frames`.
    """
    real, room = _fit(count, length, stride)
    start = (2 * room * clip + clips - 1) // (2 * (clips - 1)) if clips > 1 else room // 2
    return range(start, start + real * stride, stride)


def _fit(count: int, length: int, stride: int) -> tuple[int, int]:
    """How many frames a clip has in a video of `count`, and how far its start can be moved."""
    real = min(length, (count - 1) // stride + 1)
    return real, count - (real - 1) * stride - 1


def _share(config: DataConfig) -> Fraction:
    """The share of single frames as the fraction that was meant, so that counts are exact."""
    return Fraction(config.image_share).limit_denominator(10**6)


def _spans(frames: int, min_frames: int) -> list[tuple[int, int]]:
    """(shortest, longest) lengths of each bucket; the longest is the bucket itself."""
    if not min_frames:
        return [(frames, frames)]
    ends = [2**power for power in range(frames.bit_length()) if min_frames <= 2**power < frames]
    firsts = [min_frames, *(end + 1 for end in ends)]
    return list(zip(firsts, [*ends, frames], strict=True))
