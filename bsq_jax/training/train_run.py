"""Trains a model from a config or resumes its training, then evaluates it."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from bsq_jax.config import to_json
from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import host_shard, make_mesh
from bsq_jax.data.batches import Batches
from bsq_jax.evaluation.report import weight_sets
from bsq_jax.training import determinism, maintenance, workdir_lock
from bsq_jax.training.accumulate import check_divides
from bsq_jax.training.checkpoint import Checkpointer
from bsq_jax.training.evaluate_run import file_suffix, print_report
from bsq_jax.training.export import is_export
from bsq_jax.training.flops import total_peak_flops
from bsq_jax.training.loop import TrainingLoop
from bsq_jax.training.monitor import Monitor
from bsq_jax.training.process_zero import from_process_zero
from bsq_jax.training.profiling import Profiler, Startup
from bsq_jax.training.recipes import Recipe, make_recipe
from bsq_jax.training.recipes.mixed_sizes import step_multiple
from bsq_jax.training.remaining import Remaining
from bsq_jax.training.run_start import RunStart, begin, resume
from bsq_jax.training.schedule import Schedule
from bsq_jax.training.state import TrainState
from bsq_jax.training.step_cost import tokens_of
from bsq_jax.training.stop_signal import StopSignal
from bsq_jax.training.useful_flops import step_flops
from bsq_jax.training.workdir import (
    open_checkpoints,
    with_saved_init,
    write_config,
)
from bsq_jax.training.writers import check_wandb

Progress = Callable[[dict[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
      status: exit status: 0 when done; stopped with everything saved, `RUN_AGAIN` after SIGTERM and
        `INTERRUPTED` after Ctrl-C.
      stopped: what stopped it and what is saved, as a line; empty when done.
      state: the last state, on the mesh; None if it was stopped.
      report: of the evaluation, see `bsq_jax.evaluation.report`; None if it was stopped.
    """

    status: int
    stopped: str = ""
    state: TrainState | None = None
    report: dict[str, Any] | None = None


def train(
    config: ConfigDict,
    workdir: pathlib.Path,
    *,
    profile: tuple[int, int] | None = None,
    began: float | None = None,
) -> int:
    """`run` for a command: returns the exit status alone."""
    return run(config, workdir, profile=profile, began=began).status


def run(
    config: ConfigDict,
    workdir: pathlib.Path,
    *,
    profile: tuple[int, int] | None = None,
    began: float | None = None,
    progress: Progress | None = None,
    stop: StopSignal | None = None,
) -> Outcome:
    """Trains or resumes, then evaluates; prints the table and the paths of the pictures.

    Args:
      config: a finalised config.
      workdir: folder of the run.
      profile: first and last step to record with JAX's profiler.
      began: when the program began, on the clock `time.monotonic`; None for now.
      progress: called with each record of metrics; None: nothing is.
      stop: entered here; None: that of a command.

    Raises:
      UserError: the workdir holds another model, the data cannot be read, a loss is not finite.
    """
    startup = Startup(began)
    if config.log.wandb:
        from_process_zero(functools.partial(check_wandb, config.log.wandb))
    if is_export(workdir):
        raise UserError(
            f"{workdir} is an export: give another --workdir with --config.train.init={workdir}"
        )
    stop = stop or StopSignal()
    with stop:
        done = _train(config, workdir, profile, startup, stop, progress)
        if done is not None:
            return done
    return Outcome(stop.status, stop.told)


def _train(
    config: ConfigDict,
    workdir: pathlib.Path,
    profile: tuple[int, int] | None,
    startup: Startup,
    stop: StopSignal,
    progress: Progress | None,
) -> Outcome | None:
    """Trains and evaluates; None if a signal stopped the run before its last step."""
    mesh = make_mesh(**config.mesh.to_dict())
    check_divides(config.train.batch_size, config.train.accumulate, mesh)
    multiple = step_multiple(config, mesh)
    with open_checkpoints(workdir, keep=config.train.keep) as checkpointer:
        stop.saves = checkpointer
        meta = checkpointer.read_meta()
        if meta is not None:
            config = with_saved_init(config, meta, workdir)
        recipe = make_recipe(config, workdir, mesh)
        recipe.check()
        if meta is None:
            start = begin(config, recipe, multiple)
        else:
            start = resume(config, recipe, workdir, mesh, checkpointer, meta)
            stop.resumes(start.step)
        _check_steps(config, start.step, profile, workdir)
        with workdir_lock.held(workdir):
            if start.step < config.train.steps:
                write_config(workdir, config)
                start = start.with_batch_size(config, multiple)
            with _open_monitor(config, workdir, mesh, recipe, start, progress) as monitor:
                run = _Run(config, workdir, mesh, recipe, start, checkpointer, monitor, stop)
                run.greet()
                done = run.train_and_evaluate(Profiler(workdir / "profile", profile), startup)
        if done is None:
            return None
        state, report = done
        print_report(recipe, report)
    return Outcome(0, state=state, report=report)


