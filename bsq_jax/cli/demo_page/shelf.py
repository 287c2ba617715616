"""Pictures that the page may ask for, by names that cannot be guessed."""

from __future__ import annotations

import collections
import secrets
import threading

import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.media.pictures import encode_png

_MOST_BYTES = 2**28


class Gone(UserError):  # noqa: N818  # named for what it is
    """What is asked for is held no longer, or never was."""


class Shelf:
    """Frames by name; those longest unused are dropped once there are too many bytes of them."""

    def __init__(self, most: int = _MOST_BYTES):
        """Begins empty; at most so many bytes are held, and one entry in any case."""
        self._most, self._bytes = most, 0
        self._entries: collections.OrderedDict[str, np.ndarray] = collections.OrderedDict()
        self._lock = threading.Lock()

    def put(self, frames: np.ndarray) -> str:
        """Keeps frames, uint8 ``[time, height, width, 3]``; returns their name."""
        name = secrets.token_urlsafe(12)
        with self._lock:
            self._entries[name] = frames
            self._bytes += frames.nbytes
            while self._bytes > self._most and len(self._entries) > 1:
                self._bytes -= self._entries.popitem(last=False)[1].nbytes
        return name

    def touch(self, name: str) -> bool:
        """Marks frames as used just now; returns whether they are held."""
        with self._lock:
            held = name in self._entries
            if held:
                self._entries.move_to_end(name)
        return held

    def png(self, name: str, frame: int) -> bytes:
        """A frame as a PNG file.

        Raises:
          Gone: there is none.
        """
        self.touch(name)
        with self._lock:
            frames = self._entries.get(name)
        if frames is None or not 0 <= frame < len(frames):
            raise Gone("this picture is held no longer: open it again")
        return encode_png(frames[frame])
