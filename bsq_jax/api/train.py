"""Training from Python: what the command ``train`` does, with its result as an object."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from ml_collections import ConfigDict

from bsq_jax.api.trained_run import TrainedRun, read_history
from bsq_jax.config import load_config_file
from bsq_jax.config.published import published_names
from bsq_jax.core import failures, once
from bsq_jax.core.errors import INTERRUPTED, Interrupted, UserError
from bsq_jax.core.hub_address import HUB_SCHEME
from bsq_jax.core.paths import local_path
from bsq_jax.training import job, train_run
from bsq_jax.training.saved_models import read_saved_config
from bsq_jax.training.stop_signal import StopSignal
from bsq_jax.training.workdir import goes_on

_NOTHING_DONE = "interrupted before the first step: nothing is lost, call train again"


def load_config(name: str | os.PathLike[str]) -> ConfigDict:
    """A config to change and to give to `train`.

        config = load_config("quickstart")
        config.train.steps = 300
        config.data.source = "folder:/pictures"

    Args:
      name: the first of these that it fits:

        1. what ``--config`` takes: the name of a published config (``quickstart``) or the path of a
           config file that ends in ``.py``, with its argument (``tokenizer:imagenet256,bits=36``);
        2. an export on the hub, ``hf://OWNER/NAME``: the config that it was trained with;
        3. the folder of a run or an export, which has a ``config.json``: likewise. One that is
           called like a published config needs its path: ``./quickstart``.

    Returns:
      The config. An unknown key or a value of another type is an error where it is set, a value
      out of range one of `train`.

    Raises:
      UserError: there is none of these, or a mistake in it.
    """
    text = os.fspath(name)
    file, _, _ = text.partition(":")
    if file.endswith(".py") or file in published_names():
        return load_config_file(text)
    if text.startswith(HUB_SCHEME) or (local_path(text) / "config.json").is_file():
        return read_saved_config(text)
    return load_config_file(text)


def train(
    config: ConfigDict | str | None,
    workdir: str | os.PathLike[str],
    *,
    profile: tuple[int, int] | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> TrainedRun:
    """Trains a model, or goes on with a run that was stopped, and evaluates it.

        run = train(config, "runs/mine")
        tokenizer = run.tokenizer()

    It is what ``python -m bsq_jax.main --config ... --workdir ...`` does, to the bit: the same
    files in the workdir, the same lines on standard error, the same table on standard output. Other
    calls with other configs may follow in the same process.

    Ctrl-C, which is what *Interrupt* of a notebook sends, finishes the step, saves it and raises
    `KeyboardInterrupt`; the same call goes on from there. A second one leaves without saving, as
    soon as Python gets to it. SIGTERM saves as well; then it does what it would have done without
    `train`. Called outside the main thread, where Python catches no signals, `train` leaves them
    alone.

    With several processes, which call ``jax.distributed.initialize`` first, all call `train` alike;
    a failure of one ends all.

    Args:
      config: of `load_config` or of `bsq_jax.config.default_config`, which is not changed; or the
        text that ``--config`` takes; or None to go on with the run in `workdir` as it is.
      workdir: folder of the run; made if need be. One with checkpoints is resumed.
      profile: first and last step to record with JAX's profiler in ``profile`` of the workdir.
      progress: called with each record of metrics as soon as ``metrics.jsonl`` has it: a dict as in
        `TrainedRun.history`. What it raises ends the run.

    Returns:
      The run, see `TrainedRun`.

    Raises:
      UserError: a mistake in config, folders or data, or a loss that is not finite, in one line.
      KeyboardInterrupt: the run was interrupted; the message says what is saved.
    """
    began = time.monotonic()
    folder = local_path(workdir)
    if not isinstance(config, ConfigDict | str | None):
        raise UserError(
            f"config is a {type(config).__name__}: give what load_config returns, such as "
            'load_config("quickstart")'
        )
    if config is None and not (folder / "config.json").exists():
        raise UserError(f"config is None, and there is no run in {folder} to go on with")
    if profile is not None and not 0 < profile[0] <= profile[1]:
        raise UserError(f"profile={profile}: give the first and the last step, such as (10, 15)")
    once.forget()
    chosen = job.chosen_config(config, folder)
    job.prepare(chosen)
    stop = StopSignal(again="call train again", owns_process=False)
    with failures.shared(_NOTHING_DONE, functools.partial(goes_on, folder)):
        outcome = train_run.run(
            *(chosen, folder), profile=profile, began=began, progress=progress, stop=stop
        )
    if outcome.state is None or outcome.report is None:
        _end(outcome)
    history = [] if jax.process_index() else read_history(folder)
    return TrainedRun(chosen, folder, outcome.state, outcome.report, history)


def _end(outcome: train_run.Outcome) -> NoReturn:
    """Says that a signal stopped the run; SIGTERM first does what it would have done."""
    if outcome.status != INTERRUPTED and threading.current_thread() is threading.main_thread():
        signal.raise_signal(signal.SIGTERM)
    raise Interrupted(outcome.stopped)
