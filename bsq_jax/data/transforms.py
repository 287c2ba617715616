"""Pure functions on pictures and clips: resize, crop, flip.

Pictures are uint8 [height, width, 3] in sRGB as stored, 0..255; a clip is a list of pictures of one
size, and what is random is drawn once for the whole clip. Pillow resizes, because its filters widen
with the reduction (no aliasing) and papers' figures are mostly measured with it.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from bsq_jax.data.footage import first_frame
from bsq_jax.data.records import BrokenRecord as BrokenRecord
from bsq_jax.data.records import Record
from bsq_jax.data.stills import decode as decode
from bsq_jax.data.stills import image_size as image_size

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def resized_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) after a resize of the short side to ``size`` that keeps the proportions."""
    short = min(height, width)
    return (
        (size, max(size, round(width * size / short)))
        if height <= width
        else (max(size, round(height * size / short)), size)
    )


def resize(image: np.ndarray, height: int, width: int, filter: str = "lanczos") -> np.ndarray:  # noqa: A002
    """Resizes to ``height`` x ``width``; a picture that has this size already is returned as is."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), FILTERS[filter]))


def resize_short_side(image: np.ndarray, size: int, filter: str = "lanczos") -> np.ndarray:  # noqa: A002
    """Resizes so that the short side is ``size`` pixels, up or down, keeping the proportions."""
    height, width = resized_shape(image.shape[0], image.shape[1], size)
    return resize(image, height, width, filter)


def random_crop(
    image: np.ndarray,
    crop: tuple[int, int],
    rng: np.random.Generator,
    scale: tuple[float, float] = (1.0, 1.0),
    filter: str = "lanczos",  # noqa: A002
) -> np.ndarray:
    """:func:`random_clip_crop` of a single picture, uint8 [height, width, 3]."""
    return random_clip_crop([image], crop, rng, scale, filter)[0]


def random_clip_crop(
    clip: Sequence[np.ndarray],
    crop: tuple[int, int],
    rng: np.random.Generator,
    scale: tuple[float, float] = (1.0, 1.0),
    filter: str = "lanczos",  # noqa: A002
) -> np.ndarray:
    """Cuts the same random window out of all frames and brings it to the size of the crop.

    The window is ``crop`` times s with s log-uniform in ``scale``, all places equally likely. It is
    resized to the crop when it has another size. A window that does not fit is shrunk until it
    does, so a picture smaller than the crop is enlarged.

    Args:
      clip: Frames of one size, uint8 [height, width, 3].
      crop: (height, width) of the result.
      rng: Source of the three random numbers, always drawn in the same order.
      scale: (lowest, highest) s; (1, 1) is a plain crop.
      filter: Name of the resize filter, a key of ``FILTERS``.

    Returns:
      uint8 [frames, crop height, crop width, 3].
    """
    height, width = clip[0].shape[:2]
    draw_scale, draw_top, draw_left = rng.random(3)
    s = scale[0] * (scale[1] / scale[0]) ** draw_scale
    s = min(s, height / crop[0], width / crop[1])
    window_height = min(height, max(1, round(crop[0] * s)))
    window_width = min(width, max(1, round(crop[1] * s)))
    top = int(draw_top * (height - window_height + 1))
    left = int(draw_left * (width - window_width + 1))
    rows, columns = slice(top, top + window_height), slice(left, left + window_width)
    return np.stack([resize(image[rows, columns], *crop, filter) for image in clip])


def center_crop(image: np.ndarray, crop: tuple[int, int]) -> np.ndarray:
    """Cuts the middle ``crop`` = (height, width), which must fit, rounded up and left."""
    return _cut(image, (image.shape[0] - crop[0]) // 2, (image.shape[1] - crop[1]) // 2, crop)


def tile_count(height: int, width: int, crop: tuple[int, int]) -> int:
    """How many non-overlapping tiles of ``crop`` = (height, width) fit into a picture."""
    return (height // crop[0]) * (width // crop[1])


def tile(image: np.ndarray, number: int, crop: tuple[int, int]) -> np.ndarray:
    """Cuts tile ``number`` of the grid of non-overlapping tiles, counted in reading order.

    The grid sits in the middle of the picture: what the tiles leave over is cut from all sides.
    """
    rows, columns = image.shape[0] // crop[0], image.shape[1] // crop[1]
    if not 0 <= number < rows * columns:
        raise IndexError(f"tile {number} of a picture with {rows} x {columns} tiles")
    row, column = divmod(number, columns)
    top = (image.shape[0] - rows * crop[0]) // 2 + row * crop[0]
    left = (image.shape[1] - columns * crop[1]) // 2 + column * crop[1]
    return _cut(image, top, left, crop)


def flip(pixels: np.ndarray) -> np.ndarray:
    """Mirrors left and right; [..., height, width, channel]."""
    return pixels[..., ::-1, :]


def permute_channels(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Puts the colour channels, the last axis, in a random order: other colours, same shapes."""
    return np.ascontiguousarray(pixels[..., rng.permutation(pixels.shape[-1])])


def load_resized(record: Record, size: int, filter: str, *, draft: bool) -> np.ndarray:  # noqa: A002
    """Decodes a picture, or the first frame of a video, and resizes its short side to ``size``.

    Args:
      record: What the source holds.
      size: Short side of the result in pixels; 0 keeps the size it has.
      filter: Name of the resize filter.
      draft: Whether a JPEG may be decoded at reduced size, never below twice ``size``.

    Raises:
      BrokenRecord: The record cannot be read.
      OSError: Its file cannot be read.
    """
    image = first_frame(record, draft_side=2 * size if draft else 0)
    return resize_short_side(image, size, filter) if size else image


def _cut(image: np.ndarray, top: int, left: int, crop: tuple[int, int]) -> np.ndarray:
    if top < 0 or left < 0:
        raise ValueError(f"a crop of {crop} does not fit into a picture of {image.shape[:2]}")
    return image[top : top + crop[0], left : left + crop[1]]
