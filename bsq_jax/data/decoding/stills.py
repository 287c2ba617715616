"""Single pictures: encoded files to RGB, and their size from the header.

Pictures are uint8 [height, width, 3] in sRGB as stored, 0..255.
"""

import contextlib
import io
import warnings
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image

from bsq_jax.data import simd
from bsq_jax.data.decoding import heic, metadata
from bsq_jax.data.records import BrokenRecord, Still

_Found = TypeVar("_Found")

# Pillow warns of damaged metadata, which does not matter here, and of pictures of 90 to 179 million
# pixels, which are read. Catching warnings around each call would not be safe between threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(image: Still, *, draft_side: int = 0, backend: str = "pillow") -> np.ndarray:
    """Decodes one picture to RGB.

    The orientation in EXIF, or else in XMP, is applied; other metadata does not matter, damaged or
    not. Transparency is composed on white. Grey, palette, CMYK and other modes become RGB; 16-bit
    grey is scaled to 8 bits (value / 257, rounded). Of an animation the first frame is taken.

    Args:
      image: an encoded file, or pixels uint8 [height, width, 3], which are returned as they are.
      draft_side: if not 0, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as both
        sides stay at least this long. Much faster for large photographs; the pixels differ
        slightly from those of a full decode, so evaluation leaves it off.
      backend: 'pillow', or 'simd', which decodes color JPEGs faster to the same pixels where they
        are not reduced, see `bsq_jax.data.simd`.

    Returns:
      uint8 [height, width, 3].

    Raises:
      BrokenRecord: the bytes are no picture, are cut short, have more than 178,956,970 pixels
        (Pillow's limit), or pixels of an unknown range (floating-point or 32-bit integers).
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or not image.size:
            raise BrokenRecord(f"pixels must be uint8 [height, width, 3], got {_describe(image)}")
        return image

    def pixels(opened: Image.Image) -> np.ndarray:
        size = opened.size
        if draft_side:
            opened.draft(None, (draft_side, draft_side))
        fast = backend == "simd" and opened.format == "JPEG" and opened.mode == "RGB"
        if fast and opened.size == size:
            stored = simd.decode_jpeg(image)
            if stored is not None:
                turn = metadata.TURNS.get(metadata.orientation(opened))
                if turn is None:
                    return stored
                return np.asarray(Image.fromarray(stored).transpose(turn))
        if opened.format == "TIFF":
            metadata.load_tiff(opened)
            return to_rgb(opened)
        opened.load()
        turn = metadata.TURNS.get(metadata.orientation(opened))
        return to_rgb(opened if turn is None else opened.transpose(turn))

    return _opened(image, pixels)


def from_image(image: Image.Image) -> np.ndarray:
    """An opened or made PIL image as `decode` would give it; the image stays as it was.

    Raises:
      BrokenRecord: its pixels are of an unknown range.
    """
    image.load()
    # Pillow turns a TIFF itself.
    turn = None if image.format == "TIFF" else metadata.TURNS.get(metadata.orientation(image))
    return to_rgb(image.copy() if turn is None else image.transpose(turn))


def image_size(image: Still) -> tuple[int, int]:
    """(height, width) that `decode` will give, read from the header alone.

    Raises:
      BrokenRecord: the header cannot be read.
    """
    if isinstance(image, np.ndarray):
        height, width, _ = decode(image).shape
        return height, width

    def size(opened: Image.Image) -> tuple[int, int]:
        width, height = metadata.stored_size(opened)
        if opened.format == "PNG" and metadata.follows_pixels(image):
            opened.load()  # Pillow reads what stands behind the pixels after them
        return (width, height) if metadata.orientation(opened) >= 5 else (height, width)

    return _opened(image, size)


def _opened(image: bytes, use: Callable[[Image.Image], _Found]) -> _Found:
    """What `use` finds in the opened picture; if it fails, in the same one without its metadata.

    Raises:
      BrokenRecord: it failed both times.
    """
    try:
        with Image.open(io.BytesIO(image)) as opened:
            return use(opened)
    except BrokenRecord:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged bytes
        if isinstance(error, Image.DecompressionBombError):
            raise BrokenRecord(_reason(error, image)) from error
        with contextlib.suppress(Exception):
            plain = metadata.without_metadata(image)
            if plain is not None:
                with Image.open(io.BytesIO(plain)) as opened:
                    return use(opened)
        raise BrokenRecord(_reason(error, image)) from error


def to_rgb(image: Image.Image) -> np.ndarray:
    """A loaded picture as uint8 [height, width, 3], on white where it is transparent.

    Raises:
      BrokenRecord: its pixels are of an unknown range.
    """
    if image.mode == "F":
        raise BrokenRecord("floating-point pixels have no known range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise BrokenRecord("32-bit pixels have no known range")
        grey = np.rint(values / 257).astype(np.uint8)
        clear = image.info.get("transparency")
        if isinstance(clear, int):
            grey[values == clear] = 255
        return np.repeat(grey[..., None], 3, axis=-1)
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and max(clear) > 255:  # of 16 bits, where Pillow keeps the upper 8
        image.info["transparency"] = tuple(value >> 8 for value in clear)
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
    if heic.is_heic(image) and not heic.READ:
        return f"a HEIC picture; {heic.HINT}"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture of a known format"
    return str(error).partition("\n")[0] or type(error).__name__
