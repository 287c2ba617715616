"""What `train`, `evaluate` and `bsq_jax.main` share: flags, the config, and starting the job."""

from __future__ import annotations

import argparse
import functools
import time

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
    from bsq_jax.core.paths import local_path
    from bsq_jax.training import evaluate_run, job, train_run
    from bsq_jax.training.workdir import goes_on

    overrides = parse_overrides(flags.settings)
    workdir = local_path(flags.workdir)
    config = job.chosen_config(flags.config, workdir, overrides, evaluate=evaluate)
    processes = flags.coordinator, flags.processes, flags.process
    job.prepare(config, functools.partial(distributed.initialize, *processes))
    if evaluate:
        with failures.shared(NOT_EVALUATED, memory="lower eval.batch_size"):
            return evaluate_run.evaluate(config, workdir)
    with failures.shared(INTERRUPTED, functools.partial(goes_on, workdir)):
        return train_run.train(config, workdir, profile=profile, began=began)


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
