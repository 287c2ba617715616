"""SIGTERM: all processes agree on a step after which they save and stop."""

from __future__ import annotations

import signal
from typing import Any, Self

import jax
from jax.experimental import multihost_utils


class _Stopped(BaseException):
    """SIGTERM came when there was nothing left to save; passes through ``except Exception``."""


class StopSignal:
    """Catches SIGTERM while it is entered.

    Before `all_saved` the signal is only noted: the loop asks for it after each step. After
    `all_saved` it ends the context at once.

    With several processes JAX's coordination service handles the signal instead: a SIGTERM to any
    process reaches all of them, and one that comes after the last step has no effect.
    """

    def __init__(self) -> None:
        self._received = False
        self._all_saved = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if jax.process_count() == 1:
            self._before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        if jax.process_count() == 1:
            self._all_saved = False
            signal.signal(signal.SIGTERM, self._before)
        return kind is _Stopped

    def _receive(self, *_: object) -> None:
        self._received = True
        if self._all_saved:
            raise _Stopped

    def asked(self, step: int) -> bool:
        """Whether to save and stop after this step; the same on all processes."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._received

    def all_saved(self) -> None:
        """From now on SIGTERM ends the context; one that was received before ends it here."""
        self._all_saved = True
        if self._received:
            raise _Stopped
