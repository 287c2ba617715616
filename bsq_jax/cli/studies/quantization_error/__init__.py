"""The error |u - q|^2 of each quantizer against its bound, for several distributions of latents.

Latents are uniform on the sphere, Gaussian, heavy-tailed, on the axes, or those of a trained
encoder. BSQ, residual BSQ, LFQ and FSQ from 8 to 144 bits, the Leech lattice, and codebooks drawn
from the distribution or fitted to it. Closed forms are drawn in. Trains nothing, and takes a minute
on two CPU cores with the default flags.

Examples:
  bsq-jax studies quantization_error --workdir runs/quantization_error
  bsq-jax studies quantization_error --workdir runs/quantization_error --model runs/quickstart
"""

from __future__ import annotations

import argparse

from bsq_jax.cli.studies.study import Study
from bsq_jax.core.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The study's flags."""
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 12, 18, 24, 36, 48, 72, 96, 144],
                        help="bits of a token")  # fmt: skip
    parser.add_argument("--codebooks", type=int, nargs="+", default=[256, 1024, 4096],
                        help="sizes of the codebooks, of 8 channels")  # fmt: skip
    parser.add_argument("--tokens", type=int, default=8192, help="latents of each distribution")
    parser.add_argument("--model", metavar="WORKDIR", help="also the latents of this tokenizer")
    parser.add_argument("--seed", type=int, default=0)


def run(flags: argparse.Namespace) -> str:
    """Runs the study."""
    for name, least in (("bits", 2), ("codebooks", 2), ("tokens", 1)):
        given = getattr(flags, name)
        if min(given if isinstance(given, list) else [given]) < least:
            raise UserError(f"--{name} must be {least} or more")
    from bsq_jax.cli.studies.quantization_error import errors
    from bsq_jax.core.paths import local_path

    return errors.study(
        local_path(flags.workdir),
        bits=sorted(set(flags.bits)),
        codebooks=sorted(set(flags.codebooks)),
        tokens=flags.tokens,
        model=flags.model,
        seed=flags.seed,
    )


STUDY = Study(
    "quantization_error",
    "the error of each quantizer against its bound, for several distributions",
    __doc__,
    add_arguments,
    run,
)
