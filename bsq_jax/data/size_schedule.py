"""Which size each training step has, and where in the order of its records the step begins.

A step has the records of one size of ``data.sizes`` and crops of one size, see
`bsq_jax.data.size_buckets`. Which is drawn so that every record is seen equally often: in
proportion to the records, over the number of examples in such a step. The draws are stratified: of
64 steps in a row each kind has its share of 64, rounded up or down, in a random order.

All here is a function of the step, the seed and the number of records of each size, so that every
host draws the same and a run can go on from any step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bsq_jax.data.batch_sizes import BatchSizes
from bsq_jax.data.size_buckets import Size, choices

_BLOCK = 64
_SIZES = 3  # stream of random numbers, beside those of `bsq_jax.data.clip_lengths`


class SizedStep(NamedTuple):
    """What the examples of one step are.

    Attributes:
      size: number of the size of their crops.
      belongs: number of the size that their records belong to.
      examples: how many there are, on all hosts together.
      first: how many examples of records of that size came before.
    """

    size: int
    belongs: int
    examples: int
    first: int


def batch_of_size(size: Size, batch_size: int, built_for: Size, multiple: int) -> int:
    """The examples of a step, whose pixels, and so tokens, are about those of a usual one.

    Args:
      size: (height, width) of its crops.
      batch_size: examples of a usual step.
      built_for: (height, width) of the crops of that.
      multiple: what the number must be a multiple of: it is rounded down, but to no less than this.
    """
    fitting = batch_size * built_for[0] * built_for[1] // (size[0] * size[1])
    return max(fitting // multiple, 1) * multiple


class _Draws:
    """The kinds of steps, each a pair of (records', crops') size, and how often each comes."""

    def __init__(
        self, records: Mapping[int, int], sizes: Sequence[Size], examples: Sequence[int], *seed: int
    ):
        """Takes the number of records of each size that has some, and the examples of a step."""
        self.kinds = [(own, size) for own in sorted(records) for size in choices(own, sizes)]
        self.examples = np.array([examples[size] for _, size in self.kinds])
        shares = [
            records[own] / (len(choices(own, sizes)) * examples[size]) for own, size in self.kinds
        ]
        ends = np.cumsum(shares)
        self._ends = ends[:-1] / ends[-1]
        self._seed = seed
        # How often each kind came before a block, int64 ``[block, kind]``, as far as is known.
        self._before = np.zeros((1, len(self.kinds)), np.int64)
        self._lock = threading.Lock()

    def _block(self, block: int) -> np.ndarray:
        """The kinds of the steps of a block, int64 ``[64]``."""
        rng = np.random.default_rng([self._seed[0], block, _SIZES, *self._seed[1:]])
        places = (rng.permutation(_BLOCK) + rng.random()) / _BLOCK
        return np.searchsorted(self._ends, places, side="right")

    def kind(self, step: int) -> int:
        """The number of the kind of a step."""
        block, inside = divmod(step, _BLOCK)
        return int(self._block(block)[inside])

    def before(self, step: int) -> np.ndarray:
        """How many of the steps before a step are of each kind, int64 ``[kind]``."""
        block, inside = divmod(step, _BLOCK)
        with self._lock:
            known = len(self._before)
            if block >= known:
                counts = [self._count(self._block(b)) for b in range(known - 1, block)]
                later = self._before[-1] + np.cumsum(counts, axis=0)
                self._before = np.concatenate([self._before, later])
            before = self._before[block]
        return before + self._count(self._block(block)[:inside])

    def _count(self, kinds: np.ndarray) -> np.ndarray:
        return np.bincount(kinds, minlength=len(self.kinds))


class SizeSchedule:
    """The sizes of all steps of a run that read one source.

    Args:
      records: for each size that has records, by its number, how many.
      sizes: (height, width) of the sizes.
      built_for: (height, width) of the crops that batch sizes are told of.
      batches: the batch sizes of the run.
      place: how many of the steps before a step of the run read this source.
      seed: numbers that tell these draws from others.
    """

    def __init__(
        self,
        records: Mapping[int, int],
        sizes: Sequence[Size],
        built_for: Size,
        batches: BatchSizes,
        *seed: int,
        place: Callable[[int], int] = lambda step: step,
    ):
        self._sizes = sizes
        self._parts: list[tuple[int, _Draws]] = []
        for first, batch_size, multiple in batches.with_multiples():
            examples = [batch_of_size(size, batch_size, built_for, multiple) for size in sizes]
            self._parts.append((place(first), _Draws(records, sizes, examples, *seed)))

    def step(self, place: int) -> SizedStep:
        """What the examples of a step are.

        Args:
          place: how many steps that read this source came before it.
        """
        ends = [first for first, _ in self._parts[1:]] + [place]
        of_step = max(number for number, (first, _) in enumerate(self._parts) if first <= place)
        draws = self._parts[of_step][1]
        kind = draws.kind(place)
        belongs, size = draws.kinds[kind]
        seen = 0
        for (first, part), end in zip(self._parts, ends, strict=True):
            if first < place:
                steps = part.before(min(end, place)) - part.before(first)
                mine = [own == belongs for own, _ in part.kinds]
                seen += int(np.sum((steps * part.examples)[mine]))
        return SizedStep(size, belongs, int(draws.examples[kind]), seen)
