"""Signals that are noticed while the main thread compiles or computes, and Ctrl-C for commands."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from bsq_jax.core.errors import INTERRUPTED

PRESS_AGAIN = "press it again to leave at once"
# Seconds in which a second Ctrl-C counts as the first one: a terminal sends it to all processes,
# and some programs that start others pass it on once more.
ONE_PRESS = 0.3
_PATIENCE = 1.0  # seconds until a command that does not end says that it has noticed


class SignalWatch:
    """Calls a function in a thread of its own for each signal that Python handles.

    A handler in Python runs in the main thread, and not before that has come back from XLA.

    Args:
      called: with the number of the signal.
    """

    def __init__(self, called: Callable[[int], None]) -> None:
        self._called = called
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._output, self._input = -1, -1
        self._before = -1

    def start(self) -> None:
        """To be called in the main thread."""
        self._output, self._input = os.pipe()
        os.set_blocking(self._input, False)
        self._thread.start()
        self._before = signal.set_wakeup_fd(self._input, warn_on_full_buffer=False)

    def stop(self) -> None:
        """Ends the thread, once it has handled what came before."""
        signal.set_wakeup_fd(self._before)
        os.write(self._input, b"\0")
        self._thread.join()
        os.close(self._input)
        os.close(self._output)

    def _watch(self) -> None:
        while True:
            for number in os.read(self._output, 64):
                if not number:
                    return
                self._called(number)


class Presses:
    """Counts how often Ctrl-C was pressed."""

    def __init__(self) -> None:
        self._count, self._last = 0, time.monotonic() - ONE_PRESS

    def add(self) -> int:
        """How often with this one; 0 if it is the one before once more."""
        now = time.monotonic()
        same = self._count > 0 and now - self._last < ONE_PRESS
        self._last = now
        self._count += not same
        return 0 if same else self._count


@contextlib.contextmanager
def answered() -> Iterator[None]:
    """Inside, Ctrl-C is a ``KeyboardInterrupt`` as ever, but is answered where that takes long.

    A second Ctrl-C ends the process at once.
    """
    usual = signal.getsignal(signal.SIGINT) == signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    presses, over = Presses(), threading.Event()

    def noticed() -> None:
        if not over.is_set():
            say(f"Ctrl-C: stopping as soon as it can be; {PRESS_AGAIN}")

    # Not in the thread that reads the signals: presses count by when they are read.
    patience = threading.Timer(_PATIENCE, noticed)
    patience.daemon = True

    def called(number: int) -> None:
        if number != signal.SIGINT or signal.getsignal(number) != signal.default_int_handler:
            return  # another one handles it
        press = presses.add()
        if press == 1:
            patience.start()
        elif press > 1 and not over.is_set():
            leave("left at once")

    watch = SignalWatch(called)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.stop()
        patience.cancel()


def leave(line: str) -> None:
    """Ends this process at once, with the status of Ctrl-C."""
    say(line)
    os._exit(INTERRUPTED)


def say(line: str) -> None:
    """Writes a line to standard error."""
    # After the ^C of a terminal, or a bar.
    print(("\n" if sys.stderr.isatty() else "") + line, file=sys.stderr, flush=True)
