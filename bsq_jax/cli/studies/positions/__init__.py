r"""Positions of clips: quality at the lengths of the training and beyond, by kind of position.

Block-causal tokenizers of clips with learned factorised positions (spatial plus temporal, as
published), fixed sines and cosines, and rotary ones, each once where a token sees all frames before
it and once with a window of frames (model.window). All are trained on clips of one length and
evaluated on clips of 1, 2, 4, ... frames up to the longest; learned positions end at the trained
length. By estimate it takes 20 minutes on two CPU cores with the default flags; stopped and started
again it goes on.

Examples:
  bsq-jax studies positions --workdir runs/positions
  bsq-jax studies positions --workdir runs/long --frames 8 --longest 64 --steps 2000 --seeds 0 1
"""

from __future__ import annotations

import argparse

from bsq_jax.cli.studies.study import Study, add_training_flags
from bsq_jax.core.errors import UserError

KINDS = ("learned", "sincos", "rotary")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The study's flags."""
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND",
                        help=f"which positions, of {', '.join(KINDS)}; default: all")  # fmt: skip
    parser.add_argument("--windows", type=int, nargs="+", default=[0, 2], metavar="FRAMES",
                        help="frames that a token sees, its own included, of each model; 0: all "
                             "before it; default: 0 and 2")  # fmt: skip
    parser.add_argument("--frames", type=int, default=4, help="of the clips of the training")
    parser.add_argument("--longest", type=int, default=16, help="clips of the evaluation")
    add_training_flags(parser, steps=300, whose="each model")


def run(flags: argparse.Namespace) -> str:
    """Runs the study."""
    if flags.frames < 2:
        raise UserError(f"--frames {flags.frames}: give 2 or more")
    if flags.longest < flags.frames:
        raise UserError(f"--longest {flags.longest}: give --frames, {flags.frames}, or more")
    if min(flags.windows) < 0:
        raise UserError(f"--windows {' '.join(map(str, flags.windows))}: give 0 or more")
    from bsq_jax.cli.studies.positions import comparison
    from bsq_jax.core.compilation_cache import enable_compilation_cache
    from bsq_jax.core.paths import local_path

    enable_compilation_cache()
    points = [
        comparison.Point(kind, window, seed)
        for window in dict.fromkeys(flags.windows)
        for kind in dict.fromkeys(flags.kinds)
        for seed in dict.fromkeys(flags.seeds)
    ]
    return comparison.study(
        local_path(flags.workdir),
        points,
        frames=flags.frames,
        longest=flags.longest,
        steps=flags.steps,
        overrides=flags.set,
    )


STUDY = Study(
    "positions",
    "quality of clips at trained lengths and beyond, by kind of position",
    __doc__,
    add_arguments,
    run,
)
