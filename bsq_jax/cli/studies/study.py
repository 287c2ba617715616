"""What a study is, and the flags that several of them have. Imports nothing that is slow."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Study:
    """An experiment that is run by its name.

    Attributes:
      name: on the command line.
      help: one line for the list of studies.
      description: what ``--help`` says above the flags: the question, an example, how long it
        takes.
      add_arguments: adds the study's own flags; every study has ``--workdir``.
      run: does the experiment and returns what is printed at the end. Imports of JAX and the like
        are inside it, so that ``--help`` and a wrong flag answer at once.
    """

    name: str
    help: str
    description: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], str]


def add_training_flags(parser: argparse.ArgumentParser, *, steps: int, whose: str) -> None:
    """The flags of a study that trains models.

    Args:
      parser: of the study.
      steps: the default number of training steps.
      whose: which model takes so many.
    """
    parser.add_argument("--steps", type=int, default=steps, help=f"training steps of {whose}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of all models"
    )


def add_limits(parser: argparse.ArgumentParser) -> None:
    """The flags that say what a training may use."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parser.add_argument(
        "--hours", type=float, default=0.1, help="time that each training may take, all included"
    )
    parser.add_argument(
        "--gib",
        type=float,
        default=round(0.8 * physical, 1),
        help="memory that a training step may need; default: 80%% of this machine's, %(default)s",
    )
