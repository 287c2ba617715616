"""Pictures and clips as people have them: files, PIL images, arrays of any layout and range."""

from __future__ import annotations

import os
import pathlib
import sys
import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

import bsq_jax
from bsq_jax.core.errors import UserError
from bsq_jax.core.paths import local_path
from bsq_jax.core.pixels import pixels_to_bytes
from bsq_jax.data.decoding import stills
from bsq_jax.data.decoding.record_frames import is_video, open_record
from bsq_jax.data.decoding.video import VIDEO_EXTENSIONS
from bsq_jax.data.records import BrokenRecord, Record
from bsq_jax.inference.given import Given, as_array, gather
from bsq_jax.inference.grids import check_tokens, grid_of
from bsq_jax.inference.layouts import canonical, channels_first, check_layout
from bsq_jax.models.positions import check_length
from bsq_jax.models.tokenizer_shape import TokenizerShape

SIGNED = (-1, 1)
"""The range of float pixels inside this package."""
# Ranges that pixels may have: their scale and offset to `SIGNED`.
_RANGES: dict[tuple[float, float], tuple[float, float]] = {
    SIGNED: (1.0, 0.0),
    (0, 1): (0.5, -1.0),
    (0, 255): (127.5, -1.0),
}
_TOLERANCE = 1e-3  # of a range of 2, for what arithmetic in 16 bits leaves
_DOUBTFUL = (
    "float pixels count as [-1, 1], but all of these lie in [0, 1]: say which it is with "
    "value_range=(0, 1) or value_range=(-1, 1)"
)
_AMBIGUOUS = (
    "4 axes count as a batch of pictures, and this model also takes clips: say which it is with "
    "layout='NHWC' or, for a clip, layout='THWC'"
)
TAKEN = (
    "a picture [height, width, 3], a batch [batch, height, width, 3] or clips "
    "[batch, time, height, width, 3]; a path, a PIL image; or a list of these"
)


def given_pixels(
    pixels: Any,
    shape: TokenizerShape,
    *,
    value_range: tuple[float, float] | None = None,
    layout: str | None = None,
    clips: bool = True,
    limit: bool = True,
) -> Given:
    """Pixels that a model can encode.

    Args:
      pixels: see `Tokenizer.encode`.
      shape: of the model.
      value_range: black and white of floats, ``(-1, 1)``, ``(0, 1)`` or ``(0, 255)``. If it is not
        stated, they count as [-1, 1]; if all of an input lie in [0, 1], they were most likely meant
        to be in that range, and a `UserWarning` says so.
      layout: order of the axes of arrays, see `canonical`.
      clips: whether clips are allowed.
      limit: refuse clips that are longer than the model's, or too large to be computed at once.

    Returns:
      uint8 or float32 in [-1, 1] ``[batch, time, height, width, 3]`` of each input.

    Raises:
      UserError: wrong shape, type or range, a picture or clip that is too large, or a file that
        cannot be read.
    """
    doubtful = ambiguous = False
    check_layout(layout)

    def convert(item: Any) -> tuple[np.ndarray, str]:
        nonlocal doubtful, ambiguous
        if isinstance(item, str | os.PathLike):
            array, axes = _of_file(item, shape, limit=limit and clips)
        elif isinstance(item, Image.Image):
            array, axes = of_image(item)[None, None], ""
        else:
            array, axes = _of_array(as_array(item, "pixels", TAKEN), layout, clips=clips)
            ambiguous |= axes == "N" and layout is None and clips and shape.frames > 1
        if axes == "NT" and not clips:
            raise UserError("a clip in a stream: give it frame by frame")
        if limit:
            _check_frames(array, axes, shape)
        _check_size(array, shape, array.shape[1] if limit else 1)
        scaled, unsure = _in_signed_range(array, value_range)
        doubtful |= unsure
        return scaled, axes

    given = gather(pixels, convert)
    if doubtful:
        _warn(_DOUBTFUL)
    if ambiguous:
        _warn(_AMBIGUOUS)
    return given


