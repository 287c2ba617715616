"""``metrics.jsonl``: a line of JSON for each logged step and each evaluation."""

from __future__ import annotations

import contextlib
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bsq_jax.core.files import write_atomic
from bsq_jax.training.writers.writer import Values

_HISTORY = 200  # entries at most: enough for a curve, little enough for every checkpoint


class JsonLines:
    """Writes ``metrics.jsonl``.

    When a run resumes, lines of later steps go from the file, so that each step is there once; from
    step 0 it begins anew.

    Args:
      path: of the file.
      start_step: the step that the run starts or resumes from.
      history: what an earlier `history` gave, used if the file has been lost.

    Attributes:
      last: the newest line that this writer has added, as a dict; empty before the first.
    """

    def __init__(
        self, path: pathlib.Path, start_step: int = 0, history: Sequence[dict[str, Any]] = ()
    ):
        kept = _kept_lines(path, start_step, history)
        self._history = [_scalars(line) for line in kept]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomic(path, text.encode())
        self._file = path.open("a", buffering=1)
        self.last: dict[str, Any] = {}

    def describe(self, config: ConfigDict) -> None:
        """Writes nothing: the settings are in ``config.json``."""

    def write(self, step: int, prefix: str, values: Values) -> None:
        """Adds a line; what JSON cannot say (NaN and infinities) is null."""
        line = {"step": step, "time": round(time.time(), 3), "prefix": prefix}
        line |= {name: _to_json(value) for name, value in values.items()}
        self._file.write(json.dumps(line) + "\n")
        self._history.append(_scalars(line))
        self.last = line

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Writes nothing: the pictures are files of the workdir."""

    def history(self) -> list[dict[str, Any]]:
        """At most 200 of the lines written so far, evenly spread, the newest among them."""
        every = -(-len(self._history) // _HISTORY) or 1
        return self._history[::-1][::every][::-1]

    def flush(self) -> None:
        """Hands the lines to the operating system, as each line's end does."""
        self._file.flush()

    def close(self, *, failed: bool = False) -> None:
        """Closes the file."""
        self._file.close()


def _to_json(value: Any) -> Any:
    """The value with null for what JSON cannot say (NaN and infinities)."""
    if isinstance(value, np.ndarray):
        return [_to_json(item) for item in value.tolist()]
    if isinstance(value, list):
        return [_to_json(item) for item in value]
    return float(f"{value:.7g}") if np.isfinite(value) else None


def _kept_lines(
    path: pathlib.Path, start_step: int, history: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Lines up to the step a run resumes from; a line torn by a kill is left out."""
    if not start_step:
        return []
    lines = list(history)
    if path.exists():
        lines = []
        for text in path.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(text))
    return [line for line in lines if isinstance(line, dict) and line["step"] <= start_step]


def _scalars(line: dict[str, Any]) -> dict[str, Any]:
    """The line without its arrays, which would make the history long."""
    return {name: value for name, value in line.items() if not isinstance(value, list)}
