"""Pure functions on pictures and clips: resize, crop, flip.

Pictures are uint8 [height, width, 3] in sRGB as stored, 0..255; a clip is a list of pictures of one
size, and what is random is drawn once for the whole clip. Pillow resizes, because its filters widen
with the reduction (no aliasing) and papers' figures are mostly measured with it.

A long and narrow picture can be far larger after its short side is enlarged than any crop of it:
1x30000 pixels with the short side at 256 are 5.9 GB. Such a picture, see `is_long`, stays as it is
until it is cut, and only the window is enlarged.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from bsq_jax.data import simd

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# The most that a resized picture may have where all of it is needed: what Pillow opens at most.
MOST_PIXELS = 178_956_970
# The most that the long side may be of the short side, where resizing gives more pixels than the
# picture has, before a picture is enlarged only where it is cut.
LONGEST = 16
# Source pixels on either side of a window that a filter may look at, at a scale of 1 (Lanczos: 3).
_REACH = 4


class Long:
    """A long and narrow picture that is resized where it is cut, and nowhere else.

    Attributes:
      shape: (height, width, channel) of the whole picture if it were resized.
      nbytes: bytes of what is kept: the picture before it is resized.
    """

    def __init__(self, image: np.ndarray, height: int, width: int, filter: str):  # noqa: A002
        """Takes the picture, uint8 [height, width, 3], its resized size, and a key of FILTERS."""
        self.shape = height, width, image.shape[-1]
        self.nbytes = image.nbytes
        self._image = image
        self._filter = FILTERS[filter]

    def window(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """A window of the resized picture, uint8 [height, width, 3].

        Equal to resizing all and cutting, but for the rounding of a position to float32 in Pillow.
        """
        columns, near, far = self._stretch(left, width, 1)
        rows, top_near, top_far = self._stretch(top, height, 0)
        part = Image.fromarray(self._image[rows, columns])
        # Pillow rounds between its two passes, and goes across first when it enlarges the whole. Of
        # a window alone it might choose otherwise, so each pass is asked for by itself.
        across = part.resize((width, part.height), self._filter, box=(near, 0, far, part.height))
        box = (0, top_near, width, top_far)
        return np.asarray(across.resize((width, height), self._filter, box=box))

    def _stretch(self, start: int, count: int, axis: int) -> tuple[slice, float, float]:
        """The pixels that a window needs along an axis, and where it begins and ends in them."""
        side = self._image.shape[axis]
        scale = side / self.shape[axis]
        near, far = start * scale, min((start + count) * scale, side)
        margin = _REACH * max(scale, 1) + 1
        first, last = max(0, int(near - margin)), min(side, int(far + margin) + 1)
        return slice(first, last), near - first, min(far - first, last - first)


# A picture that is ready to be cut: uint8 [height, width, 3], or one that is resized on the way.
Picture = np.ndarray | Long


def is_long(height: int, width: int, size: int) -> bool:
    """Whether a picture is only resized where it is cut, if its short side is to be ``size``."""
    rows, columns = resized_shape(height, width, size)
    return max(rows, columns) > LONGEST * size and rows * columns > height * width


def resized_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) after a resize of the short side to ``size`` that keeps the proportions."""
    short = min(height, width)
    return (
        (size, max(size, round(width * size / short)))
        if height <= width
        else (max(size, round(height * size / short)), size)
    )


def resize(
    image: np.ndarray,
    height: int,
    width: int,
    filter: str = "lanczos",  # noqa: A002
    backend: str = "pillow",
) -> np.ndarray:
    """Resizes to ``height`` x ``width``; a picture that has this size already is returned as is.

    Args:
      image: uint8 [height, width, 3].
      height: of the result.
      width: of the result.
      filter: a key of ``FILTERS``.
      backend: 'pillow', or 'simd', which is several times as fast and nearly equal, see `simd`.
    """
    if image.shape[:2] == (height, width):
        return image
    if backend == "simd":
        return simd.resize(image, height, width, filter)
    return np.asarray(Image.fromarray(image).resize((width, height), FILTERS[filter]))


def resize_short_side(
    image: np.ndarray,
    size: int,
    filter: str = "lanczos",  # noqa: A002
    backend: str = "pillow",
) -> np.ndarray:
    """Resizes so that the short side is ``size`` pixels, up or down, keeping the proportions."""
    height, width = resized_shape(image.shape[0], image.shape[1], size)
    return resize(image, height, width, filter, backend)


