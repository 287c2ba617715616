r"""How quality depends on the size of the network: width, depth, heads, encoder against decoder.

One change at a time around a base, with the same quantizer, data and number of steps: other widths
(channels a head stay), other depths of both halves, other numbers of heads at the same width, and
encoders and decoders of different depth. The table has the parameters, the FLOPs of a picture and
the quality of each. The base is --set model.width=..., model.layers=... and model.heads=..., by
default 128 channels, two layers in each half and two heads. By estimate it takes 15 minutes on two
CPU cores with the default flags; stopped and started again it goes on.

Examples:
  bsq-jax studies architecture --workdir runs/architecture
  bsq-jax studies architecture --workdir runs/halves --widths --layers --heads \
    --halves 1+3 3+1 2+4 4+2 --seeds 0 1 2
  bsq-jax studies architecture --workdir runs/full --set model.width=768 --set model.layers=12 \
    --set model.heads=12 --widths 384 1024 --layers 6 24 --heads 6 24 --halves 4+20 20+4 \
    --set data.source=folder:PICTURES --set train.batch_size=256 --steps 100000 --hours 48
"""

from __future__ import annotations

import argparse
import re

from bsq_jax.cli.studies.study import Study, add_limits, add_training_flags
from bsq_jax.core.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The study's flags."""
    add = parser.add_argument
    add("--widths", type=int, nargs="*", default=[64, 256],
        help="channels of a token; as many channels a head as the base (64 256)")  # fmt: skip
    add("--layers", type=int, nargs="*", default=[1, 4],
        help="of the encoder, and again of the decoder (1 4)")  # fmt: skip
    add("--heads", type=int, nargs="*", default=[1, 4],
        help="at the width of the base (1 4)")  # fmt: skip
    add("--halves", nargs="*", default=["1+3", "3+1", "2+4", "4+2"], metavar="ENCODER+DECODER",
        help="layers of each half (1+3 3+1 2+4 4+2)")  # fmt: skip
    add_training_flags(parser, steps=300, whose="each model")
    add_limits(parser)


def run(flags: argparse.Namespace) -> str:
    """Runs the study."""
    for flag in ("widths", "layers", "heads"):
        if min(getattr(flags, flag), default=1) < 1:
            numbers = " ".join(map(str, getattr(flags, flag)))
            raise UserError(f"--{flag} {numbers}: give numbers from 1")
    halves = [_half(text) for text in flags.halves]
    from bsq_jax.cli.studies.architecture import comparison
    from bsq_jax.cli.studies.architecture.points import points
    from bsq_jax.cli.studies.trained import Limits
    from bsq_jax.core.paths import local_path

    return comparison.study(
        local_path(flags.workdir),
        points(flags.set, flags.widths, flags.layers, flags.heads, halves, flags.seeds),
        flags.steps,
        flags.set,
        Limits(flags.hours * 3600, flags.gib),
    )


def _half(text: str) -> tuple[int, int]:
    """Layers of the encoder and of the decoder in ``1+3``.

    Raises:
      UserError: it is something else.
    """
    found = re.fullmatch(r"([1-9]\d*)\+([1-9]\d*)", text)
    if found is None:
        raise UserError(f"--halves {text}: write layers of encoder and decoder, such as 1+3")
    return int(found[1]), int(found[2])


STUDY = Study(
    "architecture",
    "quality by width, depth, heads, and by the depth of encoder and decoder",
    __doc__,
    add_arguments,
    run,
)
