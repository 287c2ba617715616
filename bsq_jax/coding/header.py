"""The header of a ``.bsq`` file: what the file says of itself. See docs/format.md."""

from __future__ import annotations

import dataclasses
import fractions
import struct
import zlib
from typing import Self

from bsq_jax.coding import varints
from bsq_jax.coding.varints import varint
from bsq_jax.core.errors import UserError
from bsq_jax.media.timing import Timing

# As in PNG: no text begins so, and whoever changes ends of lines on the way is found out.
MAGIC = b"\x8bBSQ\r\n\x1a\n"
VERSIONS = (1, 2, 3, 4)
"""Plain; with the times of frames; with the origin of the model; with the size of the tiles."""
FINGERPRINT = 8  # bytes
MOST_SIDE = 2**16
MOST_FRAMES = 2**24
MOST_BITS = 1024
MOST_NAME = 64  # bytes
PRIOR, VIDEO, FULL_RANGE = 1, 2, 4  # flags
TIMED, AVERAGED = 8, 16  # from version 3 on
STREAM, HAS_ORIGIN = 32, 64  # from version 4 on
NATIVE = (0, 0)
"""The tile of a file that codes each frame as a whole."""


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
      overlap: pixels that neighbouring tiles share at least; 0 where the tile is `NATIVE`.
      timing: how long each frame of a video of variable rate is shown; None where the rate says it.
      origin: which step of which model coded it; None where that is not known.
      tile: (height, width) of a tile, pixels; `NATIVE` where each frame is coded as a whole. None:
        tiles are of the model's own size, clips are coded one after the other, and the file is of
        version 3 at most.
      stream: all frames of a video are coded as one clip; needs `tile`.
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
    tile: tuple[int, int] | None = None
    stream: bool = False

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
        if self.tile is not None and self.tile != NATIVE:
            if not all(1 <= side <= MOST_SIDE for side in self.tile):
                raise UserError(f"tiles of {self.tile[0]}x{self.tile[1]} pixels")
        elif self.tile == NATIVE and self.overlap:
            raise UserError(f"an overlap of {self.overlap} pixels without tiles")
        if self.stream and (self.tile is None or not self.is_video):
            raise UserError("a stream of what is no video of version 4")
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

    @property
    def version(self) -> int:
        """The lowest version of the format that holds all of it."""
        if self.tile is not None:
            return VERSIONS[3]
        if self.origin is not None:
            return VERSIONS[2]
        return VERSIONS[self.timing is not None]

    def _flags(self) -> int:
        flags = FULL_RANGE | PRIOR * (self.mode == "prior") | VIDEO * self.is_video
        if self.version >= VERSIONS[2]:
            averaged = self.origin is not None and self.origin.averaged
            flags |= TIMED * (self.timing is not None) | AVERAGED * averaged
        if self.version >= VERSIONS[3]:
            flags |= STREAM * self.stream | HAS_ORIGIN * (self.origin is not None)
        return flags

    def _body(self) -> bytes:
        numbers = [self.height, self.width, self.frames, self.bits, self.overlap]
        numbers += self.tile or ()
        unit = self.rate if self.timing is None else self.timing.ticks
        if unit is not None:
            numbers += [unit.numerator, unit.denominator]
        body = MAGIC + bytes([self.version, self._flags()]) + self.fingerprint
        body += b"".join(map(varint, numbers))
        if self.timing is not None:
            body += struct.pack("<I", zlib.crc32(varints.pack(self.timing.lasting)))
        if self.origin is not None:
            name = self.origin.name.encode()
            body += varint(self.origin.step) + varint(len(name)) + name
        return body
