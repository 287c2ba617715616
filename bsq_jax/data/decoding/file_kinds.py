"""Kinds of picture files by the endings of their names: which are read, and which are not.

AVIF is read where Pillow has it (since 11.3, in a build with libavif), HEIC where pillow-heif is
installed.
"""

from __future__ import annotations

import collections

from bsq_jax.data.decoding import heic
from bsq_jax.data.decoding.video import VIDEO_EXTENSIONS

try:
    from PIL.AvifImagePlugin import SUPPORTED as _AVIF
except ImportError:
    _AVIF = False


def _endings(names: str) -> frozenset[str]:
    return frozenset(f".{name}" for name in names.split())


IMAGE_EXTENSIONS = _endings(
    "bmp gif jfif jp2 jpe jpeg jpg pgm png pnm ppm tif tiff webp" + " avif" * bool(_AVIF)
) | (heic.EXTENSIONS if heic.READ else frozenset())

# Endings of pictures and videos that a person may expect to be read. Whatever is not among them,
# such as texts and caches of thumbnails, is ignored without a message.
EXPECTED_EXTENSIONS = (
    _endings(
        "avif jxl jxr wdp j2k jpx apng pbm pfm tga dds exr hdr svg svgz psd psb xcf eps "
        "3fr arw cr2 cr3 crw dcr dng erf fff iiq kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl "
        "sr2 srf srw x3f "  # of cameras
        "asf divx dv f4v h264 h265 hevc insv ivf m2v mxf ogm r3d rm rmvb vob"
    )
    | heic.EXTENSIONS
    | IMAGE_EXTENSIONS
    | (VIDEO_EXTENSIONS - {".ts"})  # among pictures more likely TypeScript
)


def describe_unread(unread: collections.Counter[str]) -> str:
    """What is left out, in words; empty where nothing is.

    Args:
      unread: how many files there are by their endings, such as ``.dng``.

    Returns:
      Such as ``12 files of kinds that are not read: .jxl (10), .dng (2)``.
    """
    total = unread.total()
    if not total:
        return ""
    order = sorted(unread.items(), key=lambda item: (-item[1], item[0]))
    kinds = ", ".join(f"{ending} ({count})" for ending, count in order)
    things = "1 file of a kind that is" if total == 1 else f"{total} files of kinds that are"
    hint = f"; {heic.HINT}" if heic.EXTENSIONS & unread.keys() and not heic.READ else ""
    return f"{things} not read: {kinds}{hint}"
