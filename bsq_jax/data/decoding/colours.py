"""Colours of decoded video frames: from what a file stores to sRGB, uint8.

Matrix and range are those that the file is tagged with. Where it is not tagged, frames of 720 lines
or more, or of 1280 columns or more, are by BT.709 and smaller ones by BT.601, as players take them;
lines and columns are counted as they are stored, before the picture is turned or stretched. The
range is the limited one for Y'CbCr and the full one for grey and for RGB.

HDR (PQ and HLG of BT.2100) is tone-mapped: to light in nits by BT.2100, HLG for a display of 1000
nits; brought down to 203 nits, the reference white of BT.2408, by the curve of BT.2390 on the
largest of R, G and B, which keeps the hue; from the primaries of the file to those of sRGB, cut off
where these do not reach; and encoded as sRGB. What is above 1000 nits is white. Primaries and
transfer of SDR are left as they are: all of them are close to those of sRGB but those of BT.2020.
"""

import functools
from typing import Any

import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc, Interpolation

from bsq_jax.data.decoding.containers import MAX_PIXELS, damage
from bsq_jax.data.records import BrokenRecord

_FAST = Interpolation.BILINEAR
_EXACT = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND

# Numbers of matrices in H.273, which are FFmpeg's.
_BT709, _BT601 = 1, 6
_READ = frozenset({1, 4, 5, 6, 7, 9})  # BT.709, FCC, BT.601 (two numbers), SMPTE 240M, BT.2020
_OTHERS = {
    8: "YCgCo",
    10: "BT.2020 with constant luminance",
    11: "SMPTE 2085",
    12: "a matrix derived from the primaries",
    13: "a matrix derived from the primaries",
    14: "ICtCp",
    15: "IPT-C2",
    16: "YCgCo-R",
    17: "YCgCo-R",
}

PEAK = 1000.0  # nits of the brightest point that keeps its detail
WHITE = 203.0  # nits that become 255
_ROWS = 128  # at a time, which bounds the memory for floats
_LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of BT.2020
# Linear RGB to linear RGB of sRGB, by ITU-R BT.2087 and by SMPTE EG 432-1 with BT.709.
_TO_SRGB: dict[int, tuple[tuple[float, ...], ...]] = {
    ColorPrimaries.BT2020: (
        (1.660491, -0.587641, -0.072850),
        (-0.124550, 1.132900, -0.008349),
        (-0.018151, -0.100579, 1.118730),
    ),
    ColorPrimaries.SMPTE432: (
        (1.224940, -0.224940, 0.0),
        (-0.042057, 1.042057, 0.0),
        (-0.019638, -0.078636, 1.098274),
    ),
    ColorPrimaries.BT709: ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
}


def usual_matrix(height: int, width: int) -> int:
    """The matrix of untagged frames of this size as they are stored: its number in H.273."""
    return _BT709 if height >= 720 or width >= 1280 else _BT601


def to_srgb(converter: Any, frame: Any, *, exact: bool) -> np.ndarray:
    """Converts a decoded frame.

    Args:
      converter: a PyAV ``VideoReformatter``: to make one takes longer than to convert a frame.
      frame: a PyAV ``VideoFrame``.
      exact: whether colours are rounded to the nearest; else they are cut off, which is ten times
        as fast and makes frames darker by 1 to 1.5 of 255. More than 8 bits are always rounded.

    Returns:
      uint8 [height, width, 3].

    Raises:
      BrokenRecord: FFmpeg cannot convert it.
    """
    if frame.width * frame.height > MAX_PIXELS:
        raise BrokenRecord(f"a frame of {frame.height}x{frame.width} pixels is too large")
    layout = frame.format
    grey = len(layout.components) < 3 and not layout.has_palette and not layout.is_bayer
    coded = not (layout.is_rgb or layout.has_palette or layout.is_bayer or grey)
    if coded and frame.colorspace not in _READ:
        if frame.colorspace in _OTHERS:
            raise BrokenRecord(
                f"its colours are stored as {_OTHERS[frame.colorspace]}, which is not read here"
            )
        frame.colorspace = usual_matrix(frame.height, frame.width)
    transfer = frame.color_trc
    hdr = transfer in (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)
    exact = exact or hdr or layout.components[0].bits > 8
    try:
        pixels: np.ndarray = converter.reformat(
            frame,
            # Not rgb48: with exact rounding FFmpeg 8 gives wrong green and blue there.
            format="gbrp16le" if hdr else "rgb24",
            interpolation=_EXACT if exact else _FAST,
        ).to_ndarray()
    except Exception as error:
        raise damage(error) from error
    if grey and frame.color_range == ColorRange.MPEG:  # FFmpeg takes all grey for full range
        pixels = _stretched(pixels)
    if hdr:
        return tone_mapped(pixels, transfer, frame.color_primaries)
    return pixels


