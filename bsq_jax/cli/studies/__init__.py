"""Experiments that answer a question about the method.

Examples:
  bsq-jax studies variable_length --workdir runs/variable_length
  bsq-jax studies variable_length --help
"""

from __future__ import annotations

import argparse

from bsq_jax.cli.command import Command
from bsq_jax.cli.studies import (
    architecture,
    entropy,
    positions,
    quantization_error,
    resolution,
    transfer,
    variable_length,
    vocabulary,
)

STUDIES = {
    study.name: study
    for study in (
        *(variable_length.STUDY, vocabulary.STUDY, quantization_error.STUDY, entropy.STUDY),
        *(resolution.STUDY, positions.STUDY, architecture.STUDY, transfer.STUDY),
    )
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The studies, and the flags of each."""
    studies = parser.add_subparsers(dest="study", metavar="STUDY", required=True)
    for name, study in STUDIES.items():
        flags = studies.add_parser(
            name, prog=f"bsq-jax studies {name}", description=study.description, help=study.help
        )
        flags.add_argument("--workdir", required=True, help="folder of the study")
        study.add_arguments(flags)


def run(flags: argparse.Namespace) -> int:
    """Runs the study and prints its table."""
    print(f"\n{STUDIES[flags.study].run(flags)}")
    return 0


COMMAND = Command(
    "experiments that answer a question about the method",
    __doc__,
    add_arguments,
    run,
    interrupted="finished trainings are kept; the same command goes on after them",
    os_errors=False,
)
