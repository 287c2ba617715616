"""Progress bars on a terminal; elsewhere nothing is drawn."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import tqdm

T = TypeVar("T")


@contextlib.contextmanager
def progress(
    total: int, unit: str, *, quiet: bool = False
) -> Iterator[Callable[[Iterable[T], Callable[[T], int]], Iterator[T]]]:
    """A bar for what passes by.

    Args:
      total: how much there will be.
      unit: of what.
      quiet: draw nothing.

    Yields:
      A function that hands an iterable through and moves the bar by the size of each element.
    """
    hidden = quiet or not sys.stderr.isatty()
    bar: Any = tqdm.tqdm(total=total, unit=f" {unit}", disable=hidden, leave=False)

    def advance(elements: Iterable[T], size: Callable[[T], int]) -> Iterator[T]:
        for element in elements:
            yield element
            bar.update(size(element))

    with bar:
        yield advance
