"""The report of an evaluation: ``evaluation.json``, and pictures and videos beside it."""

from __future__ import annotations

import json
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax

from bsq_jax.core.errors import UserError
from bsq_jax.core.files import write_atomic
from bsq_jax.core.progress import labelled
from bsq_jax.core.sharding import gather_strings
from bsq_jax.media import videos


class Wanted(NamedTuple):
    """What is drawn besides the numbers.

    Attributes:
      pictures: examples in a picture; 0 for no pictures at all.
      videos: clips written as videos.
    """

    pictures: int = 0
    videos: int = 0


class Drawing(NamedTuple):
    """A picture or a video of an evaluation.

    Attributes:
      kind: ``pictures`` or ``videos``: the folder, and the key in the report.
      stem: the file's name up to the step.
      ending: of the file's name.
      write: writes the file; called on process 0 alone.
    """

    kind: str
    stem: str
    ending: str
    write: Callable[[pathlib.Path], None]


class Evaluator(Protocol):
    """Measures the parameters of one kind of model on a validation split."""

    @property
    def frames(self) -> int:
        """Frames of an example; 1 for pictures."""
        ...

    def measure(self, params: Any, wanted: Wanted) -> dict[str, Any]:
        """Measures one set of parameters (a collective call).

        Args:
          params: of the task's model, on the mesh.
          wanted: what `drawings` will show of them.

        Returns:
          Values by key.
        """
        ...

    def describe(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """What the report says besides the results, after all sets were measured."""
        ...

    def drawings(self, params: Any, results: Mapping[str, Any], wanted: Wanted) -> list[Drawing]:
        """Pictures and videos of the last set of parameters measured (a collective call)."""
        ...


def weight_sets(params: Any, ema: Any) -> dict[str, Any]:
    """The parameters to evaluate, by the name they have in the report."""
    return {"raw": params} | ({} if ema is None else {"ema": ema})


def evaluate(
    evaluator: Evaluator,
    weights: Mapping[str, Any],
    workdir: pathlib.Path,
    *,
    name: str,
    step: int,
    wanted: Wanted,
    suffix: str = "",
) -> dict[str, Any]:
    """Evaluates each set of weights; process 0 writes ``evaluation.json``, pictures and videos.

    Args:
      evaluator: measures them.
      weights: parameters by name, such as ``raw`` and ``ema``; drawings show the last.
      workdir: folder of the run.
      name: of the run, for the report.
      step: training step of the weights, for the report and the names of the drawings.
      wanted: what is drawn.
      suffix: put before the ending of all file names, to keep evaluations on other data apart.

    Returns:
      The report that was written: the values of each set of weights under ``results``, what the
      evaluator describes, the file under ``path``, and on process 0 the paths of what was drawn
      under ``pictures`` and ``videos``.

    Raises:
      UserError: the folder cannot be written to, or there is no encoder for videos; on all
        processes, and before anything is measured.
    """
    path = workdir / f"evaluation{suffix}.json"
    folders = [workdir, *([workdir / "pictures"] if wanted.pictures else [])]
    if wanted.videos and evaluator.frames > 1:
        videos.check_encoder()
    on_first_process(workdir, lambda: _check_writable(folders))
    results = {}
    for label, params in weights.items():
        with labelled(f"evaluating, {label} weights"):
            results[label] = evaluator.measure(params, wanted)
    report: dict[str, Any] = {
        **{"name": name, "step": step, "results": results},
        **evaluator.describe(results),
        **{"path": str(path), "pictures": [], "videos": []},
    }
    drawings = evaluator.drawings(list(weights.values())[-1], results, wanted)

    def write() -> None:
        for drawing in drawings:
            file = f"{drawing.stem}_{step:07d}{suffix}.{drawing.ending}"
            drawing.write(workdir / drawing.kind / file)
            report[drawing.kind].append(str(workdir / drawing.kind / file))
        write_atomic(path, (json.dumps(report, indent=2) + "\n").encode())

    on_first_process(workdir, write)
    return report


def _check_writable(folders: Sequence[pathlib.Path]) -> None:
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def on_first_process(workdir: pathlib.Path, action: Callable[[], None]) -> None:
    """Runs `action` on process 0; an `OSError` there is the same `UserError` on every process.

    Args:
      workdir: for the message.
      action: writes.

    Raises:
      UserError: the system refused.
    """
    problems = []
    if jax.process_index() == 0:
        try:
            action()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            problems.append(
                f"cannot write the evaluation into {workdir} ({reason}): make room there or allow "
                "writing, or copy the folder and evaluate the copy"
            )
    for problem in gather_strings(problems):
        raise UserError(problem)
