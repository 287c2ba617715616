"""Reads the header of a ``.bsq`` file, which may be anything. See docs/format.md."""

from __future__ import annotations

import fractions
import math
import struct
import zlib
from typing import BinaryIO

import numpy as np

from bsq_jax.coding import header as fields
from bsq_jax.coding import varints
from bsq_jax.coding.header import (
    FINGERPRINT,
    MAGIC,
    MOST_FRAMES,
    MOST_NAME,
    VERSIONS,
    DamagedFile,
    Header,
    Origin,
    TruncatedFile,
)
from bsq_jax.coding.varints import Reader
from bsq_jax.core.errors import UserError
from bsq_jax.media.timing import Timing

_LOOKS = (
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG", "a PNG picture"),
    (b"GIF8", "a GIF picture"),
    (b"RIFF", "a WebP picture or an AVI video"),
    (b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (b"PK\x03\x04", "a zip file"),
    (b"\x1f\x8b", "a gzip file"),
)


def read_header(file: BinaryIO, name: str) -> Header:
    """Reads the header.

    Args:
      file: at its beginning; afterwards at the first chunk.
      name: of the file, for messages.

    Raises:
      UserError: it is no such file, of a later version, or damaged.
    """
    reader = Reader(file)
    magic = reader.some(len(MAGIC))
    if not magic:
        raise UserError(f"{name} is empty: copy or encode it again")
    if magic != MAGIC:
        if MAGIC.startswith(magic):
            raise TruncatedFile(f"{name} is cut short: it ends inside its header")
        if magic[:4] == MAGIC[:4]:
            raise DamagedFile(f"{name} is damaged: its first bytes are not those of a .bsq file")
        looks = next((what for start, what in _LOOKS if magic.startswith(start)), "")
        looks = "an MP4 or QuickTime video" if magic[4:8] == b"ftyp" else looks
        raise UserError(
            f"{name} is {looks}, no .bsq file: encode it first"
            if looks
            else f"{name} is no .bsq file: make one with python -m bsq_jax encode"
        )
    try:
        version, flags = reader.exactly(2)
        if version not in VERSIONS:
            raise UserError(
                f"{name} is of version {version} of the format, this bsq_jax reads up to "
                f"{VERSIONS[-1]}: update bsq_jax"
            )
        fingerprint = reader.exactly(FINGERPRINT)
        later, tiled = version >= VERSIONS[2], version >= VERSIONS[3]
        count = 5 + 2 * tiled + 2 * bool(flags & fields.VIDEO)
        numbers = [reader.varint() for _ in range(count)]
        timed = bool(flags & fields.TIMED) if later else version == VERSIONS[1]
        times_checksum = struct.unpack("<I", reader.exactly(4))[0] if timed else 0
        has_origin = bool(flags & fields.HAS_ORIGIN) if tiled else later
        step, model = 0, b""
        if has_origin:
            step, size = reader.varint(), reader.varint()
            if size > MOST_NAME:
                raise OverflowError
            model = reader.exactly(size)
        wanted = zlib.crc32(reader.seen)
        if struct.unpack("<I", reader.exactly(4))[0] != wanted:
            raise DamagedFile(f"{name} is damaged: its header differs from its checksum")
    except EOFError:
        raise TruncatedFile(f"{name} is cut short: it ends inside its header") from None
    except OverflowError:
        raise DamagedFile(f"{name} is damaged: its header differs from its checksum") from None
    known = fields.PRIOR | fields.VIDEO | fields.FULL_RANGE
    known |= (fields.TIMED | fields.AVERAGED) * later
    known |= (fields.STREAM | fields.HAS_ORIGIN) * tiled
    if flags & ~known or not flags & fields.FULL_RANGE:
        raise UserError(f"{name} uses what this bsq_jax does not know: update bsq_jax")
    height, width, frames, bits, overlap = numbers[:5]
    tile = (numbers[5], numbers[6]) if tiled else None
    rate = numbers[5 + 2 * tiled :]
    if rate and math.gcd(*rate) != 1:
        raise DamagedFile(f"{name} is damaged: its rate {rate[0]}/{rate[1]} is not in lowest terms")
    if timed and not (rate and 1 <= frames <= MOST_FRAMES):
        raise DamagedFile(f"{name} is damaged: its header claims times of what has none")
    timing = None
    try:
        unit = fractions.Fraction(*rate) if rate else None
        if timed and unit is not None:
            timing = Timing(unit, _read_times(file, name, frames, times_checksum))
            unit = timing.rate
        origin = None
        if has_origin:
            origin = Origin(model.decode(), step, bool(flags & fields.AVERAGED))
        elif flags & fields.AVERAGED:
            raise UserError("averaged weights of a model that it does not name")
        return Header(
            mode="prior" if flags & fields.PRIOR else "raw",
            fingerprint=fingerprint,
            height=height,
            width=width,
            frames=frames,
            rate=unit,
            bits=bits,
            overlap=overlap,
            timing=timing,
            origin=origin,
            tile=tile,
            stream=bool(flags & fields.STREAM),
        )
    except DamagedFile:
        raise
    except UnicodeDecodeError:
        raise DamagedFile(f"{name} is damaged: the name of its model is no text") from None
    except (UserError, ZeroDivisionError) as error:
        raise DamagedFile(f"{name} is damaged: its header claims {error}") from None


def _read_times(file: BinaryIO, name: str, frames: int, checksum: int) -> np.ndarray:
    """How long each frame lasts, int64 ``[frames]``, from the block behind the header."""
    reader = Reader(file)
    damaged = DamagedFile(f"{name} is damaged: the times of its frames differ from their checksum")
    try:
        size = reader.varint()
        if not frames <= size <= varints.LONGEST * frames:
            raise damaged
        content = reader.exactly(size)
    except EOFError:
        raise TruncatedFile(f"{name} is cut short: it ends inside its times") from None
    except OverflowError:
        raise damaged from None
    if zlib.crc32(content) != checksum:
        raise damaged
    try:
        return varints.parse(content, frames)
    except ValueError as error:
        raise DamagedFile(f"{name} is damaged: {error}") from None
