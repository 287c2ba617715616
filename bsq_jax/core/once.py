"""Lines for the log that are said once, however often what they tell of is met."""

from __future__ import annotations

import functools
import logging


@functools.cache
def say_once(line: str) -> None:
    """Logs a warning, unless this process has logged the same before."""
    logging.getLogger("bsq_jax").warning("%s", line)


def forget() -> None:
    """From now on lines count as not logged before: another run begins in this process."""
    say_once.cache_clear()
