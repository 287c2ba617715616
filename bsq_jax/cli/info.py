"""Says what a .bsq file holds, and whether all of it is whole; needs no model.

Examples:
  bsq-jax info photo.bsq
"""

from __future__ import annotations

import argparse
import io

from bsq_jax.cli.command import Command
from bsq_jax.cli.inputs import read_input
from bsq_jax.core.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``info``."""
    parser.add_argument("input", help="a .bsq file, or - for standard input")


def run(flags: argparse.Namespace) -> int:
    """Prints the header, and checks every chunk."""
    from bsq_jax.coding.container import DamagedFile, TruncatedFile, read_chunks, read_header

    data = read_input(flags.input)
    file = io.BytesIO(data)
    header = read_header(file, flags.input)
    chunks = payload = 0
    problem = ""
    try:
        for chunk in read_chunks(file, header, flags.input, lambda _: len(data)):
            chunks, payload = chunks + 1, payload + len(chunk.payload)
    except (DamagedFile, TruncatedFile) as error:
        problem = str(error)
    pixels = header.frames * header.height * header.width
    rate = "a picture" if header.rate is None else f"{float(header.rate):g} frames a second"
    if header.timing is not None:
        rate += f" on average: their times vary ({float(header.timing.seconds):.3f} seconds)"
    print(f"size      {header.height}x{header.width} pixels, {header.frames} frame(s), {rate}")
    kept = f"{header.bits} bits a token, tiles share {header.overlap} pixels"
    print(f"mode      {header.mode}, {kept}")
    print(f"model     {header.fingerprint.hex()}")
    print(
        f"bytes     {len(data):,d} ({8 * len(data) / pixels:.4f} bits a pixel): {payload:,d} of "
        f"tokens in {chunks} chunk(s), {len(data) - payload:,d} around them"
    )
    if problem:
        raise UserError(problem)
    print("whole     yes: all checksums are right")
    return 0


COMMAND = Command("show what a .bsq file holds", __doc__, add_arguments, run)
