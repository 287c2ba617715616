"""Metrics that stay on the device until the host needs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


class DeferredMetrics:
    """Holds the metrics of one step on the device until those of the next are there."""

    def __init__(self) -> None:
        self._pending: tuple[int, dict[str, Any]] | None = None

    @property
    def step(self) -> int | None:
        """The step whose metrics are held; None when there are none."""
        return None if self._pending is None else self._pending[0]

    def push(self, step: int, metrics: Mapping[str, Any]) -> tuple[int, dict[str, Any]] | None:
        """Takes the metrics of a step, starts copying them, and returns those of the push before.

        Args:
          step: the step that they belong to.
          metrics: by name, ``jax.Array`` (replicated, where there are several hosts) or numbers.

        Returns:
          ``(step, values)`` of the push before, as floats or, for arrays with axes, numpy arrays;
          None for the first.
        """
        for value in metrics.values():
            if isinstance(value, jax.Array):
                value.copy_to_host_async()
        ready = self.flush()
        self._pending = (step, dict(metrics))
        return ready

    def flush(self) -> tuple[int, dict[str, Any]] | None:
        """Waits for the metrics that are still held and returns them; None when there are none."""
        if self._pending is None:
            return None
        (step, metrics), self._pending = self._pending, None
        return step, {name: to_host(value) for name, value in metrics.items()}


def to_host(value: Any) -> Any:
    """A float, or a numpy array of floats when it has axes."""
    array = np.asarray(value)
    return float(array) if array.ndim == 0 else array.astype(np.float32)
