r"""How quality, usage, time and memory depend on the number of codes, for each quantizer.

BSQ, residual BSQ of two stages, LFQ, FSQ, the Leech lattice and VQ (codebooks learned by gradient,
and as moving averages with restarts) with vocabularies of 2^8 to 2^36 codes, at equal network, data
and steps. Each training runs in a process of its own; one that needs more memory or time than it
may have is a row of the table that says so. Larger codebooks than can be trained are estimated from
the plan of smaller ones. Takes about 25 minutes on two CPU cores with the default flags; stopped
and started again it goes on.

Examples:
  bsq-jax studies vocabulary --workdir runs/vocabulary
  bsq-jax studies vocabulary --workdir runs/full --bits 8 10 12 14 16 18 24 36 --seeds 0 1 2 \
    --steps 100000 --set data.source=folder:PICTURES --set train.batch_size=256 --hours 48
"""

from __future__ import annotations

import argparse

from bsq_jax.cli.studies.study import Study, add_limits, add_training_flags
from bsq_jax.core.errors import UserError

KINDS = ("bsq", "residual", "lfq", "fsq", "leech", "vq", "vq_ema")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The study's flags."""
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND",
                        help=f"which quantizers, of {', '.join(KINDS)}; default: all")  # fmt: skip
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 12, 18, 36],
                        help="bits of a token, 1 to 64; leech has 17.58 always")  # fmt: skip
    add_training_flags(parser, steps=300, whose="each model")
    add_limits(parser)


def run(flags: argparse.Namespace) -> str:
    """Runs the study."""
    if not all(1 <= bits <= 64 for bits in flags.bits):
        raise UserError(f"--bits {' '.join(map(str, flags.bits))}: give numbers from 1 to 64")
    from bsq_jax.cli.studies.trained import Limits
    from bsq_jax.cli.studies.vocabulary import comparison
    from bsq_jax.cli.studies.vocabulary.points import points
    from bsq_jax.core.paths import local_path

    return comparison.study(
        local_path(flags.workdir),
        points(flags.kinds, flags.bits, flags.seeds),
        flags.steps,
        flags.set,
        Limits(flags.hours * 3600, flags.gib),
    )


STUDY = Study(
    "vocabulary",
    "quality, usage, time and memory of each quantizer by the number of codes",
    __doc__,
    add_arguments,
    run,
)
