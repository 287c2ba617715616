"""How long a run will still take: steps, checkpoints and evaluations."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from bsq_jax.training.schedule import Schedule

# Steps, and seconds of them, after which the length of the run is estimated for the first time; or
# so many seconds, where steps are slow.
_STEPS, _SECONDS, _AT_LAST = 10, 5.0, 30.0


def about(seconds: float) -> str:
    """An estimated time in words, such as ``about 6 minutes`` or ``about 2.5 hours``."""
    if seconds < 90:
        unit, count = "second", f"{max(seconds, 1):.0f}"
    elif seconds < 90 * 60:
        unit, count = "minute", f"{seconds / 60:.0f}"
    else:
        unit, count = "hour", f"{seconds / 3600:.1f}".removesuffix(".0")
    return f"about {count} {unit}{'' if count == '1' else 's'}"


class Remaining:
    """Estimates the time to the end of a run beside its steps, the last evaluation included.

    An evaluation takes as long as the last one did, of the same kind where there was one. Until one
    has been timed it is guessed: its examples take as long as in a training step, and its programs
    take as long to make as the first step did.

    Args:
      schedule: of the run; None for steps alone.
      start: the step that the run starts or resumes from.
      examples: training examples that take about as long as an evaluation.
      batch_size: examples in a step.
    """

    def __init__(
        self,
        schedule: Schedule | None = None,
        start: int = 0,
        examples: float = 0.0,
        batch_size: int = 1,
    ) -> None:
        self._schedule, self._start = schedule, start
        self._steps_worth = examples / batch_size
        self._opened, self._startup = time.monotonic(), 0.0
        # The first step, and when it ended, until the length of the run has been estimated.
        self._first: tuple[int, float] | None = None
        self._save = 0.0
        self._evaluations: dict[bool, float] = {}  # by whether they drew; the last one's is last

    def started(self, step: int) -> None:
        """The first step is done."""
        now = time.monotonic()
        self._first, self._startup = (step, now), now - self._opened

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time inside this context is not that of steps."""
        began = time.monotonic()
        yield
        if self._first is not None:
            self._first = self._first[0], self._first[1] + time.monotonic() - began

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Times how long training waits for a checkpoint."""
        began = time.monotonic()
        yield
        self._save = time.monotonic() - began

    @contextlib.contextmanager
    def evaluating(self, *, drawn: bool) -> Iterator[None]:
        """Times an evaluation, with pictures or without."""
        began = time.monotonic()
        yield
        self._evaluations.pop(drawn, None)
        self._evaluations[drawn] = time.monotonic() - began

    def beside(self, step: int, of_step: float) -> float:
        """Seconds of the checkpoints and evaluations to come, those of `step` among them.

        Args:
          step: the last one that is computed.
          of_step: seconds that a step takes.
        """
        if self._schedule is None:
            return 0.0
        left = self._schedule.left(step)
        return (
            left.saves * self._save
            + left.evaluations * self._evaluation(of_step, drawn=False)
            + left.drawn * self._evaluation(of_step, drawn=True)
        )

    def last_evaluation(self, *, drawn: bool) -> float | None:
        """Seconds that the last evaluation of the kind took; None if none has been timed."""
        return self._evaluations.get(drawn)

    def _evaluation(self, of_step: float, *, drawn: bool) -> float:
        """Seconds of one evaluation, given those of a step."""
        if not self._evaluations:
            return self._startup + self._steps_worth * of_step
        return self._evaluations.get(drawn, list(self._evaluations.values())[-1])

    def first_estimate(self, step: int) -> str | None:
        """How long the run takes from its first step on, in words, once; None if not now.

        Args:
          step: the last one that is done.
        """
        if self._first is None or self._schedule is None:
            return None
        first, began = self._first
        seconds, steps = time.monotonic() - began, step - first
        enough = steps >= _STEPS and seconds >= _SECONDS
        if not steps or not (enough or seconds >= _AT_LAST):
            return None
        self._first = None
        of_step, left = seconds / steps, self._schedule.left(first)
        whole = left.steps * of_step + self.beside(first, of_step)
        evaluations = left.evaluations + left.drawn
        of_run = f"{self._schedule.steps - self._start:,d} steps"
        guess = "" if self._evaluations else " (whose time is a guess until one is done)"
        return (
            f"{about(whole)} for {f'the {of_run} left' if self._start else of_run} and "
            f"{evaluations:,d} evaluation{'s' * (evaluations > 1)}{guess}"
        )
