"""Warnings about data that are said once, however often a run opens its sources."""

import functools

from absl import logging


@functools.cache
def warn_once(text: str) -> None:
    """Logs a warning the first time that this process has it."""
    logging.warning("%s", text)
