"""Videos of what a model does: clips beside each other under their names, saved as MP4."""

from __future__ import annotations

import fractions
import io
import os
import pathlib
from collections.abc import Iterable, Mapping
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
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    checksums.write_atomic(target, encode_video([frames], fractions.Fraction(fps)))


def encode_video(
    groups: Iterable[np.ndarray], rate: fractions.Fraction, *, exact: bool = False
) -> bytes:
    """Frames as the bytes of a video file.

    Args:
      groups: uint8 ``[time, height, width, channel 3]``, one after the other; all of one size.
      rate: frames a second.
      exact: Matroska with FFV1, which keeps every pixel; else MP4 with H.264, which any browser
        plays. Its colours are stored for squares of two by two pixels, so odd sides lose a line.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska" if exact else "mp4") as container:
        stream: Any = None
        for frames in groups:
            if stream is None:
                options = {} if exact else {"crf": "12"}
                stream = container.add_stream(
                    "ffv1" if exact else _CODEC, rate=rate, options=options
                )
                stream.height, stream.width = (
                    side if exact else max(side - side % 2, 2) for side in frames.shape[1:3]
                )
                stream.pix_fmt = "bgr0" if exact else "yuv420p"  # the latter is what players know
            if not exact:
                least = [max(2 - side, 0) for side in frames.shape[1:3]]
                frames = np.pad(
                    frames, ((0, 0), (0, least[0]), (0, least[1]), (0, 0)), mode="edge"
                )[:, : stream.height, : stream.width]
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return buffer.getvalue()
