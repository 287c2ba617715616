"""How far something long is: a bar on a terminal, and elsewhere a line now and then."""

from __future__ import annotations

import contextlib
import contextvars
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import tqdm

from bsq_jax.core.text import duration

T = TypeVar("T")
_EVERY = 10.0  # seconds from one line to the next; later a tenth of the time since the beginning
_label: contextvars.ContextVar[str] = contextvars.ContextVar("label", default="")


@contextlib.contextmanager
def labelled(label: str) -> Iterator[None]:
    """Inside, `progress` says what it is the progress of."""
    token = _label.set(label)
    try:
        yield
    finally:
        _label.reset(token)


@contextlib.contextmanager
def progress(
    total: int, unit: str, *, quiet: bool = False
) -> Iterator[Callable[[Iterable[T], Callable[[T], int]], Iterator[T]]]:
    """Shows on standard error how much has passed by.

    Args:
      total: how much there will be.
      unit: of what.
      quiet: show nothing.

    Yields:
      A function that hands an iterable through and counts the size of each element once it has been
      used.
    """
    shown: Any = _Lines(total, unit)
    if quiet or sys.stderr.isatty():
        label = _label.get() or None
        shown = tqdm.tqdm(total=total, unit=f" {unit}", desc=label, disable=quiet, leave=False)

    def advance(elements: Iterable[T], size: Callable[[T], int]) -> Iterator[T]:
        for element in elements:
            yield element
            shown.update(size(element))

    with shown:
        yield advance


class _Lines(contextlib.AbstractContextManager["_Lines"]):
    """Lines such as ``evaluating: 96 of 250 examples, 12s left``."""

    def __init__(self, total: int, unit: str) -> None:
        self._total, self._unit, self._done = total, unit, 0
        self._label = f"{_label.get()}: " if _label.get() else ""
        self._began = self._last = time.monotonic()

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int) -> None:
        """Counts, and writes a line if it is time for one."""
        self._done += count
        now = time.monotonic()
        elapsed = now - self._began
        if self._done >= self._total or now - self._last < max(_EVERY, elapsed / 10):
            return
        self._last = now
        left = elapsed * (self._total - self._done) / max(self._done, 1)
        counted = f"{self._done:,d} of {self._total:,d} {self._unit}"
        line = f"{self._label}{counted}, {duration(left)} left"
        print(line, file=sys.stderr, flush=True)
