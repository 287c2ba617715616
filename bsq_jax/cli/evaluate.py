r"""Measures the newest checkpoint of a run, or an export, on validation data.

Examples:
  bsq-jax evaluate --workdir runs/a
  bsq-jax evaluate --workdir my_export --config.data.source=folder:/pictures
  bsq-jax evaluate --workdir runs/quickstart --config.data.source=clips:/videos \
      --config.data.frames=16

The config is the one saved in the workdir, but computed in float32; --config.KEY=VALUE changes
single values.
"""

from __future__ import annotations

import argparse

from bsq_jax.cli import train_or_evaluate
from bsq_jax.cli.command import Command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``evaluate``."""
    train_or_evaluate.add_config_and_workdir(parser)
    train_or_evaluate.add_processes(parser)
    parser.set_defaults(profile=None)


def run(flags: argparse.Namespace) -> int:
    """Evaluates."""
    return train_or_evaluate.run(flags, evaluate=True)


COMMAND = Command(
    "measure a run or an export on validation data",
    __doc__,
    add_arguments,
    run,
    interrupted=train_or_evaluate.NOT_EVALUATED,
    settings=True,
    os_errors=False,
)
