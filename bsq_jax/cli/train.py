r"""Trains a model, or goes on with a run that was stopped.

Examples:
  bsq-jax train --config tokenizer:imagenet256,bits=36 --workdir runs/a
  bsq-jax train --workdir runs/a --config.train.steps=2000000
  bsq-jax train --workdir runs/b --config.train.init=runs/a
  bsq-jax train --config mine.py:large --workdir runs/c --config.data.source=folder:/pictures

--config takes the path of a config file, or the name of one that comes with the package. Single
values are changed by --config.KEY=VALUE; the keys and their defaults are in
bsq_jax/config/settings.py.

Ctrl-C finishes the step and saves it; a second one leaves at once. The same command goes on. Exit
status: 0 done, 2 a mistake in what was given, 130 stopped by Ctrl-C, 75 stopped by SIGTERM with
everything saved: run again.
"""

from __future__ import annotations

import argparse

from bsq_jax.cli import train_or_evaluate
from bsq_jax.cli.command import Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``train``."""
    train_or_evaluate.add_config_and_workdir(parser)
    train_or_evaluate.add_profile(parser)
    train_or_evaluate.add_processes(parser)


def run(flags: argparse.Namespace) -> int:
    """Trains."""
    return train_or_evaluate.run(flags, evaluate=False)


COMMAND = Command(
    "train a model, or go on with a run",
    __doc__,
    add_arguments,
    run,
    interrupted=train_or_evaluate.INTERRUPTED,
    settings=True,
    os_errors=False,
)
