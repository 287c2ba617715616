"""Block-causal attention on clips of any length against full attention on clips of one length.

Two tokenizers of the same size are trained on the same videos with the same number of computed
frames. Takes about 20 minutes on two CPU cores with the default flags.

Example:
  bsq-jax studies variable_length --workdir runs/variable_length
"""

from __future__ import annotations

import argparse

from bsq_jax.cli.studies.study import Study, add_training_flags
from bsq_jax.core.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The study's flags."""
    parser.add_argument("--frames", type=int, default=8, help="longest clip")
    add_training_flags(parser, steps=600, whose="the full model")


def run(flags: argparse.Namespace) -> str:
    """Runs the study."""
    from bsq_jax.cli.studies.variable_length import comparison
    from bsq_jax.core.compilation_cache import enable_compilation_cache
    from bsq_jax.core.paths import local_path

    if flags.frames < 1:
        raise UserError(f"--frames {flags.frames}: give 1 or more")
    enable_compilation_cache()
    workdir = local_path(flags.workdir)
    return comparison.study(workdir, flags.frames, flags.steps, flags.seeds, flags.set)


STUDY = Study(
    "variable_length",
    "block-causal attention on clips of any length against full attention on one",
    __doc__,
    add_arguments,
    run,
)