def given_frames(
    frames: Any, *, value_range: tuple[float, float] | None = None, layout: str | None = None
) -> np.ndarray:
    """A picture or the frames of a video, of any size, as bytes.

    Args:
      frames: a picture ``[height, width, 3]`` or frames ``[time, height, width, 3]``, arrays of any
        library; a PIL image; or a list of pictures, which are the frames.
      value_range: as in `given_pixels`.
      layout: of the axes, see `canonical`; the one in front of those that it names is T.

    Returns:
      uint8 ``[time, height, width, 3]``.

    Raises:
      UserError: they are something else, or frames of several sizes.
    """
    doubtful = False

    def convert(item: Any) -> tuple[np.ndarray, str]:
        nonlocal doubtful
        if isinstance(item, Image.Image):
            return of_image(item)[None, None], ""
        array, axes = _of_array(as_array(item, "frames", TAKEN), layout, clips=True)
        if min(array.shape[:2]) > 1:
            raise UserError(f"frames have shape {array.shape}: give one picture or video at a time")
        scaled, unsure = _in_signed_range(array, value_range)
        doubtful |= unsure
        if scaled.dtype != np.uint8:
            scaled = pixels_to_bytes(scaled)
        return scaled.reshape(1, -1, *scaled.shape[2:]), axes

    given = gather(frames, convert)
    if doubtful:
        _warn(_DOUBTFUL)
    if not given.arrays:
        raise UserError("an empty list of frames: give one or more")
    sizes = ["x".join(map(str, array.shape[2:4])) for array in given.arrays]
    if other := next((size for size in sizes if size != sizes[0]), None):
        raise UserError(
            f"frames of a video must have one size, not {sizes[0]} and {other}: give pictures one "
            "by one"
        )
    return np.concatenate([array[0] for array in given.arrays])


def of_image(image: Image.Image) -> np.ndarray:
    """A PIL image of any mode as uint8 ``[height, width, 3]``, turned as its metadata say.

    Raises:
      UserError: it cannot be read, or its pixels are of an unknown range.
    """
    try:
        return stills.from_image(image)
    except BrokenRecord as error:
        raise UserError(
            f"a PIL image of mode {image.mode}: {error}: give an array and its value_range"
        ) from None
    except Exception as error:  # such as of a file that was closed, or that is cut short
        raise UserError(f"a PIL image cannot be read: {error}") from None


def read_picture(path: str | os.PathLike[str]) -> tuple[pathlib.Path, bytes | pathlib.Path]:
    """A file's path and what a record of it holds: its bytes, or of a video the path.

    Raises:
      UserError: there is no such file.
    """
    file = local_path(path)
    if file.is_dir():
        raise UserError(
            f"{file} is a folder: give a file, or a list of files such as "
            f"sorted(pathlib.Path({str(file)!r}).glob('*.jpg'))"
        )
    if not file.is_file():
        raise UserError(f"{file} does not exist")
    try:
        return file, file if file.suffix.lower() in VIDEO_EXTENSIONS else file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from error


def _of_file(
    path: str | os.PathLike[str], shape: TokenizerShape, *, limit: bool
) -> tuple[np.ndarray, str]:
    file, content = read_picture(path)
    record = Record(str(file), content)
    try:
        with open_record(record) as footage:
            video = is_video(record)
            frames = range(len(footage) if video else 1)
            found: list[np.ndarray] = []
            for number, pixels in footage.frames(frames):
                if number >= len(frames):
                    break
                found.append(pixels())
                if limit and video:  # before all of a film is decoded
                    check_length(shape.positions, len(frames) - 1, shape.frames)
                _check_size(found[-1], shape, len(frames) if limit else 1, str(file))
            return np.stack(found)[None], "NT" if video else ""
    except BrokenRecord as error:
        raise UserError(f"{file} is no picture or video that can be read: {error}") from None
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from error


