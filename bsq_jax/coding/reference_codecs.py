"""Codecs to compare with, each at settings from low to medium quality: files made in memory.

* ``jpeg``, ``webp``, ``avif``: Pillow, a file for every frame.
* ``h264``, ``h265``, ``av1``: libx264, libx265 and SVT-AV1 (else libaom) at constant quality, an
  MP4 file with colours for squares of two by two pixels (4:2:0), as videos have them.
* ``h264-444``, ``h265-444``, ``av1-444``: the same with a colour for every pixel (4:4:4).

Encoders work as they are tuned from the start, with slow presets and key frames as for files, and
give the same bytes whatever the number of cores. What they write about themselves into a file is
left out, as it would count for much in a small one.

RGB becomes Y'CbCr by BT.709 in the range 16..235, which the files say too, and comes back the same
way. All arithmetic rounds to nearest; what ffmpeg does by default darkens a picture by about one
level (``tests/test_reference_codecs.py``).
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    Interpolation,
    VideoReformatter,
)
from PIL import Image, features

from bsq_jax.core.errors import UserError

DEFAULT_RATE = Fraction(25)
"""Frames a second of a video whose rate is not known."""

_EXACT = (
    Interpolation.BICUBIC
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.ACCURATE_RND
)
# libx265 4.2 writes behind its arrays for frames narrower than this (its cutree), and refuses very
# small ones; SVT-AV1 refuses those below 4 pixels.
_LEAST_SIDE = 64
_KEY_FRAMES = 250  # frames from one to the next, at most


@dataclasses.dataclass(frozen=True)
class Coded:
    """What came of coding.

    Attributes:
      frames: as decoded from the file, uint8 ``[time, height, width, 3]``.
      file_bytes: of the whole file, or of the files of all frames.
      packet_bytes: of what it holds, without the container around it.
    """

    frames: np.ndarray
    file_bytes: int
    packet_bytes: int


@dataclasses.dataclass(frozen=True)
class Coder:
    """A codec at several settings: what makes one curve.

    Attributes:
      name: what to call it.
      about: which encoder, and how it is set.
      scale: what the settings are, such as ``crf``.
      settings: the lowest quality first.
      code: of frames uint8 ``[time, height, width, 3]`` of any size, a setting, and frames a second
        (None if not known): encodes and decodes.
    """

    name: str
    about: str
    scale: str
    settings: tuple[int, ...]
    code: Callable[[np.ndarray, int, Fraction | None], Coded]


# --- pictures ---


def code_pictures(
    kind: str, options: Mapping[str, Any], frames: np.ndarray, setting: int, _: Fraction | None
) -> Coded:
    """Files of Pillow with these options, one for each frame; see `Coder.code`."""
    made, size = np.empty_like(frames), 0
    for number, frame in enumerate(frames):
        file = io.BytesIO()
        Image.fromarray(frame).save(file, kind, quality=setting, **options)
        size += len(file.getvalue())
        with Image.open(file) as opened:
            made[number] = np.asarray(opened.convert("RGB"))
    return Coded(made, size, size)


# --- videos ---


@dataclasses.dataclass(frozen=True)
class _Encoder:
    """An encoder of ffmpeg.

    Attributes:
      name: as ffmpeg calls it.
      speed: name and value of the option that sets how hard it tries.
      options: others.
      filter: what its packets go through.
      threads: how many; 0: it chooses.
      block: (height, width) in pixels that sides are filled up to a multiple of. It codes whole
        blocks of 8 or 16 in any case, but libx264 also reads 32 columns at once: what lies in
        memory behind a narrower row then changes the file from one time to the next. (Filled up,
        one file in thousands still differed, for a reason that was not found.)
    """

    name: str
    speed: str
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    filter: str = "null"
    threads: int = 0
    block: tuple[int, int] = (8, 8)


# With several threads libx264 searches less: with four, files of a small clip were 16% larger.
_X264 = _Encoder(
    "libx264", "preset slow", filter="filter_units=remove_types=6", threads=1, block=(16, 32)
)
_X265 = _Encoder("libx265", "preset slow", {"x265-params": "log-level=none:info=0:frame-threads=1"})
_SVT = _Encoder("libsvtav1", "preset 4")
_AOM = _Encoder("libaom-av1", "cpu-used 4")


def _code_video(
    encoder: _Encoder, pixels: str, frames: np.ndarray, setting: int, rate: Fraction | None
) -> Coded:
    count, height, width, _ = frames.shape
    try:
        file = _write(encoder, pixels, frames, setting, rate or DEFAULT_RATE)
    except av.FFmpegError as error:
        raise UserError(
            f"{encoder.name} does not take {count} frames of {height}x{width} as {pixels} "
            f"({error.strerror}): leave it out, or change their size"
        ) from error
    made = np.empty_like(frames)
    found = packet_bytes = 0
    converter = VideoReformatter()  # one for all frames: to make one takes longer than to use it
    with av.open(io.BytesIO(file), "r") as container:
        for packet in container.demux(video=0):
            packet_bytes += packet.size
            for frame in packet.decode():
                made[found] = _rgb(converter, frame)[:height, :width]
                found += 1
    if found != count:
        raise RuntimeError(f"{encoder.name} gave {found} frames for {count}")
    return Coded(made, len(file), packet_bytes)


def _write(
    encoder: _Encoder, pixels: str, frames: np.ndarray, setting: int, rate: Fraction
) -> bytes:
    """The MP4 file."""
    option, speed = encoder.speed.split()
    options = {"crf": str(setting), option: speed, **encoder.options}
    if encoder is _X265 and len(frames) < 3:  # what it reorders then gets no valid times
        options["x265-params"] += ":bframes=0"
    if encoder is _SVT:  # it prints by itself; this is where it looks how much
        os.environ.setdefault("SVT_LOG", "0")
    filling = [
        (0, max(side + -side % block, _LEAST_SIDE) - side)
        for side, block in zip(frames.shape[1:3], encoder.block, strict=True)
    ]
    buffer, converter = io.BytesIO(), VideoReformatter()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream(encoder.name, rate=rate, options=options)
        context = stream.codec_context
        stream.height, stream.width = (
            side + more for side, (_, more) in zip(frames.shape[1:3], filling, strict=True)
        )
        stream.pix_fmt = pixels
        context.bit_rate, context.gop_size = 0, _KEY_FRAMES
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        context.thread_count = encoder.threads
        context.open()
        strip = BitStreamFilterContext(encoder.filter, stream)
        for number in range(len(frames) + 1):
            picture = None  # the end
            if number < len(frames):
                filled = np.pad(frames[number], [*filling, (0, 0)], mode="edge")
                picture = _yuv(converter, filled, pixels)
                picture.pts, picture.time_base = number, 1 / rate
            for packet in stream.encode(picture):
                container.mux(strip.filter(packet))
    return buffer.getvalue()


# --- colours ---


def _yuv(converter: VideoReformatter, frame: np.ndarray, pixels: str) -> av.VideoFrame:
    """A frame, uint8 ``[height, width, 3]``, for the encoder."""
    return converter.reformat(
        av.VideoFrame.from_ndarray(frame, format="rgb24"),
        format=pixels,
        interpolation=_EXACT,
        src_colorspace=Colorspace.ITU709,
        dst_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.MPEG,
    )


def _rgb(converter: VideoReformatter, frame: av.VideoFrame) -> np.ndarray:
    """The way back from `_yuv`."""
    return converter.reformat(
        frame,
        format="rgb24",
        interpolation=_EXACT,
        src_colorspace=Colorspace.ITU709,
        dst_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
    ).to_ndarray()


# --- by name ---

_PICTURES: dict[str, tuple[str, dict[str, Any], str, tuple[int, ...]]] = {
    "jpeg": (
        "JPEG",
        {"optimize": True, "progressive": True},
        "Pillow, optimized and progressive, 4:2:0",
        (5, 10, 20, 35, 55, 75),
    ),
    "webp": ("WEBP", {"method": 6}, "Pillow, method 6, 4:2:0", (1, 10, 25, 45, 65, 80)),
    # One thread, so that the bytes do not depend on the machine.
    "avif": (
        "AVIF",
        {"speed": 4, "max_threads": 1},
        "Pillow, speed 4, 4:2:0",
        (10, 20, 32, 44, 57, 70),
    ),
}
_VIDEOS: dict[str, tuple[tuple[_Encoder, ...], tuple[int, ...]]] = {
    "h264": ((_X264,), (46, 41, 36, 31, 26, 21)),
    "h265": ((_X265,), (46, 41, 36, 31, 26, 21)),
    "av1": ((_SVT, _AOM), (63, 56, 49, 42, 35, 28)),
}
_FULL_COLOUR = "-444"
NAMES = (*_PICTURES, *_VIDEOS, *(name + _FULL_COLOUR for name in _VIDEOS))
"""The codecs there are."""


def reference(name: str) -> Coder:
    """A codec to compare with.

    Raises:
      UserError: there is no such codec, or what is installed has no encoder for it.
    """
    if name not in NAMES:
        raise UserError(f"unknown codec {name!r} to compare with: choose from {', '.join(NAMES)}")
    if name in _PICTURES:
        kind, options, about, settings = _PICTURES[name]
        if name != "jpeg" and not features.check(name):
            raise UserError(
                f"the installed Pillow cannot write {kind}: leave {name} out, or install Pillow "
                "11.3 or newer from PyPI"
            )
        code = functools.partial(code_pictures, kind, options)
        return Coder(name, about, "quality", settings, code)
    encoders, settings = _VIDEOS[name.removesuffix(_FULL_COLOUR)]
    pixels = "yuv444p" if name.endswith(_FULL_COLOUR) else "yuv420p"
    for encoder in encoders:
        if encoder.name in av.codecs_available and _takes(encoder.name, pixels):
            about = f"{encoder.name}, {encoder.speed}, {pixels}"
            coder = functools.partial(_code_video, encoder, pixels)
            return Coder(name, about, "crf", settings, coder)
    wanted = " or ".join(encoder.name for encoder in encoders)
    raise UserError(
        f"{name} needs an encoder that the installed PyAV does not have ({wanted}, for {pixels}): "
        f"leave {name} out, or install another build of av"
    )


def _takes(encoder: str, pixels: str) -> bool:
    """Whether an encoder says that it takes frames of a pixel format."""
    formats = av.Codec(encoder, "w").video_formats or ()
    return any(found.name == pixels for found in formats)
