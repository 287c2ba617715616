r"""Trains a model, or goes on with a run that was stopped.

Examples:
  bsq-jax train --config tokenizer:imagenet256,bits=36 --workdir runs/a
  bsq-jax train --workdir runs/a --config.train.steps=2000000
  bsq-jax train --workdir runs/b --config.train.init=runs/a
  bsq-jax train --config mine.py:large --workdir runs/c --config.data.source=folder:/pictures

--config takes the path of a config file, or the name of one that comes with the package. Single
values are changed by --config.KEY=VALUE; the keys and their defaults are in bsq_jax/config. Exit
status: 0 done, 2 a mistake in what was given, 75 stopped with everything saved: run again.
"""

from __future__ import annotations

import argparse

from bsq_jax.cli import job
from bsq_jax.cli.command import Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``train``."""
    job.add_config_and_workdir(parser)
    job.add_profile(parser)
    job.add_processes(parser)


def run(flags: argparse.Namespace) -> int:
    """Trains."""
    return job.run_job(flags, evaluate=False)


COMMAND = Command(
    "train a model, or go on with a run",
    __doc__,
    add_arguments,
    run,
    interrupted=job.INTERRUPTED,
    settings=True,
    os_errors=False,
)
