"""The training loop. It is handed a task and knows nothing of models and losses."""

from __future__ import annotations

import collections
import contextlib
import signal
import time
from collections.abc import Callable
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from bsq_jax.core.sharding import host_shard, to_global
from bsq_jax.data.batches import Batches
from bsq_jax.training.checkpoint import Checkpointer
from bsq_jax.training.deferred import StateCheck, check_finite
from bsq_jax.training.monitor import Monitor
from bsq_jax.training.profiling import Profiler, Startup
from bsq_jax.training.state import TrainState, jit_step

_CONTENTS = ("pixels", "bits")  # one of them is in a batch, ``[batch, time, ...]``
# Steps that the devices have yet to finish when the loop gives them another one. One that waits
# while another runs keeps them busy; more would only hold their batches in memory, and be waited
# for when the run ends: 50 were on a CPU.
AHEAD = 2
_BESIDE = ("frames", "label")  # what a step is given besides, as far as it is there


class _Stopped(BaseException):
    """SIGTERM came when there was nothing left to save; passes through ``except Exception``."""


class StopSignal:
    """Notices SIGTERM while it is entered, and lets all hosts agree on the step to stop at.

    Once all is saved, SIGTERM ends the context there and then.

    With several processes JAX's coordination service has a handler of its own: a SIGTERM to any of
    them is known to all, and one that comes after the last step changes nothing.
    """

    def __init__(self) -> None:
        self._asked = False
        self._all_saved = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if jax.process_count() == 1:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        if jax.process_count() == 1:
            self._all_saved = False
            signal.signal(signal.SIGTERM, self._before)
        return kind is _Stopped

    def _note(self, *_: object) -> None:
        self._asked = True
        if self._all_saved:
            raise _Stopped

    def asked(self, step: int) -> bool:
        """Whether to save and stop after this step; the same on all hosts."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._asked

    def all_saved(self) -> None:
        """From now on SIGTERM ends the context, at once where it has come already."""
        self._all_saved = True
        if self._asked:
            raise _Stopped


def train(
    task: Any,
    mesh: jax.sharding.Mesh,
    make_batches: Callable[[int, int, int], Batches],
    *,
    state: TrainState,
    steps: int,
    batch_size: int,
    checkpointer: Checkpointer,
    monitor: Monitor,
    stop: StopSignal,
    meta: dict[str, Any],
    log_every: int,
    checkpoint_every: int,
    evaluate: Callable[[TrainState, bool], Any],
    evaluate_every: int = 0,
    picture_every: int = 0,
    count_flops: Callable[..., float] = lambda *_: 0.0,
    profiler: Profiler | None = None,
    startup: Startup | None = None,
) -> tuple[TrainState, bool]:
    """Trains from the step that `state` is at up to `steps`.

    Args:
      task: has ``train_step(state, batch, frozen) -> (state, metrics)``, and ``load_frozen(mesh)``
        for the parameters of frozen networks that it takes.
      mesh: the run's mesh.
      make_batches: ``(start_step, shard_index, shard_count)`` to this host's batches. They may have
        several lengths of clips; a program is compiled for each.
      state: sharded state; it is donated.
      steps: where to end.
      batch_size: global.
      checkpointer: where to save.
      monitor: where to log.
      stop: entered by the caller; says when to save and leave.
      meta: what goes beside the state into each checkpoint; the metrics' history is added.
      log_every: steps between log lines.
      checkpoint_every: steps between checkpoints; there is always one at the end.
      evaluate: called with the state and whether to make pictures.
      evaluate_every: steps between evaluations; 0 for none before the end.
      picture_every: steps between pictures; 0 for none before the end.
      count_flops: useful floating-point operations of a step, from what the task's step takes.
      profiler: records some of the steps.
      startup: made when the program began, for the log.

    Returns:
      The last state, which is saved completely, and whether all steps were done (False after
      SIGTERM).

    Raises:
      NonFiniteError: a metric, or anything in the state, is NaN or infinite. The state is looked at
        every `log_every` steps and before it is saved, so that nothing non-finite is ever saved.
      UserError: too many records are unreadable, or the disk is full.
    """
    shard = host_shard(mesh, batch_size)
    start = int(state.step)
    batches = make_batches(start, shard.index, shard.count)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step_fn = jit_step(task, mesh, shardings)

    flops: dict[int, float] = {}  # of a step, by the length of the clips; its keys are compiled
    startup, profiler = startup or Startup(), profiler or Profiler("", None)
    frozen = task.load_frozen(mesh)
    finite = StateCheck(state, mesh)
    # Steps given to the devices, oldest first: (step, what is there when it is done, codes of its
    # state if it is to be logged).
    under_way: collections.deque[tuple[int, Any, Any]] = collections.deque()

    def settle(ahead: int) -> None:
        """Waits until no more than so many steps are under way, and looks at what is done."""
        while len(under_way) > ahead:
            step, done, codes = under_way.popleft()
            jax.block_until_ready(done)
            if codes is not None:
                monitor.arrived(step)
                finite.check(step, codes)

    def save(step: int, values: dict[str, Any]) -> None:
        settle(0)
        monitor.flush()
        # Waits for the device, but only here: a broken state must not replace a good one. The
        # metrics are of the parameters before the step, so the state after it is looked at as well.
        check_finite(step, {name: np.asarray(value) for name, value in values.items()})
        finite.check(step, finite.codes(state))
        checkpointer.save(step, state, {**meta, "history": monitor.history()})

    def due(step: int) -> list[bool]:
        """Whether an evaluation is due after a step, and whether pictures are."""
        return [bool(every) and step % every == 0 for every in (evaluate_every, picture_every)]

    def look(step: int) -> None:
        with monitor.pause():
            evaluate(state, due(step)[1])

    finished = True
    with contextlib.closing(batches):
        # A run that was stopped after this step has saved it, but may not have evaluated it.
        if start and any(due(start)) and not _is_evaluated(start, monitor):
            look(start)
        for step in range(start + 1, steps + 1):
            asked = time.monotonic()
            local = next(batches)
            monitor.data_wait(time.monotonic() - asked)
            data = {name: rows for name, rows in local.items() if name in (*_CONTENTS, *_BESIDE)}
            frames = next(data[name] for name in _CONTENTS if name in data).shape[1]
            if frames not in flops and (flops or frames > 1):  # the wait has a reason
                what = f"clips of {frames} frames" if frames > 1 else "single frames"
                monitor.info(f"step {step}: compiling for {what}")
            batch = to_global(data, mesh)
            profiler.before(step, state)
            state, values = step_fn(state, batch, frozen)
            if frames not in flops:  # while the devices work
                flops[frames] = count_flops(state, batch, frozen)
            monitor.progress(step, flops[frames])
            if step == start + 1:
                jax.block_until_ready(state)
                monitor.info(str(startup))
                monitor.restart_rates(step)
            if line := profiler.after(step, state):
                monitor.info(line)
            last = step == steps
            logged = step % log_every == 0 or last
            under_way.append((step, values, finite.codes(state) if logged else None))
            if logged:
                monitor.push(step, {**values, "broken_records": batches.stats()["broken"]})
            settle(AHEAD)
            stopping = stop.asked(step)
            if step % checkpoint_every == 0 or last or stopping:
                save(step, values)
            if stopping and not last:
                finished = False
                profiler.close(state)
                break
            if any(due(step)) and not last:
                settle(0)  # the steps under way belong to training's time
                monitor.flush()
                jax.block_until_ready(state)
                look(step)
    monitor.flush()
    checkpointer.wait()
    if not finished:
        monitor.info(f"stopped by a signal after step {step}: saved, run again to go on")
    return state, finished


def _is_evaluated(step: int, monitor: Monitor) -> bool:
    """Whether the metrics' history holds an evaluation of a step; the same on all hosts."""
    found = any(
        line["step"] == step and str(line.get("prefix")).startswith("val_")
        for line in monitor.history()
    )
    if jax.process_count() > 1:  # only the first process has a history
        found = bool(multihost_utils.broadcast_one_to_all(np.int32(found)))
    return found
