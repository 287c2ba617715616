r"""Sizes and shapes that a tokenizer was not trained at, by kind of position and attention.

Tokenizers that differ in their positions and in what attention sees are trained twice: at one size,
and at several (data.sizes) with as many tokens a step. Each is evaluated on whole pictures that are
resized to half, once, 1.5 times and twice the size of the first training, and to the aspect ratios
4:3, 16:9 and 1:2 (width to height) at its number of pixels. By estimate it takes 20 minutes on two
CPU cores with the default flags; stopped and started again it goes on.

Examples:
  bsq-jax studies resolution --workdir runs/resolution
  bsq-jax studies resolution --workdir runs/two --models learned windows-sincos --steps 1000
  bsq-jax studies resolution --workdir runs/full --set data.source=folder:PICTURES \
    --set model.image_size=256 --set train.batch_size=64 --steps 100000 --window 8
"""

from __future__ import annotations

import argparse

from bsq_jax.cli.studies.study import Study, add_training_flags
from bsq_jax.core.errors import UserError

MODELS = ("learned", "sincos", "rotary", "windows-learned", "windows-sincos")
TRAININGS = ("one", "mixed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The study's flags."""
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS),
                        metavar="MODEL",
                        help=f"which, of {', '.join(MODELS)}; default: all. learned: interpolated "
                             "for other sizes; windows: attention stays within windows of a "
                             "frame")  # fmt: skip
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=list(TRAININGS),
                        metavar="TRAINING",
                        help="one: at model.image_size; mixed: at data.sizes, by default all "
                             "sizes of the evaluation; default: both")  # fmt: skip
    parser.add_argument("--window", type=int, default=4, metavar="TOKENS",
                        help="side of the windows, an even number")  # fmt: skip
    add_training_flags(parser, steps=300, whose="each model")


def run(flags: argparse.Namespace) -> str:
    """Runs the study."""
    if flags.window < 2 or flags.window % 2:
        raise UserError(f"--window {flags.window}: give an even number of tokens, 2 or more")
    from bsq_jax.cli.studies.resolution import comparison
    from bsq_jax.core.compilation_cache import enable_compilation_cache
    from bsq_jax.core.paths import local_path

    enable_compilation_cache()
    points = [
        comparison.Point(model, training, seed)
        for model in dict.fromkeys(flags.models)
        for training in dict.fromkeys(flags.trainings)
        for seed in dict.fromkeys(flags.seeds)
    ]
    return comparison.study(local_path(flags.workdir), points, flags.steps, flags.window, flags.set)


STUDY = Study(
    "resolution",
    "quality at sizes and shapes that a model was not trained at, by kind of position",
    __doc__,
    add_arguments,
    run,
)
