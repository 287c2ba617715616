"""The run at Weights & Biases (https://wandb.ai), by its package ``wandb``, which is optional.

Nothing that fails here ends a training: it is said in one line, and the other writers go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import secrets
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bsq_jax.config import to_json
from bsq_jax.core.errors import UserError
from bsq_jax.core.files import write_atomic
from bsq_jax.training.writers.writer import Values

RUN_FILE = "wandb_run.json"  # in the workdir: which run of W&B goes on when this one does
_STEP = "step"  # the horizontal axis of all curves
_PATIENCE = 60.0  # seconds to send, at the end of a run, what has not been sent
_OLDEST = (0, 27)  # version of the package: the first one that takes `_PATIENCE`


def check_wandb(project: str) -> None:
    """Checks that ``log.wandb`` can be done, before a run begins.

    Args:
      project: the setting; nothing is checked where it is empty.

    Raises:
      UserError: the package is missing, too old, or cannot be imported.
    """
    if project:
        _package()


def _package() -> Any:
    """The package ``wandb``.

    Raises:
      UserError: it is missing, too old, or cannot be imported.
    """
    oldest = ".".join(map(str, _OLDEST))
    try:
        import wandb

        wandb.init  # noqa: B018 - a folder of this name, which W&B leaves, can be imported too
    except (ImportError, AttributeError) as error:
        found = "" if isinstance(error, ModuleNotFoundError) else f" (it cannot be used: {error})"
        raise UserError(
            f"log.wandb needs the package wandb{found}: pip install 'wandb>={oldest}', or set "
            "log.wandb to nothing"
        ) from error
    if tuple(map(int, re.findall(r"\d+", wandb.__version__)[:2])) < _OLDEST:
        raise UserError(
            f"log.wandb needs wandb {oldest} or later, and this is {wandb.__version__}: "
            f"pip install 'wandb>={oldest}', or set log.wandb to nothing"
        )
    return wandb


class WandbRun:
    """Writes to a run of W&B; its files are in ``WORKDIR/wandb``.

    The run keeps its id in the workdir and goes on under it when training resumes; a training from
    step 0 is a new run. Metrics are called as in TensorBoard, ``train/psnr``, and are drawn over
    the metric ``step``: the counter that W&B has itself cannot go back to a checkpoint.

    Without a login, and where the server does not answer, the run is recorded offline, to be sent
    by ``wandb sync``. Nothing is asked, on the terminal or in a notebook.

    Args:
      workdir: of the run.
      project: ``PROJECT`` or ``ENTITY/PROJECT``.
      start_step: the step that the run starts or resumes from.
      say: prints a line.

    Raises:
      UserError: the package is missing or too old.
    """

    def __init__(
        self, workdir: pathlib.Path, project: str, start_step: int, say: Callable[[str], None]
    ):
        self._say, self._package = say, _package()
        self._run: Any = None
        self._folder = workdir / "wandb"
        entity, _, name = project.rpartition("/")
        options: dict[str, Any] = {
            "project": name,
            "entity": entity or None,
            "id": _run_id(workdir / RUN_FILE, project, start_step),
            "name": os.environ.get("WANDB_NAME") or workdir.resolve().name,
            "dir": str(workdir),
            "resume": "allow",
        }
        self._begin(options)

    def describe(self, config: ConfigDict) -> None:
        """Writes all settings."""
        with self._guarded():
            if self._run is not None:
                self._run.config.update(to_json(config), allow_val_change=True)

    def write(self, step: int, prefix: str, values: Values) -> None:
        """Adds a point to curves, and the distributions of arrays; what is not finite is left out.

        Args:
          step: the step they belong to.
          prefix: their group.
          values: by name.
        """
        finite = {name: value for name, value in values.items() if np.isfinite(value).all()}
        with self._guarded():
            if self._run is not None and finite:
                row = {f"{prefix}/{name}": self._drawn(value) for name, value in finite.items()}
                self._run.log({_STEP: step, **row})

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Adds a picture, uint8 ``[height, width, 3]``."""
        with self._guarded():
            if self._run is not None:
                self._run.log({_STEP: step, name: self._package.Image(picture)})

    def flush(self) -> None:
        """Nothing: what was written is with another process, which outlives this one."""

    def close(self, *, failed: bool = False) -> None:
        """Sends the rest; after a minute it gives up, and says so.

        Args:
          failed: whether W&B is to show the run as failed.
        """
        with self._guarded(f"it may lack the last of its data: `wandb sync` in {self._folder}"):
            if self._run is not None:
                self._run.finish(exit_code=int(failed))
        self._run = None

    def _begin(self, options: dict[str, Any]) -> None:
        """Opens the run, offline if it cannot be online, and says where it is."""
        wandb = self._package
        run: Any = None
        settings = {
            "silent": True,  # what is worth a line is said here
            "console": "off",
            "reinit": "create_new",  # whatever else this process does with W&B
            "finish_timeout": _PATIENCE,
            "finish_timeout_raises": True,
        }
        mode: dict[str, str] = {}  # what WANDB_MODE or `wandb offline` say
        try:
            with _nobody_to_ask():
                run = wandb.init(**options, settings=wandb.Settings(**settings))
        except Exception as error:
            self._say(
                f"warning: W&B: {_line(error)}; the run is recorded offline in "
                f"{self._folder}, to be sent by `wandb sync` (log in with `wandb login`)"
            )
            mode = {"mode": "offline"}
        if mode:
            with self._guarded(), _nobody_to_ask():
                if wandb.run is None:  # else this process has another run, which that would end
                    wandb.teardown()  # the id would count as in use
                run = wandb.init(**options, **mode, settings=wandb.Settings(**settings))
        if run is None:
            return
        self._run = run
        with self._guarded():
            if not mode:
                where = f"offline, in {self._folder}" if run.offline else run.url
                self._say(f"W&B: {where or 'disabled'}")
            run.define_metric(_STEP, hidden=True)
            run.define_metric("*", step_metric=_STEP)

    @contextlib.contextmanager
    def _guarded(self, then: str = "training goes on without it") -> Iterator[None]:
        """After an exception in it nothing more is written, which is said once."""
        try:
            yield
        except Exception as error:
            self._run = None
            self._say(f"warning: W&B: {_line(error)}; {then}")

    def _drawn(self, value: float | np.ndarray) -> Any:
        return self._package.Histogram(value) if isinstance(value, np.ndarray) else value


@contextlib.contextmanager
def _nobody_to_ask() -> Iterator[None]:
    """Standard input is empty and no terminal: questions become errors.

    A notebook asks in a field of its own, where W&B does so unless the terminal is called dumb.
    """
    before, terminal = sys.stdin, os.environ.get("TERM")
    with open(os.devnull) as sys.stdin:
        os.environ["TERM"] = "dumb"
        try:
            yield
        finally:
            sys.stdin = before
            del os.environ["TERM"]
            if terminal is not None:
                os.environ["TERM"] = terminal


def _run_id(path: pathlib.Path, project: str, start_step: int) -> str:
    """The id of the run: the one that is kept where training goes on, else a new one."""
    if start_step:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(path.read_text())
            if kept["project"] == project and re.fullmatch(r"[\w-]{1,64}", kept["id"]):
                return str(kept["id"])
    made = secrets.token_hex(4)
    write_atomic(path, (json.dumps({"project": project, "id": made}) + "\n").encode())
    return made


def _line(error: Exception) -> str:
    """What an exception says, on one line that is not long."""
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
