"""All writers of a run as one."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bsq_jax.training.writers.json_lines import JsonLines
from bsq_jax.training.writers.tensorboard import TensorBoard
from bsq_jax.training.writers.wandb_run import WandbRun
from bsq_jax.training.writers.writer import MetricWriter, Values


class Record:
    """A `MetricWriter` that hands everything to each of several.

    Args:
      lines: the one that remembers what was written.
      others: the rest.
    """

    def __init__(self, lines: JsonLines, others: Sequence[MetricWriter] = ()):
        self._lines = lines
        self._writers: tuple[MetricWriter, ...] = (lines, *others)

    def describe(self, config: ConfigDict) -> None:
        """See `MetricWriter`."""
        for writer in self._writers:
            writer.describe(config)

    def write(self, step: int, prefix: str, values: Values) -> None:
        """See `MetricWriter`."""
        for writer in self._writers:
            writer.write(step, prefix, values)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """See `MetricWriter`."""
        for writer in self._writers:
            writer.picture(step, name, picture)

    @property
    def last(self) -> dict[str, Any]:
        """See `JsonLines`."""
        return self._lines.last

    def history(self) -> list[dict[str, Any]]:
        """See `JsonLines.history`."""
        return self._lines.history()

    def flush(self) -> None:
        """See `MetricWriter`."""
        for writer in self._writers:
            writer.flush()

    def close(self, *, failed: bool = False) -> None:
        """See `MetricWriter`. An error of one writer rises once all are closed."""
        with contextlib.ExitStack() as stack:
            for writer in reversed(self._writers):  # what is entered last is called first
                stack.callback(writer.close, failed=failed)


def open_record(
    folder: pathlib.Path,
    *,
    start_step: int = 0,
    history: Sequence[dict[str, Any]] = (),
    wandb: str = "",
    say: Callable[[str], None] = print,
) -> Record:
    """Opens the writers of a run: this is the one place that lists them.

    Args:
      folder: the workdir, which exists.
      start_step: the step that the run starts or resumes from: the same record goes on after it.
      history: what an earlier `Record.history` gave, used if ``metrics.jsonl`` has been lost.
      wandb: project of Weights & Biases, see `WandbRun`; empty for none.
      say: prints a line for the user.
    """
    with contextlib.ExitStack() as opened:  # closed if a later one cannot be opened
        lines = JsonLines(folder / "metrics.jsonl", start_step, history)
        opened.callback(lines.close)
        board = TensorBoard(folder / "tensorboard", start_step)
        opened.callback(board.close)
        others: list[MetricWriter] = [board]
        if wandb:
            others.append(WandbRun(folder, wandb, start_step, say))
        opened.pop_all()
    return Record(lines, others)
