"""SIGTERM and Ctrl-C: all processes agree on a step after which they save and stop."""

from __future__ import annotations

import _thread
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, Protocol, Self

import jax
from jax.experimental import multihost_utils

from bsq_jax.core import failures
from bsq_jax.core.errors import INTERRUPTED, RUN_AGAIN, Interrupted
from bsq_jax.core.sharding import gather_strings
from bsq_jax.core.signals import PRESS_AGAIN, Presses, SignalWatch, leave, say

_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class Saves(Protocol):
    """What is saved, see `bsq_jax.training.checkpoint.Checkpointer`."""

    @property
    def complete(self) -> int | None:
        """The newest step that is completely saved."""
        ...

    @property
    def under_way(self) -> int | None:
        """The step that is being saved."""
        ...


class _Stopped(BaseException):
    """A signal came when there was nothing left to save; passes through ``except Exception``."""


class StopSignal:
    """Catches SIGTERM and Ctrl-C while it is entered.

    While a step is under way (`begins`) a signal is only noted: the loop asks for it after each
    step, and saves. Before the first step and after `all_saved` it ends the context at once. A
    second Ctrl-C ends the process at once, and says what is lost.

    Signals are also read by a thread, because a handler in Python does not run while XLA compiles
    or computes: the thread answers Ctrl-C at once, and ends the process at the second one.

    With several processes JAX's coordination service handles SIGTERM instead: a SIGTERM to any
    process reaches all of them, and one that comes after the last step has no effect. Ctrl-C takes
    the same way, and where nothing is to be saved it ends all processes at once.

    A process that ignores Ctrl-C when it starts, as in the background of a script, goes on so.
    Outside the main thread no signal is caught.

    Args:
      again: what goes on with the run, for messages.
      owns_process: whether the process is the run's. If it is the user's own, a second Ctrl-C
        raises `Interrupted` as soon as Python gets to it, and who enters the context says what
        stopped it (`told`).

    Attributes:
      again: see above.
      saves: knows what is saved, once there are checkpoints.
      say: shows a line.
    """

    def __init__(
        self, *, again: str = "run the same command again", owns_process: bool = True
    ) -> None:
        self.again = again
        self.saves: Saves | None = None
        self.say: Callable[[str], None] = say
        self._owns_process, self._leaving = owns_process, False
        self._received: signal.Signals | None = None
        self._presses = Presses()
        self._lock = threading.RLock()  # a handler may interrupt the thread that holds it
        self._step: int | None = None  # to be finished, when a signal comes
        self._compiling = False
        self._over = False
        self._where, self._kept = "before the first step", "nothing is lost"
        self._goal = "begin"
        self._before: dict[signal.Signals, Any] = {}
        self._watch: SignalWatch | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self  # nowhere else can signals be caught
        numbers: list[signal.Signals] = []
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            numbers.append(signal.SIGINT)
        if jax.process_count() == 1:
            numbers.append(signal.SIGTERM)
        self._watch = SignalWatch(self._noticed)
        self._watch.start()
        self._before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        if self._watch is not None:
            self._over = True  # a signal that comes now raises nothing
            for number, before in self._before.items():
                signal.signal(number, before or signal.SIG_DFL)  # None: one that is not Python's
            self._watch.stop()
        if kind is _Stopped and self._owns_process and not jax.process_index():
            say(self.told)
        return kind is _Stopped

    @property
    def name(self) -> str:
        """What came: ``Ctrl-C`` or ``SIGTERM``."""
        return _NAMES[self._received or signal.SIGTERM]

    @property
    def status(self) -> int:
        """Exit status of a run that was stopped: launchers start it again after SIGTERM alone."""
        return INTERRUPTED if self._received == signal.SIGINT else RUN_AGAIN

    @property
    def told(self) -> str:
        """What stopped the run, and where, as a line."""
        return f"stopped by {self.name} {self._where}: {self._kept}, {self.again} to {self._goal}"

    def resumes(self, step: int) -> None:
        """The run goes on from a checkpoint of this step; to be called before the first step."""
        self._where, self._kept = f"before step {step + 1}", f"step {step} is saved"
        self._goal = "go on"

    def begins(self, step: int, *, first: bool = False) -> None:
        """A step begins, the first one by being compiled: it will be finished and saved."""
        with self._lock:
            self._step, self._compiling = step, first

    def asked(self, step: int, *, last: bool = False) -> bool:
        """Whether to save and stop after this step; the same on all processes."""
        if jax.process_count() > 1:
            if not multihost_utils.reached_preemption_sync_point(step):
                return False
            self._agree()
            return True
        with self._lock:
            if self._received is not None:
                return True
            self._step, self._compiling = step if last else step + 1, False
            return False

    def all_saved(self, step: int, goal: str = "go on") -> None:
        """A saved step will be evaluated: from now on a signal ends the context.

        One that was received before ends it here.

        Args:
          step: the step.
          goal: what the same command does when it is run again.
        """
        with self._lock:
            self._step, self._goal = None, goal
            self._where, self._kept = f"in the evaluation of step {step}", "the step is saved"
        if jax.process_count() > 1:
            self._agree()
        if self._received is not None:
            raise _Stopped

    def saved(self, step: int) -> None:
        """The step after which a signal stopped the run is saved."""
        with self._lock:
            self._where, self._kept = f"after step {step}", "the step is saved"
            self._goal = "go on"

    def evaluated(self, step: int) -> None:
        """The evaluation that `all_saved` announced has ended; there is nothing new to save."""
        with self._lock:
            self._where = f"after step {step}"

    def _agree(self) -> None:
        """All processes take one that received Ctrl-C as their own (a collective call)."""
        mine = self._received == signal.SIGINT
        if gather_strings([_NAMES[signal.SIGINT]] if mine else []):
            self._received = signal.SIGINT

    def _handle(self, number: int, _: object) -> None:
        """In the main thread, as soon as it is in Python."""
        if self._over or jax.process_count() > 1:
            return  # of several processes the thread does all
        self._note(signal.Signals(number))
        if self._leaving:
            self._leaving = False  # what ends the run is not interrupted once more
            raise Interrupted(self._lost(self._step))
        if self._step is None:
            raise _Stopped

    def _note(self, number: signal.Signals) -> None:
        if self._received != signal.SIGINT:  # which tells launchers not to start again
            self._received = number

    def _noticed(self, number: int) -> None:
        """Answers Ctrl-C, in a thread that also runs while the main one computes."""
        if number != signal.SIGINT:
            return
        with self._lock:
            press = 0 if self._over else self._presses.add()
            if not press:
                return
            self._note(signal.SIGINT)
            step = self._step
            several = jax.process_count() > 1
        if step is None and several:
            failures.end(INTERRUPTED, self.told)
        if press > 1 and (several or self._owns_process):
            _leave(self._lost(step))
        elif press > 1:
            self._leaving = True
            if press == 2:
                _thread.interrupt_main()  # its handler may have run before this line
        elif step is None:
            self.say(f"Ctrl-C {self._where}: leaving, {self._kept}; {PRESS_AGAIN}")
        elif several:
            self.say(f"Ctrl-C: all processes finish the same step and save; {PRESS_AGAIN}")
            os.kill(os.getpid(), signal.SIGTERM)  # which JAX tells all processes
        else:
            compiled = " (it is being compiled, which cannot be cut short)" * self._compiling
            self.say(f"Ctrl-C: finishing step {step}{compiled} and saving; {PRESS_AGAIN}")

    def _lost(self, step: int | None) -> str:
        """What leaving at once means."""
        if step is None:
            return f"left at once {self._where}: {self._kept}"
        complete = self.saves.complete if self.saves else None
        under_way = self.saves.under_way if self.saves else None
        during = "" if under_way is None else f" while step {under_way} was being saved"
        if complete is None:
            return f"left at once{during}: no step had been saved, all are lost"
        return f"left at once{during}: the steps after {complete} are lost"


def _leave(line: str) -> None:
    """Ends this process, and the others of the run with it."""
    if jax.process_count() > 1:
        failures.end(INTERRUPTED, line)
    leave(line)
