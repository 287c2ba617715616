"""The folder of a run's checkpoints: which are complete, which one is taken, which go."""

from __future__ import annotations

import logging
import pathlib
import shutil

import jax

from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import gather_strings
from bsq_jax.training import checksums
from bsq_jax.training.process_zero import from_process_zero

_log = logging.getLogger(__name__)


class CheckpointFolder:
    """Complete and damaged checkpoints, one folder a step.

    A checkpoint is complete when it has its checksums and they match. What was found of it is
    remembered, so that its files are read once.

    Args:
      path: the folder; it may not exist yet.
      keep: how many complete checkpoints `prune` leaves.
    """

    def __init__(self, path: pathlib.Path, keep: int):
        self.path = path
        self._keep = keep
        self._problems: dict[int, str | None] = {}  # by step: what is wrong, None if it is complete
        self._warned: set[int] = set()

    def of_step(self, step: int) -> pathlib.Path:
        """The folder of a checkpoint."""
        return self.path / str(step)

    def latest(self) -> int | None:
        """See `Checkpointer.latest_step` (a collective call)."""
        while True:
            step, is_complete = from_process_zero(self._candidate)
            if is_complete or step is None:
                return step
            self._verify(step)

    def kept(self) -> list[int]:
        """Steps whose checkpoints were complete once, newest first (a collective call)."""
        return from_process_zero(
            lambda: [
                step for step in self._steps() if (self.of_step(step) / checksums.NAME).exists()
            ]
        )

    def check(self, step: int) -> None:
        """Reads a checkpoint's files, unless that was done before (a collective call).

        Raises:
          UserError: it is damaged or not complete.
        """
        if step not in self._problems:
            self._verify(step)
        if (problem := self._problems[step]) is not None:
            raise UserError(f"checkpoint {self.of_step(step)} cannot be used: {problem}")

    def finish(self, step: int) -> None:
        """Completes a checkpoint that Orbax has written, then removes those that are too old.

        Every process calls it, from any thread. Process 0 returns when all of it is done.
        """
        checksums.write(self.of_step(step), jax.process_index(), jax.process_count())
        if jax.process_index() == 0:
            self._problems[step] = None
            self._prune(step)

    def make_room(self, after: int) -> None:
        """Moves away what a killed or damaged run left behind later than step `after`.

        Raises:
          UserError: one of these checkpoints is complete.
          OSError: the folder cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for path in self.path.glob("*.orbax-checkpoint-tmp*"):
            _log.info("removing %s, left by a save that was interrupted", path)
            shutil.rmtree(path, ignore_errors=True)
        for step in (step for step in self._steps() if step > after):
            folder = self.of_step(step)
            if step not in self._problems:
                self._problems[step] = checksums.problem(folder)
            problem = self._problems[step]
            if problem is None:
                raise UserError(
                    f"{self.path} holds a checkpoint of step {step}, which this run did not start "
                    "from: resume from it, or take another workdir"
                )
            aside = folder.with_name(f"{step}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            del self._problems[step]
            _log.warning("checkpoint %s (%s) was moved to %s", folder, problem, aside.name)

    def _steps(self) -> list[int]:
        """All steps with a folder, complete or not, newest first."""
        if not self.path.is_dir():
            return []
        names = (path.name for path in self.path.iterdir() if path.is_dir())
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def _candidate(self) -> tuple[int | None, bool]:
        """The newest step that is not known to be damaged, and whether it is known to be complete.

        Raises:
          UserError: there are checkpoints that were complete once, and all are damaged.
        """
        steps = self._steps()
        for step in steps:
            problem = self._problems.get(step)
            if problem is None:
                return step, step in self._problems
            if step not in self._warned:
                self._warned.add(step)
                _log.warning(
                    "checkpoint %s is not used: %s; looking for one before it",
                    self.of_step(step), problem,
                )  # fmt: skip
        if not any((self.of_step(step) / checksums.NAME).exists() for step in steps):
            return None, False  # no save was ever completed here, so there is nothing to lose
        raise UserError(
            f"no checkpoint in {self.path} is usable ({len(steps)} there, all damaged, the newest: "
            f"{self._problems[steps[0]]}); start anew in another workdir, or copy one back"
        )

    def _verify(self, step: int) -> None:
        """Reads a checkpoint's files, each process its share (a collective call)."""
        mine = checksums.problem(self.of_step(step), jax.process_index(), jax.process_count())
        found = gather_strings([] if mine is None else [mine])
        self._problems[step] = found[0] if found else None

    def _prune(self, newest: int) -> None:
        """Removes all but the newest complete checkpoints, up to step `newest`."""
        kept: list[int] = []
        for step in (step for step in self._steps() if step <= newest):
            table = self.of_step(step) / checksums.NAME
            complete = table.exists() and not self._problems.get(step)
            if complete and len(kept) < self._keep:
                kept.append(step)
                continue
            # Without its checksums it is no checkpoint any more, should we be killed half-way.
            table.unlink(missing_ok=True)
            shutil.rmtree(self.of_step(step), ignore_errors=True)
            self._problems.pop(step, None)
        for path in self.path.glob("*.damaged"):
            if path.stem.isdecimal() and int(path.stem) < kept[-1]:
                shutil.rmtree(path, ignore_errors=True)
