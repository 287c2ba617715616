"""The ``.bsq`` file: a header and chunks of frames, each behind a checksum. See docs/format.md."""

from __future__ import annotations

import functools
import io
import pathlib
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from bsq_jax.coding.header import MAGIC, NATIVE, DamagedFile, Header, Origin, TruncatedFile
from bsq_jax.coding.header_reader import read_header
from bsq_jax.coding.varints import PIECE, Reader, varint

__all__ = [
    "MAGIC",
    "NATIVE",
    "Chunk",
    "DamagedFile",
    "Header",
    "Origin",
    "TruncatedFile",
    "bits_checksum",
    "pack_chunk",
    "read_chunks",
    "read_header",
    "read_whole",
]


class Chunk(NamedTuple):
    """Some whole frames.

    Attributes:
      frames: how many.
      payload: what stands for their bits.
      checksum: of the bits, see `bits_checksum`.
    """

    frames: int
    payload: bytes
    checksum: int


def bits_checksum(bits: np.ndarray, before: int = 0) -> int:
    """CRC-32 of bits 0/1, a byte each, in the order of memory; goes on from `before`."""
    return zlib.crc32(np.ascontiguousarray(bits, np.uint8).tobytes(), before)


def pack_chunk(chunk: Chunk, header: Header) -> bytes:
    """The bytes of a chunk of a file with this header."""
    body = varint(chunk.frames) + varint(len(chunk.payload))
    body += struct.pack("<I", chunk.checksum) + chunk.payload
    return body + struct.pack("<I", zlib.crc32(body, _seed(header)))


def read_chunks(
    file: BinaryIO, header: Header, name: str, limit: Callable[[int], int]
) -> Iterator[Chunk]:
    """Reads the chunks, each verified before it is given.

    Args:
      file: behind the header.
      header: what `read_header` gave.
      name: of the file, for messages.
      limit: the most bytes that the payload of so many frames can have.

    Raises:
      TruncatedFile: the file ends before its last frame.
      DamagedFile: a checksum is not right, or there are bytes behind the last frame.
    """
    done = 0

    def damaged(what: str) -> DamagedFile:
        return DamagedFile(
            f"{name} is damaged after {done} of {header.frames} frames: {what}", done
        )

    while done < header.frames:
        reader = Reader(file)
        try:
            frames, size = reader.varint(), reader.varint()
            if not 1 <= frames <= header.frames - done or size > limit(frames):
                raise damaged("a chunk claims an impossible size")
            (checksum,) = struct.unpack("<I", reader.exactly(4))
            payload = reader.exactly(size)
            wanted = zlib.crc32(reader.seen, _seed(header))
            if struct.unpack("<I", reader.exactly(4))[0] != wanted:
                raise damaged("a chunk differs from its checksum")
        except EOFError:
            raise TruncatedFile(
                f"{name} is cut short: {done} of {header.frames} frames are whole", done
            ) from None
        except OverflowError:
            raise damaged("a chunk claims an impossible size") from None
        yield Chunk(frames, payload, checksum)
        done += frames
    if rest := len(file.read(PIECE)):
        more = "or more " if rest == PIECE else ""
        raise DamagedFile(f"{name} has {rest} {more}bytes behind its end: was it joined?", done)


def read_whole(path: pathlib.Path) -> tuple[Header, int]:
    """Header of a ``.bsq`` file and its number of bytes, of which each checksum was compared.

    Raises:
      DamagedFile: it is not whole.
      UserError: it is no such file.
    """
    data = path.read_bytes()
    file = io.BytesIO(data)
    header = read_header(file, str(path))
    for _ in read_chunks(file, header, str(path), lambda _: len(data)):
        pass
    return header, len(data)


@functools.lru_cache(maxsize=8)
def _seed(header: Header) -> int:
    """Chunks carry the checksum of their header in theirs, so that they fit no other."""
    return header.checksum()
