"""Experiments that answer a question about the method.

Examples:
  bsq-jax studies variable_length --workdir runs/variable_length
"""

from __future__ import annotations

import argparse

from bsq_jax.cli.command import Command
from bsq_jax.core.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The studies, and the flags of each."""
    studies = parser.add_subparsers(dest="study", metavar="STUDY", required=True)
    what = "block-causal attention on clips of any length against full attention"
    study = studies.add_parser(
        "variable_length", prog="bsq-jax studies variable_length", description=what, help=what
    )
    study.add_argument("--workdir", required=True, help="folder of the study")
    study.add_argument("--frames", type=int, default=8, help="longest clip")
    study.add_argument("--steps", type=int, default=600, help="steps of the full model")
    study.add_argument("--seeds", type=int, nargs="+", default=[0])
    study.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of both models"
    )


def run(flags: argparse.Namespace) -> int:
    """Runs the study and prints its table."""
    from bsq_jax.cli.studies import variable_length
    from bsq_jax.core.compilation_cache import enable_compilation_cache
    from bsq_jax.core.paths import local_path

    if flags.frames < 1:
        raise UserError(f"--frames {flags.frames}: give 1 or more")
    enable_compilation_cache()
    workdir = local_path(flags.workdir)
    text = variable_length.study(workdir, flags.frames, flags.steps, flags.seeds, flags.set)
    print(f"\n{text}")
    return 0


COMMAND = Command(
    "experiments that answer a question about the method",
    __doc__,
    add_arguments,
    run,
    interrupted="the same command goes on from the last checkpoint",
    os_errors=False,
)
