"""What is dropped on the page, as frames of a size that is computed in seconds."""

from __future__ import annotations

import dataclasses
import itertools
from fractions import Fraction

import numpy as np
from PIL import Image

from bsq_jax.coding.container import MAGIC
from bsq_jax.coding.frame_source import open_frames
from bsq_jax.core.errors import UserError
from bsq_jax.data.decoding import stills
from bsq_jax.data.decoding.record_frames import looks_like_video
from bsq_jax.data.records import BrokenRecord
from bsq_jax.media.timing import Timing

MOST_PIXELS = 2**20
"""Of a picture; larger ones are made smaller."""
MOST_CLIP_PIXELS = 2**17
"""Of a frame of a clip, likewise."""
MOST_SIDE = 2048
"""Of both, pixels."""
MOST_FRAMES = 16
"""Of a clip; further ones are left out."""
_MOST_READ = 2**26  # pixels of a picture that is decoded at all


@dataclasses.dataclass(frozen=True)
class OpenedFile:
    """A picture or a clip.

    Attributes:
      name: what it was called.
      frames: uint8 ``[time, height, width, 3]``.
      rate: frames a second of a clip or how long each is shown; None for a picture.
      notes: lines on what was left out or changed.
    """

    name: str
    frames: np.ndarray
    rate: Fraction | Timing | None
    notes: tuple[str, ...]


def open_file(name: str, content: bytes) -> OpenedFile:
    """Reads a picture, an animated picture or a video.

    Raises:
      UserError: it is none that can be read, or far too large.
    """
    if not content:
        raise UserError(f"{name} is empty")
    if content.startswith(MAGIC):
        raise UserError(f"{name} is a .bsq file: give a picture or a video")
    try:
        if not looks_like_video(content):
            _check_size(name, content)
        return _read(name, content)
    except BrokenRecord as error:
        raise UserError(f"{name} is no picture or video that can be read: {error}") from None


def _check_size(name: str, content: bytes) -> None:
    height, width = stills.image_size(content)
    if height * width > _MOST_READ:
        raise UserError(
            f"{name} has {height * width:,d} pixels: give one of {_MOST_READ:,d} at most"
        )


def _read(name: str, content: bytes) -> OpenedFile:
    with open_frames(name, content, MOST_FRAMES + 1) as opened:
        count = min(opened.count, MOST_FRAMES)
        most = MOST_PIXELS if count == 1 else MOST_CLIP_PIXELS
        frames, notes = [], list(opened.notes)
        size = (0, 0)
        for group in itertools.islice(opened.groups(1), count):
            size = group.shape[1:3]
            frames.append(_reduced(group[0], most))
        if opened.count > count:
            notes.append(f"the first {count} frames are taken")
        if not frames:
            raise UserError(f"{name} has no frames")
        height, width = frames[0].shape[:2]
        if (height, width) != size:
            notes.append(f"made smaller, from {size[1]}x{size[0]} to {width}x{height} pixels")
        rate = opened.rate() if callable(opened.rate) else opened.rate
    if isinstance(rate, Timing):
        rate = rate.first(len(frames))
    return OpenedFile(name, np.stack(frames), rate, tuple(notes))


def _reduced(frame: np.ndarray, most: int) -> np.ndarray:
    """A frame of at most so many pixels, of the same shape as nearly as whole pixels allow."""
    height, width = frame.shape[:2]
    scale = min(1.0, (most / (height * width)) ** 0.5, MOST_SIDE / max(height, width))
    if scale == 1:
        return frame
    size = max(int(width * scale), 1), max(int(height * scale), 1)
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
