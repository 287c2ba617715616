"""Single pictures: encoded files to RGB, and their size from the header.

Pictures are uint8 [height, width, 3] in sRGB as stored, 0..255.
"""

import io

import numpy as np
from PIL import Image, ImageOps

from bsq_jax.data.records import BrokenRecord, Still

_ORIENTATION = 0x0112  # the EXIF tag; values 5 to 8 swap width and height


def decode(image: Still, *, draft_side: int = 0) -> np.ndarray:
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


def image_size(image: Still) -> tuple[int, int]:
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
