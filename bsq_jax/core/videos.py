"""Videos of what a model does: clips beside each other under their names, saved as MP4."""

from __future__ import annotations

import io
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bsq_jax.core import checksums
from bsq_jax.core.errors import UserError

_CODEC = "libx264"
_TARGET_WIDTH = 320  # pixels of a clip: what can be watched
_BAR = 28  # pixels: height of the names
_GAP = 4
_INK = (40, 40, 40)


def check_encoder() -> None:
    """Whether videos can be written.

    Raises:
      UserError: the PyAV that is installed has no encoder for H.264.
    """
    if _CODEC not in av.codecs_available:
        raise UserError(
            f"the installed PyAV has no {_CODEC} to write videos with: install av from PyPI, or "
            "set --config.eval.videos=0"
        )


def beside(clips: Mapping[str, np.ndarray]) -> np.ndarray:
    """Clips beside each other, each under its name.

    Small ones are enlarged by a whole number without smoothing, so that a pixel stays a pixel.

    Args:
      clips: uint8 ``[time, height, width, channel 3]`` by name; all of one shape.

    Returns:
      uint8 ``[time, height, width, channel 3]`` on white, both sides even.
    """
    time, height, width, _ = next(iter(clips.values())).shape
    scale = max(1, -(-_TARGET_WIDTH // width))
    height, width = height * scale, width * scale
    lefts = [number * (width + _GAP) for number in range(len(clips))]
    sides = (_BAR + height, lefts[-1] + width)
    bar = Image.new("RGB", (sides[1], _BAR), "white")
    font = ImageFont.load_default(size=18)
    for name, left in zip(clips, lefts, strict=True):
        ImageDraw.Draw(bar).text((left + 4, _BAR / 2), name, fill=_INK, font=font, anchor="lm")
    # The encoder stores colours for squares of two by two pixels.
    sheet = np.full((time, *(side + side % 2 for side in sides), 3), 255, np.uint8)
    sheet[:, :_BAR, : sides[1]] = np.asarray(bar)
    for clip, left in zip(clips.values(), lefts, strict=True):
        large = clip.repeat(scale, axis=1).repeat(scale, axis=2)
        sheet[:, _BAR : sides[0], left : left + width] = large
    return sheet


def write_mp4(path: str | os.PathLike[str], frames: np.ndarray, fps: int = 8) -> None:
    """Writes a video that any browser plays, whole or not at all.

    Args:
      path: the file; missing folders are made.
      frames: uint8 ``[time, height, width, channel 3]``, height and width even.
      fps: frames a second.

    Raises:
      UserError: they are no such frames.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise UserError(
            f"a video must be uint8 [time, height, width, 3], not {frames.dtype} "
            f"{list(frames.shape)}"
        )
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise UserError(f"a video needs even sides, not {frames.shape[1]}x{frames.shape[2]}")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream(_CODEC, rate=fps, options={"crf": "12"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"  # what players know
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    checksums.write_atomic(target, buffer.getvalue())
