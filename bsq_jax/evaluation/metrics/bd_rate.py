"""Bjontegaard's delta rate: how many more bits one codec takes than another at equal quality.

G. Bjontegaard, "Calculation of average PSNR differences between RD-curves" (VCEG-M33, 2001): the
logarithm of the rate as a function of the quality is averaged over the qualities that both curves
reach. M33 puts one polynomial of degree 3 through four points. With three points there is none, and
with six it passes by the points and may bend between them, so the function here is the piecewise
cubic that later revisions of the method use (PCHIP: Fritsch and Carlson 1980, with the slopes of
Fritsch and Butland 1984). It meets every point and never overshoots between two of them.
"""

from collections.abc import Sequence

import numpy as np

from bsq_jax.core.errors import UserError


def bd_rate(
    anchor: Sequence[tuple[float, float]], tested: Sequence[tuple[float, float]]
) -> float | None:
    """The change of rate from one codec to another at equal quality.

    Args:
      anchor: points ``(rate, quality)`` of the codec that is compared with, in any order; rates
        above 0 in any unit, qualities such that more is better.
      tested: the same of the other codec. Of points of equal quality the cheapest counts.

    Returns:
      Percent, above -100: -50 says that `tested` needs half the bits of `anchor`. None where the
      ranges of quality do not overlap, or a curve has not two different qualities.

    Raises:
      UserError: a rate or a quality is not finite, or a rate is not above 0.
    """
    curves = [_log_rate_over_quality(points) for points in (anchor, tested)]
    if any(len(quality) < 2 for quality, _ in curves):
        return None
    low = max(quality[0] for quality, _ in curves)
    high = min(quality[-1] for quality, _ in curves)
    if not low < high:
        return None
    before, after = (_mean(*curve, low, high) for curve in curves)
    return float(100 * np.expm1(after - before))


def _log_rate_over_quality(points: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Qualities, strictly increasing, and the natural logarithm of the rate at each."""
    array = np.asarray(points, np.float64).reshape(-1, 2)
    if not np.isfinite(array).all() or (array[:, 0] <= 0).any():
        raise UserError(
            "the points of a rate-distortion curve must be finite, with rates above 0: "
            f"not {[tuple(map(float, point)) for point in points]}"
        )
    order = np.lexsort((array[:, 0], array[:, 1]))  # by quality, then by rate
    rate, quality = array[order].T
    first = np.append(True, np.diff(quality) > 0)[: len(quality)]
    return quality[first], np.log(rate[first])


def _slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The slope of the piecewise cubic at each of two or more points."""
    widths, secants = np.diff(x), np.diff(y) / np.diff(x)
    if len(x) == 2:
        return np.repeat(secants, 2)
    slopes = np.zeros(len(x))  # at an extremum
    for i in range(1, len(x) - 1):
        left, right = secants[i - 1], secants[i]
        if left * right > 0:  # the harmonic mean, the nearer secant counting more
            weights = np.array([widths[i - 1] + 2 * widths[i], 2 * widths[i - 1] + widths[i]])
            slopes[i] = weights.sum() / (weights / [left, right]).sum()
    slopes[0] = _end_slope(widths[0], widths[1], secants[0], secants[1])
    slopes[-1] = _end_slope(widths[-1], widths[-2], secants[-1], secants[-2])
    return slopes


def _end_slope(width: float, inner_width: float, secant: float, inner: float) -> float:
    """The slope of the parabola through three points at the outer one, kept from overshooting."""
    slope = ((2 * width + inner_width) * secant - width * inner) / (width + inner_width)
    if slope * secant <= 0:
        return 0.0
    if secant * inner <= 0 and abs(slope) > 3 * abs(secant):
        return 3 * secant
    return slope


def _mean(x: np.ndarray, y: np.ndarray, low: float, high: float) -> float:
    """Mean of the piecewise cubic over ``[low, high]``, which lies within `x`."""
    slopes = _slopes(x, y)

    def value(at: np.ndarray, piece: np.ndarray) -> np.ndarray:
        width = x[piece + 1] - x[piece]
        t = (at - x[piece]) / width
        ends = y[piece] * (1 + 2 * t) * (1 - t) ** 2 + y[piece + 1] * t**2 * (3 - 2 * t)
        bends = slopes[piece] * t * (1 - t) ** 2 - slopes[piece + 1] * t**2 * (1 - t)
        return ends + width * bends

    edges = np.concatenate([[low], x[(x > low) & (x < high)], [high]])
    begin, end = edges[:-1], edges[1:]
    middle = (begin + end) / 2
    piece = np.searchsorted(x, middle) - 1
    # Simpson's rule is exact for cubics.
    areas = (end - begin) * (value(begin, piece) + 4 * value(middle, piece) + value(end, piece)) / 6
    return areas.sum() / (high - low)
