"""The log of a run: a progress bar or plain lines, and what `bsq_jax.training.writers` write.

The device never waits for it. `Monitor.push` keeps the metrics of a step on the device, starts
their copy to the host, and writes those of the push before. A step is finished, for the rates, when
its metrics have arrived.
"""

import contextlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self, TextIO

import jax
import numpy as np
import tqdm
from ml_collections import ConfigDict

from bsq_jax.core.text import duration
from bsq_jax.training.deferred_metrics import DeferredMetrics, to_host
from bsq_jax.training.finite_check import check_finite
from bsq_jax.training.remaining import Remaining
from bsq_jax.training.throughput import Throughput
from bsq_jax.training.writers import open_record

_RESERVED = ("step", "time", "prefix")
_UNITS = {"psnr": " dB"} | dict.fromkeys(
    ("token_entropy", "codebook_entropy", "bit_entropy", "cross_entropy"), " bits"
)


class Monitor:
    """Writes what happens in a run to the terminal and to the writers of its record.

    On a terminal it draws a progress bar; elsewhere it prints a line for each call of `log`. On
    every process but the main one it writes nothing, and may be called all the same.

    When a run resumes, lines of later steps go from ``metrics.jsonl``, so that each step is there
    once. `flush` before a checkpoint makes the record reach that step.

    Args:
      workdir: folder of the run.
      total_steps: where the run will end.
      start_step: the step it starts or resumes from; from 0 the file begins anew.
      batch_size: examples in a step, over all hosts.
      is_main: whether this process writes; by default process 0 does.
      unit: what an example is, ``images`` or ``clips``, for the name of the rate.
      stream: where lines or bar go; standard error by default.
      bar: whether to draw a bar; by default if ``stream`` is a terminal.
      show: names of the training metrics to show in lines and bar, where present.
      history: what an earlier `history` gave, used if ``metrics.jsonl`` has been lost.
      peak_flops: FLOP/s of all devices of the run together, for the utilization; None: unknown.
      remaining: estimates what saves and evaluations take; None: there are none.
      progress: called with each record that ``metrics.jsonl`` gets; None: nothing is.
      wandb: project of Weights & Biases to write to as well; empty: none.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        total_steps: int,
        start_step: int = 0,
        batch_size: int,
        unit: str = "images",
        is_main: bool | None = None,
        stream: TextIO | None = None,
        bar: bool | None = None,
        show: Sequence[str] = ("loss", "psnr"),
        history: Sequence[dict[str, Any]] = (),
        peak_flops: float | None = None,
        remaining: Remaining | None = None,
        progress: Callable[[dict[str, Any]], None] | None = None,
        wandb: str = "",
    ):
        self._total = total_steps
        self._remaining = remaining or Remaining()
        self._show, self._progress = tuple(show), progress
        self._is_main = jax.process_index() == 0 if is_main is None else is_main
        self._stream = sys.stderr if stream is None else stream
        self._deferred = DeferredMetrics()
        self._throughput = Throughput(start_step, batch_size, unit, peak_flops)
        self._bar: tqdm.tqdm | None = None
        if not self._is_main:
            return
        folder = pathlib.Path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        self._record = open_record(
            folder, start_step=start_step, history=history, wandb=wandb, say=self.info
        )
        if _can_draw(self._stream) if bar is None else bar:
            self._bar = tqdm.tqdm(
                total=total_steps,
                initial=start_step,
                file=self._stream,
                dynamic_ncols=True,
                smoothing=0.05,
                bar_format="{percentage:3.0f}%|{bar:20}| {n}/{total} [{elapsed}{desc}]{postfix}",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None and issubclass(kind, Exception))

    def push(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Logs the training metrics of a step one push later, so that the device never waits.

        They are logged with the rates of the window that their step ends, see `Throughput`.

        Args:
          step: the step just dispatched.
          metrics: by name, scalars or arrays still on the device.

        Raises:
          NonFiniteError: a value of the push before is not finite (it has been logged).
        """
        self._write_train(self._deferred.push(step, metrics))

    def arrived(self, step: int) -> None:
        """Logs what `push` still holds if it is of this step, which is done, or of one before.

        Raises:
          NonFiniteError: a value is not finite (it has been logged).
        """
        if self._deferred.step is not None and self._deferred.step <= step:
            self._write_train(self._deferred.flush())

    def flush(self) -> None:
        """Logs what `push` still holds; for checkpoints and the end of the run.

        Raises:
          NonFiniteError: a value is not finite (it has been logged).
        """
        self._write_train(self._deferred.flush())
        if self._is_main:
            self._record.flush()

    def log(self, step: int, metrics: Mapping[str, Any], prefix: str = "train") -> None:
        """Writes metrics now; they are on the host, or this call waits for them.

        For the prefix ``train`` it adds the rates that `push` adds.

        Args:
          step: the step they belong to.
          metrics: by name, numbers or arrays.
          prefix: their group in the record, such as ``train`` or ``validation``.

        Raises:
          ValueError: a metric is called ``step``, ``time`` or ``prefix``.
        """
        values = {name: to_host(value) for name, value in metrics.items()}
        rates = (
            self._throughput.finished(step) if prefix == "train" else {}
        )  # once the values are there
        self._write(step, values | rates, prefix)

    def progress(
        self, step: int, flops: float = 0.0, examples: int | None = None, tokens: int = 0
    ) -> None:
        """Moves the bar; cheap enough to call at every step.

        Args:
          step: just dispatched.
          flops: useful floating-point operations in it, on all devices; 0 where nobody counts.
          examples: in it, on all devices; None: the usual number.
          tokens: in it, on all devices; 0 where nobody counts, because all steps have as many.
        """
        self._throughput.dispatched(step, flops, examples, tokens)
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def data_wait(self, seconds: float) -> None:
        """Adds to the time for which the loop has waited for data."""
        self._throughput.waited(seconds)

    def restart_rates(self, step: int) -> None:
        """Counts the rates from now on, when `step` is done: before it there was compilation."""
        self._throughput.restart(step)
        self._remaining.started(step)

    def done(self, step: int) -> None:
        """Says how long the run will take, once the first steps that are done are timed."""
        if line := self._remaining.first_estimate(step):
            self.info(line)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time inside this context, as for evaluation, does not count in the rates.

        The device should have finished what it was given before: its time would not count either.
        """
        with self._throughput.pause(), self._remaining.pause():
            yield

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """As `pause`, while training waits for a checkpoint."""
        with self.pause(), self._remaining.saving():
            yield

    @contextlib.contextmanager
    def evaluating(self, step: int, *, drawn: bool) -> Iterator[None]:
        """As `pause`, while a step is evaluated, with pictures or without."""
        seconds = self._remaining.last_evaluation(drawn=drawn)
        last = "" if seconds is None else f": the last time it took {duration(seconds)}"
        self.info(f"step {step}/{self._total}  evaluating{last}")
        with self.pause(), self._remaining.evaluating(drawn=drawn):
            yield

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Writes a picture, uint8 [height, width, channel 3], to the record."""
        if self._is_main:
            self._record.picture(step, name, picture)

    def describe(self, config: ConfigDict) -> None:
        """Writes the settings of the run, a finalised config, to the record."""
        if self._is_main:
            self._record.describe(config)

    def history(self) -> list[dict[str, Any]]:
        """At most 200 of the lines written so far, evenly spread, the newest among them."""
        return self._record.history() if self._is_main else []

    def info(self, line: str) -> None:
        """Prints a line; a bar stays whole below it."""
        if not self._is_main:
            return
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)

    def close(self, *, failed: bool = False) -> None:
        """Closes bar and files. What `push` still holds is not written: `flush` first.

        Args:
          failed: whether the run ends by an error; one that a signal stops does not.
        """
        if not self._is_main:
            return
        if self._bar is not None:
            self._bar.close()
        self._record.close(failed=failed)

    def _write_train(self, ready: tuple[int, dict[str, Any]] | None) -> None:
        if ready is not None:
            step, values = ready
            self._write(step, values | self._throughput.finished(step), "train")
            check_finite(step, values)

    def _write(self, step: int, metrics: dict[str, Any], prefix: str) -> None:
        if clash := [name for name in metrics if name in _RESERVED]:
            raise ValueError(f"a metric may not be called {clash[0]!r}")
        if not self._is_main:
            return
        self._record.write(step, prefix, metrics)
        words, eta = self._words(metrics, prefix), self._eta(step)
        if prefix == "train" and self._bar is not None:
            self.progress(max(step, self._bar.n))
            self._bar.set_description_str(eta and f"<{eta}", refresh=False)
            self._bar.set_postfix_str("  ".join(words))
        elif prefix == "train":
            words += [f"eta {eta}"] if eta else []
            self.info("  ".join([f"step {step}/{self._total}", *words]))
        else:
            self.info("  ".join([f"step {step}/{self._total}  {prefix}:", *words]))
        if self._progress is not None:
            self._progress(self._record.last)

    def _eta(self, step: int) -> str:
        """The time to the end of the run, evaluations included; empty before it is known."""
        of_step = self._throughput.seconds_of_step()
        if of_step is None:
            return ""
        steps = max(self._total - step, 0) * of_step
        return duration(steps + self._remaining.beside(step, of_step))

    def _words(self, metrics: dict[str, Any], prefix: str) -> list[str]:
        """The metrics that a line shows, as text."""
        scalars = {name: value for name, value in metrics.items() if isinstance(value, float)}
        rates = {name: scalars.pop(name) for name in self._throughput.names if name in scalars}
        if prefix == "train":
            chosen = [name for name in self._show if name in scalars] or list(scalars)[:3]
        else:
            chosen = list(scalars)[:8]
        words = [f"{name} {scalars[name]:.4g}{_UNITS.get(name, '')}" for name in chosen]
        return words + self._throughput.words(rates)


def _can_draw(stream: TextIO) -> bool:
    """Whether it is a terminal that knows its size; tqdm draws nothing on one of no lines."""
    return stream.isatty() and os.get_terminal_size(stream.fileno()).lines > 1
