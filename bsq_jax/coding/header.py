"""The header of a ``.bsq`` file: what the file says of itself. See docs/format.md."""

from __future__ import annotations

import dataclasses
import fractions
import math
import struct
import zlib
from typing import BinaryIO, Self

import numpy as np

from bsq_jax.coding import varints
from bsq_jax.coding.varints import Reader, varint
from bsq_jax.core.errors import UserError
from bsq_jax.media.timing import Timing

# As in PNG: no text begins so, and whoever changes ends of lines on the way is found out.
MAGIC = b"\x8bBSQ\r\n\x1a\n"
VERSIONS = (1, 2, 3)  # plain, with the times of frames, with the origin of the model
FINGERPRINT = 8  # bytes
MOST_SIDE = 2**16
MOST_FRAMES = 2**24
MOST_BITS = 1024
MOST_NAME = 64  # bytes
_PRIOR, _VIDEO, _FULL_RANGE = 1, 2, 4
_TIMED, _AVERAGED = 8, 16  # of version 3

_LOOKS = (
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG", "a PNG picture"),
    (b"GIF8", "a GIF picture"),
    (b"RIFF", "a WebP picture or an AVI video"),
    (b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (b"PK\x03\x04", "a zip file"),
    (b"\x1f\x8b", "a gzip file"),
)


class DamagedFile(UserError):  # noqa: N818  # named for what it is
    """The bytes of a file are not those that were written.

    Attributes:
      frames: whole frames before the damage.
    """

    def __init__(self, message: str, frames: int = 0):
        """Takes the message and the number of frames."""
        super().__init__(message)
        self.frames = frames


class TruncatedFile(DamagedFile):
    """A file ends early."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Which training step of which model coded a file.

    Attributes:
      name: of the model's workdir, at most 64 bytes of UTF-8 without control characters.
      step: the training step of its weights.
      averaged: whether these are the averaged (ema) weights.
    """

    name: str
    step: int
    averaged: bool = False

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
          UserError: one of them cannot be written.
        """
        if not 0 <= self.step < 2 ** (7 * varints.LONGEST):
            raise UserError(f"a training step of {self.step} cannot be written")
        if not self.name.isprintable() or len(self.name.encode()) > MOST_NAME:
            raise UserError(f"the name {self.name!r} of a model cannot be written")

    @classmethod
    def of(cls, name: str, step: int, *, averaged: bool) -> Self:
        """The origin; a name that cannot be written is shortened, and has ? for what is no text."""
        text = name.encode(errors="replace").decode()
        text = "".join(letter if letter.isprintable() else "?" for letter in text)
        return cls(text.encode()[:MOST_NAME].decode(errors="ignore"), step, averaged)

    def __str__(self) -> str:
        """Such as ``step 300 of quickstart``."""
        return f"step {self.step} of {self.name}"


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
      mode: ``raw``, the bits of tokens as they are, or ``prior``.
      fingerprint: eight bytes of the identity of the model.
      height: of a frame, pixels.
      width: of a frame, pixels.
      frames: number of frames; 1 for a picture.
      rate: frames a second of a video, on average where `timing` is given; None for a picture.
      bits: bits of a token that are kept.
      overlap: pixels that neighbouring tiles share at least.
      timing: how long each frame of a video of variable rate is shown; None where the rate says it.
      origin: which step of which model coded it; None where that is not known.
    """

    mode: str
    fingerprint: bytes
    height: int
    width: int
    frames: int
    rate: fractions.Fraction | None
    bits: int
    overlap: int
    timing: Timing | None = None
    origin: Origin | None = None

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
          UserError: one of them cannot be written.
        """
        if self.mode not in ("raw", "prior") or len(self.fingerprint) != FINGERPRINT:
            raise ValueError(f"mode {self.mode!r}, fingerprint of {len(self.fingerprint)} bytes")
        for name, value, most in (
            ("height", self.height, MOST_SIDE),
            ("width", self.width, MOST_SIDE),
            ("number of frames", self.frames, MOST_FRAMES),
            ("number of bits", self.bits, MOST_BITS),
        ):
            if not 1 <= value <= most:
                raise UserError(f"a {name} of {value}: it must be from 1 to {most}")
        if not 0 <= self.overlap <= MOST_SIDE:
            raise UserError(f"an overlap of {self.overlap} pixels: it must be 0 to {MOST_SIDE}")
        if self.rate is None and self.frames != 1:
            raise UserError(f"a picture of {self.frames} frames: give the rate of a video")
        if self.timing is not None:
            if len(self.timing) != self.frames:
                raise UserError(f"times of {len(self.timing)} frames for {self.frames}")
            if self.rate != self.timing.rate:
                raise ValueError(f"a rate of {self.rate} with times of {self.timing.rate}")
            return
        parts = (1, 1) if self.rate is None else (self.rate.numerator, self.rate.denominator)
        if not all(1 <= part < 2**32 for part in parts):
            raise UserError(f"a rate of {self.rate} frames a second cannot be written")

    @property
    def is_video(self) -> bool:
        """Whether it is a video; a video may have a single frame."""
        return self.rate is not None

    @property
    def pixels(self) -> int:
        """Of all frames."""
        return self.frames * self.height * self.width

    def pack(self) -> bytes:
        """The bytes of the header, its checksum and the block of times included."""
        body, block = self._body(), b""
        if self.timing is not None:
            block = varint(len(packed := varints.pack(self.timing.lasting))) + packed
        return body + struct.pack("<I", zlib.crc32(body)) + block

    def checksum(self) -> int:
        """CRC-32 of the header's bytes, with which the chunks' checksums begin."""
        return zlib.crc32(self._body())

    def _body(self) -> bytes:
        timed, origin = self.timing is not None, self.origin
        flags = _FULL_RANGE | _PRIOR * (self.mode == "prior") | _VIDEO * self.is_video
        if origin is not None:
            flags |= _TIMED * timed | _AVERAGED * origin.averaged
        numbers = [self.height, self.width, self.frames, self.bits, self.overlap]
        unit = self.rate if self.timing is None else self.timing.ticks
        if unit is not None:
            numbers += [unit.numerator, unit.denominator]
        version = VERSIONS[timed if origin is None else 2]
        body = MAGIC + bytes([version, flags]) + self.fingerprint + b"".join(map(varint, numbers))
        if self.timing is not None:
            body += struct.pack("<I", zlib.crc32(varints.pack(self.timing.lasting)))
        if origin is not None:
            name = origin.name.encode()
            body += varint(origin.step) + varint(len(name)) + name
        return body


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
        count = 7 if flags & _VIDEO else 5
        numbers = [reader.varint() for _ in range(count)]
        timed = bool(flags & _TIMED) if version == VERSIONS[2] else version == VERSIONS[1]
        times_checksum = struct.unpack("<I", reader.exactly(4))[0] if timed else 0
        step, model = 0, b""
        if version == VERSIONS[2]:
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
    known = _PRIOR | _VIDEO | _FULL_RANGE
    if version == VERSIONS[2]:
        known |= _TIMED | _AVERAGED
    if flags & ~known or not flags & _FULL_RANGE:
        raise UserError(f"{name} uses what this bsq_jax does not know: update bsq_jax")
    height, width, frames, bits, overlap, *rate = numbers
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
        if version == VERSIONS[2]:
            origin = Origin(model.decode(), step, bool(flags & _AVERAGED))
        return Header(
            mode="prior" if flags & _PRIOR else "raw",
            fingerprint=fingerprint,
            height=height,
            width=width,
            frames=frames,
            rate=unit,
            bits=bits,
            overlap=overlap,
            timing=timing,
            origin=origin,
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