def _check_steps(
    config: ConfigDict, first: int, profile: tuple[int, int] | None, workdir: pathlib.Path
) -> None:
    """Refuses a run that is past its last step, or a profile of steps that it does not do."""
    steps = config.train.steps
    if first > steps:
        raise UserError(
            f"{workdir} is at step {first} already: raise config.train.steps above {steps}"
        )
    if profile is not None and not first < profile[0] <= profile[1] <= steps:
        raise UserError(
            f"profile {profile[0]} to {profile[1]}: this run does the steps {first + 1} to {steps}"
        )


def _open_monitor(
    config: ConfigDict,
    workdir: pathlib.Path,
    mesh: jax.sharding.Mesh,
    recipe: Recipe,
    start: RunStart,
    progress: Progress | None,
) -> Monitor:
    return Monitor(
        workdir,
        total_steps=config.train.steps,
        start_step=start.step,
        batch_size=config.train.batch_size,
        unit=recipe.unit,
        show=recipe.shown,
        history=start.history,
        peak_flops=total_peak_flops(mesh),
        remaining=Remaining(
            Schedule.of(config), start.step, _examples(start, recipe), config.train.batch_size
        ),
        progress=progress,
        wandb=config.log.wandb,
    )


def _examples(start: RunStart, recipe: Recipe) -> float:
    """Training examples that take about as long as an evaluation of all sets of weights."""
    return len(weight_sets(start.state.params, start.state.ema)) * recipe.evaluated_examples


@dataclasses.dataclass(frozen=True)
class _Run:
    """A training run, with all that it has opened."""

    config: ConfigDict
    workdir: pathlib.Path
    mesh: jax.sharding.Mesh
    recipe: Recipe
    start: RunStart
    checkpointer: Checkpointer
    monitor: Monitor
    stop: StopSignal

    def greet(self) -> None:
        """Logs what the run is and where it begins."""
        notes = determinism.described(self.config.train.deterministic), self.start.note
        first, *more = self.recipe.greeting(self.start.state, self.start.step)
        steps = self.config.train.steps
        first += f" of {steps:,d}" if self.start.step else f": {steps:,d} steps"
        first += f", workdir {self.workdir}"
        for line in [first, *more, *filter(None, notes)]:
            self.monitor.info(line)
        self.monitor.describe(self.config)

    def train_and_evaluate(
        self, profiler: Profiler, startup: Startup
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """Does the steps that are left, then evaluates.

        Returns:
          The last state and the report of its evaluation; None if a signal stopped the run before.
        """
        state, steps, stop = self.start.state, self.config.train.steps, self.stop
        if not jax.process_index():
            stop.say = self.monitor.info
        with maintenance.watched():
            if self.start.step < steps:
                state, finished = self._loop(profiler, startup).run(state, self._batches())
                if not finished:
                    return None
            else:
                self.monitor.info(f"all {steps} steps are done: raise config.train.steps to go on")
            stop.all_saved(steps, "evaluate")
            with self.monitor.evaluating(steps, drawn=True):
                return state, self._evaluate(state, True)

    def _loop(self, profiler: Profiler, startup: Startup) -> TrainingLoop:
        # Which takes some seconds, and process 0 alone shows the rates.
        flops_of = functools.partial(step_flops, self.recipe.task)
        counts: dict[str, Any] = {} if jax.process_index() else {"count_flops": flops_of}
        if self.config.data.sizes:
            counts["count_tokens"] = functools.partial(tokens_of, self.config)
        return TrainingLoop(
            self.recipe.task,
            self.mesh,
            Schedule.of(self.config),
            checkpointer=self.checkpointer,
            monitor=self.monitor,
            stop=self.stop,
            meta={"config": to_json(self.config), "batch_sizes": self.start.batch_sizes.parts},
            evaluate=self._evaluate,
            profiler=profiler,
            startup=startup,
            **counts,
        )

    def _batches(self) -> Batches:
        """This host's batches of the steps that are left."""
        shard = host_shard(self.mesh, self.config.train.batch_size)
        return self.recipe.batches(
            self.start.step, shard.index, shard.count, earlier=self.start.batch_sizes
        )

    def _evaluate(self, state: TrainState, pictures: bool) -> dict[str, Any]:
        """Evaluates a state, and logs the results and pictures."""
        step, suffix = int(state.step), self._suffix()
        weights = weight_sets(state.params, state.ema)
        report = self.recipe.evaluate(weights, step, pictures=pictures, suffix=suffix)
        if suffix:
            return report  # the run's metrics are those of its own validation data
        for label, result in report["results"].items():
            scalars = {k: v for k, v in result.items() if isinstance(v, int | float)}
            self.monitor.log(step, scalars, prefix=f"val_{label}")
        for path in report["pictures"]:
            name = pathlib.Path(path).stem.removesuffix(f"_{step:07d}")  # one tag for all steps
            self.monitor.image(step, name, np.asarray(Image.open(path)))
        return report

    def _suffix(self) -> str:
        """See `file_suffix`; only a run with no steps left may be evaluated in another way."""
        if self.start.saved is None or self.start.step < self.config.train.steps:
            return ""
        return file_suffix(self.config, self.start.saved)