def _of_array(array: np.ndarray, layout: str | None, *, clips: bool) -> tuple[np.ndarray, str]:
    """``[batch, time, height, width, 3]`` of an array, and the axes that it had."""
    found, axes = canonical(array, layout, TAKEN)
    channels = found.shape[-1]
    if channels == 1:
        found = np.repeat(found, 3, axis=-1)
    elif channels != 3:
        first = channels_first(array.shape) if layout is None else None
        if first is not None:
            hint = f"the channels come first: say layout={first!r}"
        elif channels == 4:
            hint = "drop the transparency, pixels[..., :3], or give a PIL image"
        else:
            hint = f"give {TAKEN}" + ("" if clips else " of frames")
        raise UserError(f"pixels have shape {array.shape}, with {channels} channels: {hint}")
    return found, axes


def check_own_size(given: Given, shape: TokenizerShape) -> None:
    """Refuses pictures of another size than the model's.

    Raises:
      UserError: there is one.
    """
    for array in given.arrays:
        if array.shape[2:4] != (shape.image_height, shape.image_width):
            raise UserError(
                f"a picture is of {array.shape[2]}x{array.shape[3]} pixels (height x width), and "
                f"this model takes {shape.image_height}x{shape.image_width}: resize or crop it"
            )


def _check_size(array: np.ndarray, shape: TokenizerShape, frames: int, name: str = "") -> None:
    height, width = array.shape[-3:-1]
    if not height or not width:
        raise UserError(f"a picture of {height}x{width} pixels (height x width): give 1x1 or more")
    given = f"{name or 'a picture'} of {height}x{width} pixels (height x width)"
    check_tokens(shape, grid_of(shape, height, width), shape.token_frames(frames), given)


def _check_frames(array: np.ndarray, axes: str, shape: TokenizerShape) -> None:
    if axes != "NT":
        return
    if not array.shape[1]:
        raise UserError("a clip of 0 frames: give 1 or more")
    check_length(shape.positions, array.shape[1] - 1, shape.frames)


def _in_signed_range(
    array: np.ndarray, value_range: tuple[float, float] | None
) -> tuple[np.ndarray, bool]:
    """uint8 as it is, floats as float32 in [-1, 1]; and whether their range is doubtful."""
    stated = None if value_range is None else tuple(value_range)
    if stated is not None and stated not in _RANGES:
        raise UserError(
            f"value_range={value_range}: it must be one of {', '.join(map(str, _RANGES))}"
        )
    if array.dtype == np.uint8:
        if stated not in (None, (0, 255)):
            raise UserError(
                f"pixels are uint8, in 0..255, but value_range is {value_range}: leave it out, or "
                "give floats"
            )
        return array, False
    # numpy does not count bfloat16 among its floating types; JAX does.
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"pixels are {array.dtype}: give uint8 in 0..255 or floats in [-1, 1]")
    array = array.astype(np.float32)
    low, high = stated or SIGNED
    scale, offset = _RANGES[low, high]
    slack = _TOLERANCE * scale
    if array.size and not (low - slack <= array.min() and array.max() <= high + slack):
        hint = "give uint8, or scale bytes by x / 127.5 - 1, or say value_range=(0, 255)"
        raise UserError(
            f"float pixels must lie in [{low}, {high}], but reach from {array.min():.4g} to "
            f"{array.max():.4g}: {'as value_range says' if stated else hint}"
        )
    doubtful = bool(array.size) and stated is None and bool(array.min() >= 0)
    signed = (low, high) == SIGNED
    return array if signed else array / np.float32(scale) + np.float32(offset), doubtful


def _warn(text: str) -> None:
    """Warns of the line outside this package that called it."""
    inside = str(pathlib.Path(bsq_jax.__file__).parent)
    frame, levels = sys._getframe(0), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        frame, levels = frame.f_back, levels + 1
    warnings.warn(text, stacklevel=levels)
