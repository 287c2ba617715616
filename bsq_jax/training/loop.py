"""The training loop: steps, and between them checks, checkpoints and evaluations.

It is given a task, which says what a step is, and knows nothing of models and losses.
"""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from bsq_jax.core.sharding import to_global
from bsq_jax.data.batches import Batches
from bsq_jax.training.checkpoint import Checkpointer
from bsq_jax.training.finite_check import StateCheck, check_finite
from bsq_jax.training.monitor import Monitor
from bsq_jax.training.profiling import Profiler, Startup
from bsq_jax.training.schedule import Schedule
from bsq_jax.training.state import TrainState, jit_step
from bsq_jax.training.stop_signal import StopSignal

# Steps dispatched and not yet finished when the next one is dispatched. One that waits while
# another runs keeps the devices busy; more would only hold their batches in memory, and delay the
# end of the run: on a CPU there were 50.
AHEAD = 2
_CONTENTS = ("pixels", "bits")  # a batch has one of them, ``[batch, time, ...]``
_PER_EXAMPLE = ("frames", "label")  # passed to the step where the batch has them


class TrainingLoop:
    """Trains a state up to the last step of a schedule, or until a signal.

    Args:
      task: has ``train_step(state, batch, frozen) -> (state, metrics)``, and ``load_frozen(mesh)``
        for the parameters of frozen networks that it takes.
      mesh: the run's mesh.
      schedule: when it ends, logs, saves and evaluates.
      checkpointer: where to save.
      monitor: where to log.
      stop: entered by the caller; says when to save and leave.
      meta: saved beside the state in each checkpoint, with the metrics' history added.
      evaluate: called with the state and whether to make pictures.
      count_flops: useful floating-point operations of a step, from what the task's step takes.
      count_tokens: tokens of a global batch, where the sizes of batches differ; None: all are of
        one size, and examples alone are counted.
      profiler: records some of the steps.
      startup: made when the program began, for the log.
    """

    def __init__(
        self,
        task: Any,
        mesh: jax.sharding.Mesh,
        schedule: Schedule,
        *,
        checkpointer: Checkpointer,
        monitor: Monitor,
        stop: StopSignal,
        meta: dict[str, Any],
        evaluate: Callable[[TrainState, bool], Any],
        count_flops: Callable[..., float] = lambda *_: 0.0,
        count_tokens: Callable[[dict[str, jax.Array]], int] | None = None,
        profiler: Profiler | None = None,
        startup: Startup | None = None,
    ):
        self._task, self._mesh, self._schedule = task, mesh, schedule
        self._checkpointer, self._monitor, self._stop = checkpointer, monitor, stop
        self._meta, self._evaluate_state, self._count_flops = meta, evaluate, count_flops
        self._profiler, self._startup = profiler or Profiler("", None), startup or Startup()
        self._count_tokens = count_tokens
        # Of a step, by the shape of its examples; for these the step is compiled.
        self._flops: dict[tuple[int, ...], float] = {}

    def run(self, state: TrainState, batches: Batches) -> tuple[TrainState, bool]:
        """Trains from the step of `state` on; to be called once.

        Args:
          state: sharded state; it is donated.
          batches: this host's batches from that step on; closed at the end. They may have several
            lengths of clips and sizes of frames; a program is compiled for each pair.

        Returns:
          The last state, which is saved completely, and whether all steps were done (False after
          SIGTERM or Ctrl-C).

        Raises:
          NonFiniteError: a metric, or anything in the state, is NaN or infinite. The state is
            checked at every logged step and before it is saved, so nothing non-finite is saved.
          UserError: too many records are unreadable, or the disk is full.
        """
        start, finished = int(state.step), True
        with contextlib.closing(batches):
            self._prepare(state)
            # A run that was stopped after this step has saved it, but may not have evaluated it.
            if start and self._schedule.evaluates(start) and not self._is_evaluated(start):
                self._evaluate(start)
            for step in range(start + 1, self._schedule.steps + 1):
                batch = self._next_batch(step, batches)
                self._stop.begins(step, first=step == start + 1)
                metrics = self._dispatch(step, batch)
                if step == start + 1:
                    self._report_startup(step)
                self._record(step, metrics, batches)
                self._wait(AHEAD)
                last = step == self._schedule.steps
                stopping = self._stop.asked(step, last=last)
                if stopping and not last:
                    finished = False
                    self._save_and_stop(step, metrics)
                    break
                if self._schedule.saves(step):
                    self._save(step, metrics)
                if self._schedule.evaluates(step):
                    self._evaluate(step)
        self._monitor.flush()
        self._checkpointer.wait()
        return self._state, finished

    def _prepare(self, state: TrainState) -> None:
        """Makes the step's function and the check of the state, and loads the frozen networks."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        self._state = state
        self._step = jit_step(self._task, self._mesh, shardings)
        self._frozen = self._task.load_frozen(self._mesh)
        self._finite = StateCheck(state, self._mesh)
        # Dispatched steps, oldest first: (step, metrics, codes of the state if it is logged).
        self._in_flight: collections.deque[tuple[int, Any, Any]] = collections.deque()

    def _next_batch(self, step: int, batches: Batches) -> dict[str, jax.Array]:
        """This host's next batch, as its rows of a global one."""
        asked = time.monotonic()
        local = next(batches)
        self._monitor.data_wait(time.monotonic() - asked)
        wanted = (*_CONTENTS, *_PER_EXAMPLE)
        batch = {name: rows for name, rows in local.items() if name in wanted}
        shape = _shape(batch)
        frames, *size = shape
        # A run of single frames alone compiles once, which needs no line of its own.
        if shape not in self._flops and (self._flops or frames > 1):
            what = f"clips of {frames} frames" if frames > 1 else "single frames"
            of = f" of {size[0]}x{size[1]}" if self._count_tokens else ""
            self._monitor.info(f"step {step}: compiling for {what}{of}")
        return to_global(batch, self._mesh)

    def _dispatch(self, step: int, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Gives the devices a step to do; returns its metrics without waiting for them."""
        self._profiler.before(step, self._state)
        shape = _shape(batch)
        with contextlib.ExitStack() as stack:
            if shape not in self._flops and self._flops:  # rates do not count its compilation
                self._wait(0)
                stack.enter_context(self._monitor.pause())
            self._state, metrics = self._step(self._state, batch, self._frozen)
        if shape not in self._flops:  # counted while the devices work
            self._flops[shape] = self._count_flops(self._state, batch, self._frozen)
        examples = len(next(batch[name] for name in _CONTENTS if name in batch))
        tokens = self._count_tokens(batch) if self._count_tokens else 0
        self._monitor.progress(step, self._flops[shape], examples, tokens)
        return metrics

    def _report_startup(self, step: int) -> None:
        """Logs how long the first step took, compilation included, which no rate counts."""
        jax.block_until_ready(self._state)
        self._monitor.info(str(self._startup))
        self._monitor.restart_rates(step)

    def _record(self, step: int, metrics: dict[str, jax.Array], batches: Batches) -> None:
        """Notes a dispatched step, and hands its metrics to the monitor if they are logged."""
        if line := self._profiler.after(step, self._state):
            self._monitor.info(line)
        logged = self._schedule.logs(step)
        codes = self._finite.codes(self._state) if logged else None
        self._in_flight.append((step, metrics, codes))
        if logged:
            self._monitor.push(step, {**metrics, "broken_records": batches.stats()["broken"]})

    def _wait(self, ahead: int) -> None:
        """Waits until at most so many steps are in flight; checks the state of logged ones."""
        while len(self._in_flight) > ahead:
            step, metrics, codes = self._in_flight.popleft()
            jax.block_until_ready(metrics)
            self._monitor.done(step)
            if codes is not None:
                self._monitor.arrived(step)
                self._finite.check(step, codes)

    def _save(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Starts a checkpoint of the state, once all of it is known to be finite."""
        self._wait(0)
        self._monitor.flush()
        # The metrics are of the parameters before the step, so the state after it is checked too.
        check_finite(step, {name: np.asarray(value) for name, value in metrics.items()})
        self._finite.check(step, self._finite.codes(self._state))
        meta = {**self._meta, "history": self._monitor.history()}
        with self._monitor.saving():
            self._checkpointer.save(step, self._state, meta)

    def _save_and_stop(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Saves a step after which a signal stops the run, and says so."""
        self._wait(0)
        began = time.monotonic()
        self._save(step, metrics)
        self._checkpointer.wait()
        seconds = time.monotonic() - began
        self._profiler.close(self._state)
        self._stop.saved(step)
        self._monitor.info(
            f"stopped by {self._stop.name} after step {step}: saved in {seconds:.1f} s, "
            f"{self._stop.again} to go on"
        )

    def _evaluate(self, step: int) -> None:
        """Evaluates a step once it is saved, so that a signal may end the evaluation."""
        self._monitor.flush()
        self._checkpointer.wait()
        self._stop.all_saved(step)
        drawn = self._schedule.draws(step)
        with self._monitor.evaluating(step, drawn=drawn):
            self._evaluate_state(self._state, drawn)
        self._stop.evaluated(step)

    def _is_evaluated(self, step: int) -> bool:
        """Whether the metrics' history has an evaluation of a step; the same on all processes."""
        found = any(
            line["step"] == step and str(line.get("prefix")).startswith("val_")
            for line in self._monitor.history()
        )
        if jax.process_count() > 1:  # only the first process has a history
            found = bool(multihost_utils.broadcast_one_to_all(np.int32(found)))
        return found


def _shape(batch: dict[str, Any]) -> tuple[int, ...]:
    """Frames, height and width of a batch's clips, in pixels or tokens."""
    return tuple(next(batch[name] for name in _CONTENTS if name in batch).shape[1:4])
