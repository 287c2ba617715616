"""Other codecs at as many bytes: the best setting whose file is no larger."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from bsq_jax.coding.file_encoder import Rate
from bsq_jax.coding.reference_codecs import Coded, Coder, code_pictures, reference
from bsq_jax.core.errors import UserError
from bsq_jax.media.timing import Timing

_QUALITIES = tuple(range(1, 96))  # of Pillow, from worst to best
_FACTORS = tuple(range(63, 9, -1))  # constant rate factors of AV1, likewise
# Its search takes seven files, each of seconds with the settings that curves are measured with.
_QUICK_AVIF = functools.partial(code_pictures, "AVIF", {"speed": 8, "max_threads": 1})
TITLES = {"jpeg": "JPEG", "webp": "WebP", "avif": "AVIF", "av1": "AV1"}
"""Names of the codecs, as the page writes them."""


@dataclasses.dataclass(frozen=True)
class EqualSize:
    """A file of another codec.

    Attributes:
      coded: the file and its frames.
      setting: such as ``quality 35``.
      fits: whether it has at most as many bytes; else it is the smallest that the codec makes.
    """

    coded: Coded
    setting: str
    fits: bool


def codecs_for(frames: int) -> tuple[str, ...]:
    """The codecs to compare with that are installed, for so many frames.

    A clip is compared with AV1, and with pictures of which each is a file.
    """
    wanted = ("jpeg", "webp", "avif" if frames == 1 else "av1")
    return tuple(name for name in wanted if _installed(name))


def at_most(name: str, frames: np.ndarray, rate: Rate, most: int) -> EqualSize:
    """What a codec makes of frames in at most so many bytes.

    Args:
      name: of the codec, of `TITLES`.
      frames: uint8 ``[time, height, width, 3]``.
      rate: of the frames.
      most: bytes.

    Raises:
      UserError: the codec is not installed, or does not take such frames.
    """
    if name not in TITLES:
        raise UserError(f"there is no codec {name} to compare with")
    coder = reference(name)
    if name == "avif":
        coder = dataclasses.replace(coder, code=_QUICK_AVIF)
    settings = _FACTORS if coder.scale == "crf" else _QUALITIES
    coded, setting, fits = _search(coder, settings, frames, rate, most)
    return EqualSize(coded, f"{coder.scale} {setting}", fits)


def _search(
    coder: Coder, settings: Sequence[int], frames: np.ndarray, rate: Rate, most: int
) -> tuple[Coded, int, bool]:
    """Halves the settings, which are in order of their files' sizes or nearly so."""
    fraction = rate.rate if isinstance(rate, Timing) else rate
    best: Coded | None = None
    low, high = -1, len(settings)  # the last known to fit, the first known not to
    while high - low > 1:
        middle = (low + high) // 2
        coded = coder.code(frames, settings[middle], fraction)
        if coded.file_bytes <= most:
            best, low = coded, middle
        else:
            high = middle
    if best is None:
        return coder.code(frames, settings[0], fraction), settings[0], False
    return best, settings[low], True


def _installed(name: str) -> bool:
    try:
        reference(name)
    except UserError:
        return False
    return True
