"""Pure functions on single pictures: decode, resize, crop, flip.

Pictures are uint8 [height, width, 3] in sRGB as stored, 0..255. Pillow decodes and resizes, because
its filters widen with the reduction (no aliasing) and papers' figures are mostly measured with it.
"""

import io

import numpy as np
from PIL import Image, ImageOps

from bsq_jax.data.sources import Record

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_ORIENTATION = 0x0112  # the EXIF tag; values 5 to 8 swap width and height


class BrokenRecord(Exception):  # noqa: N818  # a condition to handle, named for what it is
    """The bytes of a record are not a picture that can be read."""


def decode(image: bytes | np.ndarray, *, draft_side: int = 0) -> np.ndarray:
    """Decodes one picture to RGB.

    The orientation in EXIF is applied. Transparency is composed on white. Grey, palette, CMYK and
    other modes become RGB; 16-bit grey is scaled to 8 bits (value / 257, rounded). Of an animation
    the first frame is taken.

    Args:
      image: An encoded file, or pixels uint8 [height, width, 3], which are returned as they are.
      draft_side: If not 0, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as both
        sides stay at least this long. Much faster for large photographs; the pixels differ
        slightly from those of a full decode, so evaluation leaves it off.

    Returns:
      uint8 [height, width, 3].

    Raises:
      BrokenRecord: The bytes are no picture, are cut short, or have floating-point pixels.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not image.size:
            raise BrokenRecord(f"pixels must be uint8 [height, width, 3], got {_describe(image)}")
        return image
    try:
        with Image.open(io.BytesIO(image)) as opened:
            if draft_side:
                opened.draft(None, (draft_side, draft_side))
            return _to_rgb(ImageOps.exif_transpose(opened))
    except BrokenRecord:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged bytes
        raise BrokenRecord(_reason(error, image)) from error


def image_size(image: bytes | np.ndarray) -> tuple[int, int]:
    """(height, width) that :func:`decode` will give, read from the header alone.

    Raises:
      BrokenRecord: The header cannot be read.
    """
    if isinstance(image, np.ndarray):
        height, width, _ = decode(image).shape
        return height, width
    try:
        with Image.open(io.BytesIO(image)) as opened:
            width, height = opened.size
            turned = opened.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception as error:
        raise BrokenRecord(_reason(error, image)) from error
    return (width, height) if turned else (height, width)


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
    """Cuts a random window and brings it to the size of the crop.

    The window is ``crop`` times s with s log-uniform in ``scale``, all places equally likely. It is
    resized to the crop when it has another size. A window that does not fit is shrunk until it
    does, so a picture smaller than the crop is enlarged.

    Args:
      image: uint8 [height, width, 3].
      crop: (height, width) of the result.
      rng: Source of the three random numbers, always drawn in the same order.
      scale: (lowest, highest) s; (1, 1) is a plain crop.
      filter: Name of the resize filter, a key of ``FILTERS``.

    Returns:
      uint8 [crop height, crop width, 3]; may share memory with ``image``.
    """
    height, width = image.shape[:2]
    draw_scale, draw_top, draw_left = rng.random(3)
    s = scale[0] * (scale[1] / scale[0]) ** draw_scale
    s = min(s, height / crop[0], width / crop[1])
    window_height = min(height, max(1, round(crop[0] * s)))
    window_width = min(width, max(1, round(crop[1] * s)))
    top = int(draw_top * (height - window_height + 1))
    left = int(draw_left * (width - window_width + 1))
    window = image[top : top + window_height, left : left + window_width]
    return resize(window, *crop, filter)


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


def flip(image: np.ndarray) -> np.ndarray:
    """Mirrors left and right."""
    return image[:, ::-1]


def permute_channels(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture with its colour channels in a random order: other colours, the same shapes."""
    return np.ascontiguousarray(image[..., rng.permutation(image.shape[-1])])


def load_resized(record: Record, size: int, filter: str, *, draft: bool) -> np.ndarray:  # noqa: A002
    """Decodes a record and resizes its short side to ``size`` (0 keeps the size it has).

    Args:
      record: What the source holds.
      size: Short side of the result in pixels, or 0.
      filter: Name of the resize filter.
      draft: Whether a JPEG may be decoded at reduced size, never below twice ``size``.

    Raises:
      BrokenRecord: The record cannot be read.
    """
    image = decode(record.image, draft_side=2 * size if draft else 0)
    return resize_short_side(image, size, filter) if size else image


def _cut(image: np.ndarray, top: int, left: int, crop: tuple[int, int]) -> np.ndarray:
    if top < 0 or left < 0:
        raise ValueError(f"a crop of {crop} does not fit into a picture of {image.shape[:2]}")
    return image[top : top + crop[0], left : left + crop[1]]


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "F":
        raise BrokenRecord("floating-point pixels have no known range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float64)
        grey = np.clip(np.rint(values / 257), 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.mode == "PA" or image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _reason(error: Exception, image: bytes) -> str:
    if not image:
        return "the file is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture of a known format"
    return str(error).partition("\n")[0] or type(error).__name__
