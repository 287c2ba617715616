"""The codebook entropy in groups of bits against the exact one, and what the terms do in training.

First the entropy of the mean soft assignment with groups of 1, 3, 6 and 9 bits against the exact
one (one group of all 16 bits): bias, time and memory, forward and backward. Then short trainings at
18 bits: BSQ and LFQ with the entropy terms and without, and the Leech lattice, which has none.
Which of them use few codes? Takes about 8 minutes on two CPU cores with the default flags, nearly
all of it for the trainings; stopped and started again it goes on.

Examples:
  bsq-jax studies entropy --workdir runs/entropy
  bsq-jax studies entropy --workdir runs/entropy --steps 0  # no trainings
"""

from __future__ import annotations

import argparse

from bsq_jax.cli.studies.study import Study, add_limits, add_training_flags
from bsq_jax.core.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The study's flags."""
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 3, 6, 9],
                        help="bits a group, 1 to 16")  # fmt: skip
    parser.add_argument("--tokens", type=int, default=8192, help="of the comparison of terms")
    parser.add_argument("--runs", type=int, default=10, help="timings, of which the median counts")
    add_training_flags(parser, steps=300, whose="each model; 0: no trainings")
    add_limits(parser)


def run(flags: argparse.Namespace) -> str:
    """Runs the study."""
    if not all(1 <= size <= 16 for size in flags.groups):
        raise UserError(f"--groups {' '.join(map(str, flags.groups))}: give numbers from 1 to 16")
    for name, least in (("tokens", 1), ("runs", 1), ("steps", 0)):
        if getattr(flags, name) < least:
            raise UserError(f"--{name} {getattr(flags, name)}: give {least} or more")
    from bsq_jax.cli.studies.entropy import comparison
    from bsq_jax.cli.studies.trained import Limits
    from bsq_jax.core.paths import local_path

    return comparison.study(
        local_path(flags.workdir),
        groups=sorted(set(flags.groups)),
        tokens=flags.tokens,
        runs=flags.runs,
        steps=flags.steps,
        seeds=flags.seeds,
        overrides=flags.set,
        limits=Limits(flags.hours * 3600, flags.gib),
    )


STUDY = Study(
    "entropy",
    "codebook entropy in groups against the exact one; usage with and without it",
    __doc__,
    add_arguments,
    run,
)
