"""How fast a run goes: examples and tokens a second, wait for data, FLOP/s and utilization."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np


class Throughput:
    """Rates of the window between two finished steps.

    Steps are dispatched ahead of the device, so a window ends when its last step is known to be
    finished, not when it was dispatched.

    Args:
      start_step: the step that the run starts or resumes from.
      batch_size: examples in a step, over all processes, unless a step is said to have others.
      unit: what an example is, for the name of its rate.
      peak_flops: FLOP/s of all devices of the run together; None: unknown, so no utilization.

    Attributes:
      names: of the rates.
    """

    def __init__(self, start_step: int, batch_size: int, unit: str, peak_flops: float | None):
        self.names = (
            *(f"{unit}_per_second", "tokens_per_second"),
            *("data_wait", "tflops_per_device", "mfu"),
        )
        self._batch_size, self._unit, self._peak_flops = batch_size, unit, peak_flops
        self._step, self._began = start_step, time.monotonic()  # of the window
        self._waited = 0.0
        # Of the steps dispatched up to one, since the start: FLOPs, examples and tokens.
        self._work: dict[int, np.ndarray] = {start_step: np.zeros(3)}
        self._seconds: collections.deque[float] = collections.deque(maxlen=10)  # a step

    def dispatched(
        self, step: int, flops: float, examples: int | None = None, tokens: int = 0
    ) -> None:
        """Adds a step's useful floating-point operations, examples and tokens, on all devices."""
        count = self._batch_size if examples is None else examples
        before = self._work.get(step - 1, np.zeros(3))
        self._work[step] = before + np.array([flops, count, tokens], np.float64)

    def waited(self, seconds: float) -> None:
        """Adds time for which the loop waited for data."""
        self._waited += seconds

    def restart(self, step: int) -> None:
        """Begins a window at `step`, now finished, and forgets the time before."""
        self._step, self._began, self._waited = step, time.monotonic(), 0.0

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time inside this context does not count."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._began += time.monotonic() - began

    def finished(self, step: int) -> dict[str, float]:
        """Ends the window at `step`, now finished.

        Returns:
          ``images_per_second``, or clips; ``tokens_per_second``, where steps say how many they
          have; ``data_wait``, the share of the time, 0..1;
          ``tflops_per_device``, useful 1e12 FLOP/s; and ``mfu``, their share of the peak, 0..1.
          Nothing for a window of no steps, and the last two only where they are known.
        """
        last, began, now = self._step, self._began, time.monotonic()
        waited = self._waited
        self.restart(step)
        if step <= last or now <= began:
            return {}
        seconds = now - began
        self._seconds.append(seconds / (step - last))
        work = np.array([0.0, (step - last) * self._batch_size, 0.0])
        if step in self._work and last in self._work:
            work = self._work[step] - self._work[last]
        self._work = {done: sum_ for done, sum_ in self._work.items() if done >= step}
        flops, examples, tokens = (float(count) for count in work / seconds)
        rates = {f"{self._unit}_per_second": examples}
        if tokens > 0:
            rates["tokens_per_second"] = tokens
        rates["data_wait"] = min(1.0, waited / seconds)
        if flops > 0:
            rates["tflops_per_device"] = flops / 1e12 / jax.device_count()
            if self._peak_flops:
                rates["mfu"] = flops / self._peak_flops
        return rates

    def seconds_of_step(self) -> float | None:
        """The mean of the last windows; None before the first one ended."""
        return float(np.mean(self._seconds)) if self._seconds else None

    def words(self, rates: dict[str, float]) -> list[str]:
        """The rates of `finished` for a log line."""
        texts: tuple[Callable[[float], str], ...] = (
            lambda rate: f"{rate:.3g} {self._unit}/s",
            lambda rate: f"{rate:.3g} tokens/s",
            lambda wait: f"data wait {wait:.1%}",
            lambda tera: f"{tera:.3g} TFLOP/s a device" if tera >= 0.1
            else f"{tera * 1e3:.3g} GFLOP/s a device",
            lambda mfu: f"mfu {mfu:.1%}",
        )  # fmt: skip
        return [
            text(rates[name]) for name, text in zip(self.names, texts, strict=True) if name in rates
        ]
