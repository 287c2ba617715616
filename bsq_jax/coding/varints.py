"""Numbers of a ``.bsq`` file: one by one, and many at once in NumPy. See docs/format.md."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

LONGEST = 5  # bytes of a varint
PIECE = 2**20  # bytes that are read at once, whatever a file claims


class Reader:
    """Reads from a file and remembers what it has read."""

    def __init__(self, file: BinaryIO):
        """Begins where the file is; `seen` is what was read since."""
        self._file = file
        self.seen = bytearray()

    def some(self, size: int) -> bytes:
        """So many bytes, or all there are; memory grows with what is there, not with `size`."""
        start = len(self.seen)
        while (missing := size - len(self.seen) + start) > 0:
            part = self._file.read(min(missing, PIECE))
            if not part:
                break
            self.seen += part
        with memoryview(self.seen) as seen:
            return bytes(seen[start:])

    def exactly(self, size: int) -> bytes:
        """So many bytes; raises ``EOFError`` where there are fewer."""
        found = self.some(size)
        if len(found) < size:
            raise EOFError
        return found

    def varint(self) -> int:
        """A number below 2^35; raises ``OverflowError`` where it is larger or badly written."""
        value = 0
        for place in range(LONGEST):
            byte = self.exactly(1)[0]
            value |= (byte & 127) << 7 * place
            if byte < 128:
                if place and not byte:
                    raise OverflowError  # one number, one way to write it
                return value
        raise OverflowError


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; all bytes but the last have the highest bit set."""
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def pack(lasting: np.ndarray) -> bytes:
    """The bytes of numbers from 1 to 2^35 - 1, int64 ``[frames]``."""
    sizes = np.ones(len(lasting), np.int64)
    for place in range(1, LONGEST):
        sizes += lasting >> 7 * place > 0
    starts = np.cumsum(sizes) - sizes
    made = np.zeros(int(sizes.sum()), np.uint8)
    for place in range(LONGEST):
        has = sizes > place
        more = 128 * (sizes[has] > place + 1)
        made[starts[has] + place] = (lasting[has] >> 7 * place) & 127 | more
    return made.tobytes()


def parse(content: bytes, frames: int) -> np.ndarray:
    """The numbers that `pack` was given, int64 ``[frames]``; memory is in proportion to the bytes.

    Raises:
      ValueError: the bytes are not those of so many numbers from 1 to 2^35 - 1.
    """
    parts = np.frombuffer(content, np.uint8)
    ends = np.flatnonzero(parts < 128)
    sizes = np.diff(ends, prepend=-1)
    whole = len(ends) == frames and ends[-1] == len(parts) - 1 and sizes.max() <= LONGEST
    # One number, one way to write it: the last of several bytes is not 0, and no frame lasts 0.
    if not whole or not parts[ends].all():
        raise ValueError(f"the times of its frames are not those of {frames} frames")
    lasting = np.zeros(frames, np.int64)
    for place in range(LONGEST):
        has = sizes > place
        part = parts[ends[has] - sizes[has] + 1 + place].astype(np.int64)
        lasting[has] |= (part & 127) << 7 * place
    return lasting
