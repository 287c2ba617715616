"""The image backend ``simd``: JPEGs decoded and pictures resized faster than by Pillow.

simplejpeg decodes with the same library as Pillow, libjpeg-turbo, but straight into an array: the
pixels are equal. cykooz-resizer (the Rust crate fast_image_resize) has Pillow's filters in vector
instructions, with coefficients of 16 bits where Pillow has 22: of photographs fewer than one value
in a hundred differs from Pillow's, by 1 or 2 of 255. What it gives does not depend on the
processor.
"""

import importlib.util

import numpy as np

from bsq_jax.core.errors import UserError

PACKAGES = {"simplejpeg": "simplejpeg", "cykooz_resizer": "cykooz-resizer"}  # module: on PyPI
# Names of the filters there. Of the others two are not there, and 'box' rounds down there.
FILTERS = {"bilinear": "bilinear", "bicubic": "catmull_rom", "lanczos": "lanczos3"}


def check(filter: str) -> None:  # noqa: A002
    """Checks that the backend can be used with a resize filter.

    Raises:
      UserError: a package is missing, or the filter.
    """
    missing = [name for module, name in PACKAGES.items() if not importlib.util.find_spec(module)]
    if missing:
        raise UserError(
            f"data.backend=simd needs 'pip install {' '.join(missing)}'; "
            "data.backend=pillow does without"
        )
    if filter not in FILTERS:
        raise UserError(
            f"data.backend=simd has no data.filter={filter}: use one of {', '.join(FILTERS)}, "
            "or data.backend=pillow"
        )


def decode_jpeg(file: bytes) -> np.ndarray | None:
    """The pixels of a JPEG as they are stored, uint8 [height, width, 3].

    None where anything in the file is out of order; Pillow then says what, or reads it.
    """
    import simplejpeg

    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(file, "RGB", strict=True)
    except ValueError:
        return None
    return pixels


def resize(image: np.ndarray, height: int, width: int, filter: str) -> np.ndarray:  # noqa: A002
    """Resizes uint8 [height, width, 3]; see `bsq_jax.data.transforms.resize`.

    Args:
      image: the picture.
      height: of the result.
      width: of the result.
      filter: a key of `FILTERS`.
    """
    import cykooz_resizer as library

    kind = library.FilterType[FILTERS[filter]]
    options = library.ResizeOptions(library.ResizeAlg.convolution(kind), use_alpha=False)
    pixel, resizer = library.PixelType.U8x3, library.Resizer()
    rows, columns, _ = image.shape
    found = library.ImageData(columns, rows, pixel, image.tobytes())
    # Along the rows first, as Pillow does: values are rounded and cut off between the two passes.
    for shape in dict.fromkeys(((width, rows), (width, height))):
        if shape != (found.width, found.height):
            target = library.ImageData(*shape, pixel)
            resizer.resize(found, target, options)
            found = target
    return np.frombuffer(found.get_buffer(), np.uint8).reshape(height, width, 3)
