"""How long frames last as bytes of a ``.bsq`` file: a varint each. See docs/format.md.

All at once in NumPy, as there may be millions of frames.
"""

from __future__ import annotations

import numpy as np

LONGEST = 5  # bytes of a varint


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
