"""What `train`, `evaluate` and `bsq_jax.main` share: flags, the config, and starting the job."""

from __future__ import annotations

import argparse
import functools
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from bsq_jax.core.errors import UserError

CONFIG_HELP = "config file, or the name of a published one, and its variant"
# What Ctrl-C leaves, before training begins: from then on it is caught.
INTERRUPTED = "no step was begun, nothing is lost: run the same command again"
NOT_EVALUATED = "the evaluation is not written; the same command begins it again"


def add_config_and_workdir(parser: argparse.ArgumentParser) -> None:
    """The flags that say which run it is."""
    parser.add_argument("--config", metavar="FILE.py[:ARGUMENT]", help=CONFIG_HELP)
    parser.add_argument("--workdir", required=True, help="folder of the run")


def add_processes(parser: argparse.ArgumentParser) -> None:
    """The flags by which the processes of a run find each other."""
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    parser.add_argument("--processes", metavar="N", type=int, help="number of processes")
    parser.add_argument("--process", metavar="I", type=int, help="this one's number, from 0")


def add_profile(parser: argparse.ArgumentParser) -> None:
    """The flag that records some steps of training."""
    parser.add_argument(
        "--profile", metavar="FIRST:LAST", help="steps to record for XProf, in WORKDIR/profile"
    )


def run(flags: argparse.Namespace, *, evaluate: bool) -> int:
    """Trains, or evaluates the newest checkpoint; returns the exit status.

    Args:
      flags: those of the functions above, and ``settings``, which are words of the config.
      evaluate: whether to evaluate only.

    Raises:
      UserError: a mistake in flags, config, files or data.
    """
    began = time.monotonic()
    profile = _steps(flags.profile)

    from bsq_jax.config import parse_overrides
    from bsq_jax.core import distributed, failures
    from bsq_jax.core.compilation_cache import enable_compilation_cache
    from bsq_jax.core.paths import local_path
    from bsq_jax.training import determinism, evaluate_run, train_run
    from bsq_jax.training.workdir import goes_on

    overrides = parse_overrides(flags.settings)
    workdir = local_path(flags.workdir)
    config = _config(flags.config, workdir, overrides, evaluate=evaluate)
    if config.train.deterministic:
        determinism.ask_for()
    distributed.initialize(flags.coordinator, flags.processes, flags.process)
    enable_compilation_cache()
    if evaluate:
        with failures.shared(NOT_EVALUATED):
            return evaluate_run.evaluate(config, workdir)
    with failures.shared(INTERRUPTED, functools.partial(goes_on, workdir)):
        return train_run.train(config, workdir, profile=profile, began=began)


def _config(
    spec: str | None,
    workdir: pathlib.Path,
    overrides: Sequence[tuple[str, str]],
    *,
    evaluate: bool,
) -> Any:
    """The complete config: a file's, the workdir's or that of the initial weights; overridden."""
    from bsq_jax.config import finalize, load_config_file, set_value
    from bsq_jax.training.saved_models import read_initial_config, read_saved_config, with_tokenizer

    if spec is not None:
        config = load_config_file(spec)
    elif evaluate or (workdir / "config.json").exists():
        config = read_saved_config(workdir)
    elif initial := dict(overrides).get("train.init"):
        config = read_initial_config(initial)
    else:
        raise UserError("give --config FILE.py: there is no saved config in the workdir")
    if evaluate:
        # What training chose for speed is no part of a model's quality; an override still counts.
        config.model.dtype = "float32"
    for key, text in overrides:
        set_value(config, key, text)
    return finalize(with_tokenizer(config, workdir))


def _steps(text: str | None) -> tuple[int, int] | None:
    """First and last step of ``10:15``.

    Raises:
      UserError: it is something else.
    """
    if text is None:
        return None
    first, _, last = text.partition(":")
    if first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last):
        return int(first), int(last)
    raise UserError(f"--profile {text}: write the first and the last step, such as 10:15")
