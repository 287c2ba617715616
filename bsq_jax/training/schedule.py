"""When a training run logs, saves, evaluates and ends."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Self

from ml_collections import ConfigDict


class Left(NamedTuple):
    """What a run has still to do.

    Attributes:
      steps: training steps.
      saves: checkpoints.
      evaluations: without pictures.
      drawn: evaluations with pictures, the last one among them.
    """

    steps: int
    saves: int
    evaluations: int
    drawn: int


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The step to end at, and how often the loop does what.

    Attributes:
      steps: the last step.
      log_every: steps between log lines; the last step is always logged.
      checkpoint_every: steps between checkpoints; the last step is always saved, and a step that is
        evaluated, so that nothing is lost when its evaluation is left.
      evaluate_every: steps between evaluations; 0: none before the end.
      picture_every: steps between evaluations that also make pictures; 0: none before the end.
    """

    steps: int
    log_every: int
    checkpoint_every: int
    evaluate_every: int = 0
    picture_every: int = 0

    @classmethod
    def of(cls, config: ConfigDict) -> Self:
        """The schedule of a run with this config."""
        return cls(**{field.name: config.train[field.name] for field in dataclasses.fields(cls)})

    def logs(self, step: int) -> bool:
        """Whether the metrics of a step are logged."""
        return step % self.log_every == 0 or step == self.steps

    def saves(self, step: int) -> bool:
        """Whether there is a checkpoint after a step."""
        due = step % self.checkpoint_every == 0 or step == self.steps
        return due or self.evaluates(step)

    def draws(self, step: int) -> bool:
        """Whether the evaluation after a step makes pictures."""
        return bool(self.picture_every) and step % self.picture_every == 0

    def evaluates(self, step: int) -> bool:
        """Whether there is an evaluation after a step; who trains evaluates the last one."""
        due = bool(self.evaluate_every) and step % self.evaluate_every == 0
        return (due or self.draws(step)) and step != self.steps

    def left(self, step: int) -> Left:
        """What is to come after a step is computed: its own checkpoint and evaluation as well."""
        drawn = self._multiples(self.picture_every, step)
        evaluated = self._multiples(self.evaluate_every, step) | drawn
        saved = self._multiples(self.checkpoint_every, step) | evaluated
        return Left(
            max(self.steps - step, 0), len(saved) + 1, len(evaluated - drawn), len(drawn) + 1
        )

    def _multiples(self, every: int, step: int) -> set[int]:
        """Multiples from `step` to the one before the last step."""
        return set(range(-(-step // every) * every, self.steps, every)) if every else set()
