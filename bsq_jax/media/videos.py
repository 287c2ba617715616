"""Videos as MP4 and Matroska files, and clips laid out side by side."""

from __future__ import annotations

import fractions
import io
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import av
import numpy as np
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    Interpolation,
    VideoReformatter,
)
from PIL import Image, ImageDraw, ImageFont

from bsq_jax.core.errors import UserError
from bsq_jax.core.files import write_atomic
from bsq_jax.media.timing import Timing, mean_rate

_CODEC = "libx264"
_TARGET_WIDTH = 320  # pixels: clips that are narrower are enlarged
_BAR = 28  # pixels: height of the names
_GAP = 4
_INK = (40, 40, 40)

_HIGH_DEFINITION = 720  # lines, from which on players assume BT.709
_RGB, _SMPTE170M = 0, 6  # matrices of H.273 without a name in PyAV: none, and BT.601
_ROUNDED = (
    Interpolation.BICUBIC
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.ACCURATE_RND
)
_MOST_MATROSKA = 1000  # times a second
_FINEST_MP4 = fractions.Fraction(90000)  # times a second; a frame of 13 hours still fits


def check_encoder() -> None:
    """Checks that videos can be written.

    Raises:
      UserError: the PyAV that is installed has no encoder for H.264.
    """
    if _CODEC not in av.codecs_available:
        raise UserError(
            f"the installed PyAV has no {_CODEC} to write videos with: install av from PyPI, or "
            "set --config.eval.videos=0"
        )


def side_by_side(clips: Mapping[str, np.ndarray]) -> np.ndarray:
    """Clips side by side, each under its name.

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
    # The encoder stores one color for each two by two pixels.
    sheet = np.full((time, *(side + side % 2 for side in sides), 3), 255, np.uint8)
    sheet[:, :_BAR, : sides[1]] = np.asarray(bar)
    for clip, left in zip(clips.values(), lefts, strict=True):
        large = clip.repeat(scale, axis=1).repeat(scale, axis=2)
        sheet[:, _BAR : sides[0], left : left + width] = large
    return sheet


def write_mp4(path: str | os.PathLike[str], frames: np.ndarray, fps: int = 8) -> None:
    """Writes a video that any browser plays, atomically.

    Args:
      path: the file; missing folders are made.
      frames: uint8 ``[time, height, width, channel 3]``, height and width even.
      fps: frames per second.

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
    write_atomic(target, encode_video([frames], fractions.Fraction(fps)))


def encode_video(
    groups: Iterable[np.ndarray],
    rate: fractions.Fraction | Timing,
    *,
    exact: bool = False,
    comment: str = "",
) -> bytes:
    """Frames as the bytes of a video file.

    The file states the matrix, primaries, transfer and range of its colors. MP4 has Y'CbCr in
    16..235, by BT.709 from 720 lines on and by BT.601 below, which is also what players assume that
    ignore these fields, so that all show the same colors. Matroska has RGB.

    Args:
      groups: uint8 ``[time, height, width, channel 3]``, one after the other; all of one size.
      rate: frames per second; or `Timing`, of as many frames or more. Matroska has times in
        milliseconds.
      exact: Matroska with FFV1, which keeps every pixel; else MP4 with H.264, which any browser
        plays. It stores one color for each two by two pixels, so odd sides lose a line.
      comment: kept in the tag of this name; empty: there is none.

    Raises:
      UserError: frames of this size or at this rate cannot be written.
    """
    buffer = io.BytesIO()
    size: tuple[int, ...] = ()
    try:
        with av.open(buffer, "w", format="matroska" if exact else "mp4") as container:
            if comment:
                container.metadata["comment"] = comment
            writer: _Writer | None = None
            for frames in groups:
                size = frames.shape[1:3]
                if writer is None:
                    writer = _Writer(container, size, rate, exact=exact)
                for frame in frames:
                    writer.add(frame)
            if writer is None:
                raise UserError("a video needs at least one frame")
            writer.add(None)
    except (av.FFmpegError, OverflowError) as error:
        raise UserError(
            f"{'FFV1 in Matroska' if exact else 'H.264 in MP4'} does not take frames of "
            f"{'x'.join(map(str, size))} at {_words(rate)} a second ({error}): try "
            f"{'.mp4' if exact else '.mkv'}"
        ) from error
    return buffer.getvalue()


