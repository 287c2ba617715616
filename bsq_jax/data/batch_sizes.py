"""The batch size of each step of a run, which may be another one where the run was resumed.

With it the place of a step in the data stays a function of the step: a run that goes on with
another batch size goes on at the example after the last one seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Self

from bsq_jax.core.errors import UserError


class BatchSizes(NamedTuple):
    """The global batch sizes of a run.

    Attributes:
      parts: ``(first step, examples a step)`` of each size in turn; steps count from 0, as the
        first of these does. With ``data.sizes`` a third number may follow: what batches of other
        sizes are a multiple of, if that is not 1.
    """

    parts: tuple[tuple[int, ...], ...]

    @classmethod
    def read(cls, saved: Iterable[Sequence[int]], origin: str) -> Self:
        """From what a checkpoint's ``meta`` holds, the lists of `parts`.

        Raises:
          UserError: it is something else.
        """
        try:
            parts = tuple((int(first), int(size), *map(int, more)) for first, size, *more in saved)
        except (TypeError, ValueError):
            parts = ()
        firsts = [part[0] for part in parts]
        good = bool(parts) and all(len(part) <= 3 and min(part[1:]) > 0 for part in parts)
        if not good or firsts[0] != 0 or firsts != sorted(set(firsts)):
            raise UserError(f"{origin} has impossible batch sizes: was it edited?")
        return cls(parts)

    def going_on(self, step: int, size: int, multiple: int = 1) -> Self:
        """These up to `step`, and from there on batches of `size`.

        Args:
          step: counted from 0.
          size: examples of a step.
          multiple: what batches of other sizes are a multiple of.
        """
        parts = [part for part in self.parts if part[0] < step]
        going = (size,) if multiple == 1 else (size, multiple)
        if not parts or parts[-1][1:] != going:
            parts.append((step if parts else 0, *going))
        return type(self)(tuple(parts))

    def with_multiples(self) -> list[tuple[int, int, int]]:
        """``(first step, examples a step, multiple)`` of each of `parts`."""
        return [(part[0], part[1], part[2] if part[2:] else 1) for part in self.parts]

    def examples(self, step: int, place: Callable[[int], int] = lambda step: step) -> int:
        """Examples in the steps before `step`.

        Args:
          step: counted from 0.
          place: how many of the steps before a step count; all, if it is not given.
        """
        ends = [first for first, *_ in self.parts[1:]] + [step]
        return sum(
            (place(min(end, step)) - place(min(first, step))) * size
            for (first, size, *_), end in zip(self.parts, ends, strict=True)
        )