def random_clip_crop(
    clip: Sequence[Picture],
    crop: tuple[int, int],
    rng: np.random.Generator,
    scale: tuple[float, float] = (1.0, 1.0),
    filter: str = "lanczos",  # noqa: A002
    backend: str = "pillow",
) -> np.ndarray:
    """Cuts the same random window out of all frames and brings it to the size of the crop.

    The window is ``crop`` times s with s log-uniform in ``scale``, all places equally likely. It is
    resized to the crop when it has another size. A window that does not fit is shrunk until it
    does, so a picture smaller than the crop is enlarged.

    Args:
      clip: frames of one size, each uint8 [height, width, 3] or a `Long`.
      crop: (height, width) of the result.
      rng: source of the three random numbers, always drawn in the same order.
      scale: (lowest, highest) s; (1, 1) is a plain crop.
      filter: name of the resize filter, a key of ``FILTERS``.
      backend: what resizes, see `resize`.

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
    window = window_height, window_width
    cuts = [_cut(image, top, left, window) for image in clip]
    return np.stack([resize(cut, *crop, filter, backend) for cut in cuts])


def center_crop(image: Picture, crop: tuple[int, int]) -> np.ndarray:
    """Cuts the middle ``crop`` = (height, width), which must fit, rounded up and left."""
    return _cut(image, (image.shape[0] - crop[0]) // 2, (image.shape[1] - crop[1]) // 2, crop)


def tile_grid(
    shape: Sequence[int], crop: tuple[int, int], *, long: bool = False
) -> tuple[int, int]:
    """(rows, columns) of the non-overlapping tiles of ``crop`` = (height, width) in a picture.

    Args:
      shape: of the resized picture; it begins with (height, width).
      crop: (height, width) of a tile.
      long: whether it is a `Long`. Then there are tiles of the middle only, 16 times as long as the
        short side: all of them would be thousands of enlargements of a few pixels each.
    """
    height, width = shape[:2]
    most = LONGEST * min(height, width) if long else max(height, width)
    return min(height, most) // crop[0], min(width, most) // crop[1]


def tile(image: Picture, number: int, crop: tuple[int, int]) -> np.ndarray:
    """Cuts tile ``number`` of `tile_grid`, counted in reading order.

    The grid sits in the middle of the picture: what the tiles leave over is cut from all sides.
    """
    rows, columns = tile_grid(image.shape, crop, long=isinstance(image, Long))
    if not 0 <= number < rows * columns:
        raise IndexError(f"tile {number} of a picture with {rows} x {columns} tiles")
    row, column = divmod(number, columns)
    top = (image.shape[0] - rows * crop[0]) // 2 + row * crop[0]
    left = (image.shape[1] - columns * crop[1]) // 2 + column * crop[1]
    return _cut(image, top, left, crop)


def flip(pixels: np.ndarray) -> np.ndarray:
    """Mirrors left and right; [..., height, width, channel]."""
    return _channelwise(pixels[..., ::-1, :], range(pixels.shape[-1]))


def permute_channels(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Puts the colour channels, the last axis, in a random order: other colours, same shapes."""
    return _channelwise(pixels, rng.permutation(pixels.shape[-1]))


def _channelwise(pixels: np.ndarray, order: Iterable[int]) -> np.ndarray:
    """A copy with the channels in this order; one by one, which is several times as fast."""
    copy = np.empty(pixels.shape, pixels.dtype)
    for target, channel in enumerate(order):
        copy[..., target] = pixels[..., channel]
    return copy


def resize_to_cut(
    image: np.ndarray,
    size: int,
    filter: str,  # noqa: A002
    backend: str = "pillow",
) -> Picture:
    """`resize_short_side` of a picture that is going to be cut; 0 keeps the size it has."""
    if not size:
        return image
    height, width = image.shape[:2]
    if is_long(height, width, size):
        return Long(image, *resized_shape(height, width, size), filter)
    return resize_short_side(image, size, filter, backend)


def _cut(image: Picture, top: int, left: int, crop: tuple[int, int]) -> np.ndarray:
    if top < 0 or left < 0:
        raise ValueError(f"a crop of {crop} does not fit into a picture of {image.shape[:2]}")
    if isinstance(image, Long):
        return image.window(top, left, *crop)
    return image[top : top + crop[0], left : left + crop[1]]