def _words(rate: fractions.Fraction | Timing) -> str:
    return f"{float(mean_rate(rate)):g}"


class _Writer:
    """Writes the frames of one file."""

    def __init__(
        self,
        container: Any,
        size: tuple[int, ...],
        rate: fractions.Fraction | Timing,
        *,
        exact: bool,
    ):
        mean = mean_rate(rate if isinstance(rate, Timing) else fractions.Fraction(rate))
        if exact and mean > _MOST_MATROSKA:
            raise UserError(
                f"{_words(rate)} frames per second: Matroska has times in milliseconds; choose .mp4"
            )
        mean = mean.limit_denominator(10**6) or mean  # numbers that FFmpeg accepts
        options = {} if exact else {"crf": "12"}
        self._times: np.ndarray | None = None
        self._base = fractions.Fraction(0)
        if isinstance(rate, Timing):
            ticks = fractions.Fraction(_MOST_MATROSKA) if exact else min(rate.ticks, _FINEST_MP4)
            self._base, self._times = 1 / ticks, _in_ticks(rate, ticks)
            if not exact:
                # Reordering mixes up the durations of packets, and makes the last too short.
                options["x264-params"] = "bframes=0"
        stream = container.add_stream("ffv1" if exact else _CODEC, rate=mean, options=options)
        stream.height, stream.width = (side if exact else max(side - side % 2, 2) for side in size)
        stream.pix_fmt = "bgr0" if exact else "yuv420p"  # what players support
        context = stream.codec_context
        if self._times is not None:
            context.time_base = self._base
        context.color_primaries = ColorPrimaries.BT709
        if exact:
            context.colorspace, context.color_range = _RGB, ColorRange.JPEG
            context.color_trc = ColorTrc.IEC61966_2_1
        else:
            high = stream.height >= _HIGH_DEFINITION
            context.colorspace = Colorspace.ITU709 if high else _SMPTE170M
            context.color_range, context.color_trc = ColorRange.MPEG, ColorTrc.BT709
        self._matrix = context.colorspace
        self._exact, self._container, self._stream = exact, container, stream
        self._converter = VideoReformatter()  # one for all frames: it is slow to make
        self._count = 0

    def add(self, frame: np.ndarray | None) -> None:
        """Writes a frame, uint8 ``[height, width, 3]``; after the last None."""
        picture = None if frame is None else self._picture(frame)
        if picture is not None and self._times is not None:
            picture.pts, picture.time_base = int(self._times[self._count]), self._base
        self._count += frame is not None
        for packet in self._stream.encode(picture):
            if self._times is not None:
                place = int(np.searchsorted(self._times, packet.pts))
                packet.duration = int(self._times[place + 1] - self._times[place])
            self._container.mux(packet)

    def _picture(self, frame: np.ndarray) -> av.VideoFrame:
        height, width = self._stream.height, self._stream.width
        more = (max(height - frame.shape[0], 0), max(width - frame.shape[1], 0))
        frame = np.pad(frame, ((0, more[0]), (0, more[1]), (0, 0)), mode="edge")
        frame = np.ascontiguousarray(frame[:height, :width])
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        if self._exact:
            return self._converter.reformat(picture, format="bgr0")
        return self._converter.reformat(
            picture,
            format="yuv420p",
            interpolation=_ROUNDED,
            src_colorspace=self._matrix,
            dst_colorspace=self._matrix,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
        )


def _in_ticks(timing: Timing, ticks: fractions.Fraction) -> np.ndarray:
    """Times of frames and of their end, strictly increasing; int64 ``[frames + 1]``."""
    times = np.concatenate([[0], np.cumsum(timing.lasting)])
    if ticks != timing.ticks:
        times = np.rint(times * float(ticks / timing.ticks)).astype(np.int64)
    # Frames that come faster than ticks are delayed, as few as possible.
    numbers = np.arange(len(times))
    return np.maximum.accumulate(times - numbers) + numbers
