"""Says what .bsq files hold, and whether all of it is whole; needs no model.

Examples:
  bsq-jax info photo.bsq
  bsq-jax info coded/

Of a folder it prints a line for each file, and the sum. Exit status: 0 all are whole, 2 some are
not.
"""

from __future__ import annotations

import argparse
import io
import pathlib
from typing import TYPE_CHECKING

from bsq_jax.cli.command import Command
from bsq_jax.cli.inputs import read_input
from bsq_jax.cli.outputs import bits_a_pixel, size_and_rate, tiles_of
from bsq_jax.core.errors import MISTAKE, UserError

if TYPE_CHECKING:
    from bsq_jax.coding.container import Header


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``info``."""
    parser.add_argument("input", help="a .bsq file or a folder of them, or - for standard input")


def run(flags: argparse.Namespace) -> int:
    """Prints the header, and checks every chunk."""
    from bsq_jax.coding.container import DamagedFile, TruncatedFile, read_chunks, read_header

    if flags.input != "-" and pathlib.Path(flags.input).is_dir():
        return _folder(pathlib.Path(flags.input))
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
    rate = "a picture" if header.rate is None else f"{float(header.rate):g} frames a second"
    if header.timing is not None:
        rate += f" on average: their times vary ({float(header.timing.seconds):.3f} seconds)"
    print(f"size      {header.height}x{header.width} pixels, {header.frames} frame(s), {rate}")
    print(f"mode      {header.mode}, {header.bits} bits a token{tiles_of(header)}")
    print(f"model     {_model(header)}")
    print(
        f"bytes     {len(data):,d} ({bits_a_pixel(len(data), header.pixels)}): "
        f"{payload:,d} of tokens in {chunks} chunk(s), {len(data) - payload:,d} around them"
    )
    if problem:
        raise UserError(problem)
    print("whole     yes: all checksums are right")
    return 0


def _model(header: Header) -> str:
    """The model that coded a file, as far as the file says it."""
    if (origin := header.origin) is None:
        return header.fingerprint.hex()
    weights = "averaged weights" if origin.averaged else "raw weights"
    return f"{origin}, {weights} ({header.fingerprint.hex()})"


def _folder(root: pathlib.Path) -> int:
    """Prints a line for each .bsq file below a folder."""
    from bsq_jax.cli import folders
    from bsq_jax.coding.container import read_whole
    from bsq_jax.core.text import aligned

    found = folders.find(root, {".bsq"}, root)
    rows, problems, total, pixels = [], found.problems, 0, 0
    for name in found.names:
        try:
            header, size = read_whole(root / name)
        except UserError as error:
            problems.append(str(error))
            continue
        except OSError as error:
            problems.append(f"{root / name}: {error.strerror}")
            continue
        total, pixels = total + size, pixels + header.pixels
        coded_by = str(header.origin) if header.origin else header.fingerprint.hex()
        shape = f"{header.height}x{header.width}"
        frames = f"{header.frames} frames" if header.is_video else "picture"
        rate = bits_a_pixel(size, header.pixels).split()[0]
        rows.append(
            [name, shape, frames, f"{header.mode} {header.bits}", coded_by, f"{size:,d}", rate]
        )
    if not rows and not problems:
        raise UserError(f"{root} holds no .bsq file")
    if rows:
        head = ["file", "pixels", "frames", "mode, bits", "model", "bytes", "bits a pixel"]
        print("\n".join(aligned([head, *rows])))
        print(f"{len(rows)} whole file{'s' * (len(rows) > 1)}, {size_and_rate(total, pixels)}")
    for problem in problems:
        folders.tell(problem)
    return MISTAKE if problems else 0


COMMAND = Command("show what .bsq files hold, of one or a folder", __doc__, add_arguments, run)
