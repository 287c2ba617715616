"""Raw video files, ``.yuv``: planes without any header, whose size stands in the file's name.

As the usual test sequences come: ``Beauty_1920x1080_120fps_420_8bit_YUV.yuv`` (UVG),
``videoSRC01_1920x1080_30.yuv`` (MCL-JCV), ``BasketballPass_416x240_50.yuv``. Frames are 4:2:0 of 8
bits a sample, one after the other: luma, then each of the chroma planes at half the size.
"""

import pathlib
import re
from fractions import Fraction
from typing import NamedTuple

from bsq_jax.data.records import BrokenRecord

RAW_EXTENSION = ".yuv"

_SIZE = re.compile(r"(?<!\d)(\d+)x(\d+)(?!\d)", re.IGNORECASE)
_DEPTH = "(10|12|14|16)"
_DEEP = re.compile(
    rf"(?<!\d){_DEPTH}[-_ ]?(?:bits?|le|be)(?![a-z])|(?<![a-z])p0?{_DEPTH}(?:le|be)?(?![a-z0-9])",
    re.IGNORECASE,
)
_CHROMA = re.compile(r"(?<![a-z0-9])(?:yuv)?4:?(11|22|44)(?:p|planar)?(?![a-z0-9])", re.IGNORECASE)
_FPS = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)[-_ ]?(?:fps|hz)", re.IGNORECASE)
_LAST_NUMBER = re.compile(r"_(\d+(?:\.\d+)?)(?=_|$)")
_MOST_FPS = 300  # a larger number is something else, such as 420


class RawLayout(NamedTuple):
    """What the bytes of a raw video file are.

    Attributes:
      height: of a frame, pixels.
      width: of a frame, pixels.
      frames: how many there are.
      rate: frames a second; None where the name does not tell.
    """

    height: int
    width: int
    frames: int
    rate: Fraction | None


def raw_layout(path: pathlib.Path) -> RawLayout:
    """Finds out what a raw video file holds, from its name and its length.

    Raises:
      BrokenRecord: the name does not tell the size, tells of samples that are not 4:2:0 of 8 bits,
        or the length is that of no whole number of frames.
      OSError: there is no such file.
    """
    length, name = path.stat().st_size, path.stem
    sizes = [match for match in _SIZE.finditer(name) if int(match[1]) and int(match[2])]
    if not sizes:
        raise BrokenRecord(
            "a raw video has no header: put its size into its name, such as clip_1920x1080_30.yuv"
        )
    if deep := _DEEP.search(name):
        bits = next(filter(None, deep.groups()))
        raise BrokenRecord(
            f"raw video of {bits} bits a sample, by its name: convert it to 8 bits, for example "
            "with ffmpeg -pix_fmt yuv420p"
        )
    if chroma := _CHROMA.search(name):
        raise BrokenRecord(
            f"raw video of 4:{':'.join(chroma[1])}, by its name: convert it to 4:2:0, for example "
            "with ffmpeg -pix_fmt yuv420p"
        )
    # A name may hold other numbers of this form, such as 2x2 of a crop: the largest that fits.
    fitting = [match for match in sizes if length % _frame_bytes(match) == 0]
    found = max(fitting, key=_frame_bytes) if fitting else sizes[0]
    width, height = int(found[1]), int(found[2])
    each = _frame_bytes(found)
    if not length:
        raise BrokenRecord("the file is empty")
    if length % each:
        raise BrokenRecord(
            f"{length} bytes are no whole number of frames of {width}x{height} in 4:2:0 of 8 bits "
            f"({each} bytes each): the file is cut short, or its name says another size"
        )
    rate = _FPS.search(name) or _LAST_NUMBER.search(name, found.end())
    fps = Fraction(rate[1]) if rate else Fraction(0)
    return RawLayout(height, width, length // each, fps if 0 < fps <= _MOST_FPS else None)


def _frame_bytes(size: re.Match[str]) -> int:
    """Bytes of a 4:2:0 frame of the size that was found in a name."""
    width, height = int(size[1]), int(size[2])
    return width * height + 2 * (-(-width // 2) * -(-height // 2))