def _stretched(pixels: np.ndarray) -> np.ndarray:
    """Limited range to full range, uint8 or uint16."""
    most = np.iinfo(pixels.dtype).max
    unit = (most + 1) // 256
    table = np.arange(most + 1, dtype=np.float64)
    table = np.clip(np.rint((table - 16 * unit) * (most / (219 * unit))), 0, most)
    return table.astype(pixels.dtype)[pixels]


def tone_mapped(pixels: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """HDR to sRGB.

    Args:
      pixels: R'G'B' by BT.2100, uint16 [height, width, 3], full range.
      transfer: number of the transfer in H.273: of PQ or of HLG.
      primaries: number of the primaries in H.273; those that are not known are those of BT.2020.

    Returns:
      uint8 [height, width, 3].
    """
    out = np.empty(pixels.shape, np.uint8)
    matrix = np.array(_TO_SRGB.get(primaries, _TO_SRGB[ColorPrimaries.BT2020]), np.float32)
    levels, gains = _gains()
    for first in range(0, len(pixels), _ROWS):
        light = _light_table(transfer)[pixels[first : first + _ROWS]]
        if transfer == ColorTrc.ARIB_STD_B67:  # the OOTF: a gamma of 1.2 on the luma
            light *= PEAK * np.power(light @ _LUMA, 0.2)[..., None]
        light *= np.interp(light.max(axis=-1), levels, gains).astype(np.float32)[..., None]
        linear = np.clip(light @ (matrix.T / np.float32(WHITE)), 0, 1)
        out[first : first + _ROWS] = _srgb_table()[np.rint(linear * 65535).astype(np.uint16)]
    return out


def _pq_signal(nits: np.ndarray) -> np.ndarray:
    """The inverse EOTF of PQ: nits to signals in [0, 1]."""
    y = (np.asarray(nits, np.float64) / 10000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * y) / (1 + 2392 / 128 * y)) ** (2523 / 32)


def _pq_nits(signal: np.ndarray) -> np.ndarray:
    """The EOTF of PQ."""
    root = signal ** (32 / 2523)
    light = np.maximum(root - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * root)
    return 10000 * light ** (16384 / 2610)


@functools.cache
def _light_table(transfer: int) -> np.ndarray:
    """Light by signal, float32 [65536]: of PQ nits, of HLG of the scene in [0, 1]."""
    signal = np.arange(65536) / 65535
    if transfer == ColorTrc.SMPTE2084:
        return _pq_nits(signal).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return light.astype(np.float32)


@functools.cache
def _gains() -> tuple[np.ndarray, np.ndarray]:
    """What nits are multiplied with by the largest of R, G and B, each float64 [levels]."""
    nits = _pq_nits(np.arange(1, 4097) / 4096)
    top = _pq_signal(np.array(PEAK))
    most = _pq_signal(np.array(WHITE)) / top
    signal = np.minimum(_pq_signal(nits) / top, 1)
    knee = 1.5 * most - 0.5
    t = np.maximum(signal - knee, 0) / (1 - knee)
    curve = (
        (2 * t**3 - 3 * t**2 + 1) * knee
        + (t**3 - 2 * t**2 + t) * (1 - knee)
        + (3 * t**2 - 2 * t**3) * most
    )
    return nits, _pq_nits(np.where(signal > knee, curve, signal) * top) / nits


@functools.cache
def _srgb_table() -> np.ndarray:
    """Values of sRGB by linear light in steps of 1/65535, uint8 [65536]."""
    linear = np.arange(65536) / 65535
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * encoded).astype(np.uint8)
