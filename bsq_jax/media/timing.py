"""Frame times of a video: a constant rate, or where it varies the duration of each frame.

Containers store the time of each frame as a whole number of ticks, often of a millisecond, so the
frames of a video of constant rate come at 0, 33, 67, 100 ms. So a rate is constant where some rate
explains all times up to rounding. The rate in the header of a file is used only if it does:
recordings of phones and screens, and files joined from others, often state a rate that their frames
do not have.
"""

from __future__ import annotations

import dataclasses
import fractions
import itertools
import math
from collections.abc import Sequence

import numpy as np

from bsq_jax.core.errors import UserError

DEFAULT_RATE = fractions.Fraction(25)
"""Frames per second of a video that states no rate and no times."""

MOST_TICKS = 2**35 - 1  # that a frame lasts; see docs/format.md
_FINEST = 10**6  # ticks a second that are kept
_ROUNDING = 1e-3  # seconds by which times are off that went through a container of milliseconds
_MOST_OF_ONE = 300  # frames a second that a video of a single frame can mean
_SIMPLE = 1001  # denominator of a mean that encoders are told
_PART = 3  # rounding is at most this part of the time from one frame to the next
_USUAL = tuple(
    fractions.Fraction(*rate)
    for rate in (
        *((24, 1), (25, 1), (30, 1), (50, 1), (60, 1), (48, 1), (100, 1), (120, 1), (240, 1)),
        *((24000, 1001), (30000, 1001), (60000, 1001), (120000, 1001)),
        *((15, 1), (10, 1), (12, 1), (20, 1), (5, 1), (1, 1)),
    )
)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Timing:
    """Frame times of a video of variable rate.

    Attributes:
      ticks: ticks per second.
      lasting: duration of each frame in ticks, at least 1; int64 ``[frames]``.
    """

    ticks: fractions.Fraction
    lasting: np.ndarray

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
          UserError: there are no frames, or one lasts for no time or for hours.
        """
        lasting = np.array(self.lasting, np.int64)
        lasting.flags.writeable = False
        object.__setattr__(self, "ticks", fractions.Fraction(self.ticks))
        object.__setattr__(self, "lasting", lasting)
        if lasting.ndim != 1 or not lasting.size or lasting.min() < 1:
            raise UserError("the times of a video must be of one frame or more, and must increase")
        if lasting.max() > MOST_TICKS:
            number = int(lasting.argmax())
            hours = float(int(lasting[number]) / self.ticks / 3600)
            raise UserError(
                f"frame {number} lasts for {hours:,.0f} hours by the times in the file: they are "
                "damaged, or the file was joined from others; write it anew, or cut it there"
            )
        parts = (self.ticks.numerator, self.ticks.denominator)
        if not all(1 <= part < 2**31 for part in parts):
            raise UserError(f"times in units of 1/{self.ticks} of a second cannot be written")

    def __eq__(self, other: object) -> bool:
        """Whether all frames are shown at the same times, in the same units."""
        if not isinstance(other, Timing):
            return NotImplemented
        return self.ticks == other.ticks and np.array_equal(self.lasting, other.lasting)

    def __hash__(self) -> int:
        """Goes with equality."""
        return hash((self.ticks, len(self), int(self.lasting[0]), int(self.lasting[-1])))

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.lasting)

    def __repr__(self) -> str:
        """Without the frames, of which there may be a million."""
        return f"Timing({self.ticks} ticks a second, {len(self)} frames in {self.seconds} s)"

    @property
    def starts(self) -> np.ndarray:
        """Start of each frame in ticks from the first; int64 ``[frames]``."""
        return np.concatenate([[0], np.cumsum(self.lasting[:-1])])

    @property
    def seconds(self) -> fractions.Fraction:
        """Duration of the video in seconds."""
        return int(self.lasting.sum()) / self.ticks

    @property
    def rate(self) -> fractions.Fraction:
        """Average frames per second."""
        return len(self) / self.seconds

    def first(self, count: int) -> Timing:
        """The times of the first frames."""
        return dataclasses.replace(self, lasting=self.lasting[:count])


def seconds_of(rate: fractions.Fraction | Timing | None, frames: int) -> np.ndarray:
    """Start of each frame in seconds from the first; float64 ``[frames]``.

    Args:
      rate: frames per second, or frame times; None for a picture.
      frames: how many of them.
    """
    if isinstance(rate, Timing):
        return rate.starts[:frames] / np.float64(rate.ticks)
    return np.arange(frames) / np.float64(rate or 1)


def mean_rate(rate: fractions.Fraction | Timing) -> fractions.Fraction:
    """Average frames per second, as a simple fraction where the rate varies."""
    if not isinstance(rate, Timing):
        return rate
    return rate.rate.limit_denominator(_SIMPLE) or rate.rate


def end_of(times: Sequence[int], lasting: Sequence[int]) -> int | None:
    """End of the last frame, from the durations that a file states.

    Args:
      times: start of each frame, in any order.
      lasting: duration of each frame in the same units; 0 where the file states none.

    Returns:
      None where the file states none, or durations that contradict most of the starts.
    """
    order = np.argsort(np.asarray(times, np.int64), kind="stable")
    starts, stated = np.asarray(times, np.int64)[order], np.asarray(lasting, np.int64)[order]
    gaps = np.diff(starts)
    right = np.abs(gaps - stated[:-1]) <= np.maximum(gaps // 10, 1)
    if stated[-1] <= 0 or 2 * np.count_nonzero(right) < len(gaps):
        return None
    return int(starts[-1] + stated[-1])


def declared_or_default(declared: fractions.Fraction | None, frames: int) -> fractions.Fraction:
    """The rate of a video of which only the rate in its header is known.

    Args:
      declared: frames per second in the header; None if there is none.
      frames: number of frames. The header of a single frame often has a unit of time as its rate.
    """
    if declared is None or (frames == 1 and declared > _MOST_OF_ONE):
        return DEFAULT_RATE
    return declared


def regular_or_times(
    times: np.ndarray,
    ticks: fractions.Fraction,
    *,
    end: int | None = None,
    declared: fractions.Fraction | None = None,
) -> fractions.Fraction | Timing:
    """The rate of a video, or its frame times where no rate explains them.

    Args:
      times: start of each frame, strictly increasing; int64 ``[frames]``.
      ticks: ticks per second, the unit of `times`.
      end: end of the last frame, if known.
      declared: frames per second in the header.

    Returns:
      Frames per second where a rate explains all times up to rounding: the declared one if it
      does, else a usual one, else a simple fraction. Otherwise `Timing`, no finer than a
      microsecond.

    Raises:
      UserError: a frame lasts for so many hours that it cannot be written.
    """
    starts = np.asarray(times, np.int64) - int(times[0])
    last = None if end is None or end <= int(times[-1]) else end - int(times[-1])
    if len(starts) == 1:
        if last is None:
            return declared_or_default(declared, 1)
        return _explained(np.array([0, last]), ticks, declared) or ticks / last
    rate = _explained(starts, ticks, declared)
    if rate is not None and (last is None or last <= 2 * ticks / rate):
        return rate
    if last is None:
        last = round(ticks / declared) if declared else round(float(np.median(np.diff(starts))))
    return _times(np.append(starts, starts[-1] + max(last, 1)), ticks)


def durations_of(seconds: Sequence[fractions.Fraction]) -> fractions.Fraction | Timing:
    """The rate of frames of these durations, or their times where durations differ.

    Raises:
      UserError: a frame lasts for so many hours that it cannot be written.
    """
    if len(set(seconds)) == 1:
        return 1 / seconds[0]
    edges = [fractions.Fraction(0), *itertools.accumulate(seconds)]
    ticks = min(math.lcm(*(duration.denominator for duration in seconds)), _FINEST)
    return _times(np.array([round(edge * ticks) for edge in edges]), fractions.Fraction(ticks))


def _times(edges: np.ndarray, ticks: fractions.Fraction) -> Timing:
    """Times in the coarsest ticks that hold them, no finer than a microsecond."""
    if ticks > _FINEST:
        scale = float(_FINEST / ticks)
        edges, ticks = np.rint(edges * scale).astype(np.int64), fractions.Fraction(_FINEST)
    lasting = np.maximum(np.diff(edges), 1)
    common = int(np.gcd.reduce(lasting))
    return Timing(ticks / common, lasting // common)


def _explained(
    starts: np.ndarray, ticks: fractions.Fraction, declared: fractions.Fraction | None
) -> fractions.Fraction | None:
    """The constant rate that gives these times up to rounding; None if there is none."""
    steps = len(starts) - 1
    mean = float(starts[-1]) / steps
    # A tick may be long: at 25 ticks per second, frames at 0, 1, 3 and 4 lack one; that is not
    # rounding.
    most = min(max(1.0, float(ticks) * _ROUNDING), mean / _PART)
    numbers = np.arange(len(starts), dtype=np.float64)

    def spread(period: float) -> tuple[float, int]:
        """Range of the errors of frames, and the sign by which the period must change."""
        off = starts - period * numbers
        highest, lowest = int(off.argmax()), int(off.argmin())
        return float(off[highest] - off[lowest]), highest - lowest

    slack = most * (1 + 1e-9) + 1e-6
    if declared is not None and spread(float(ticks / declared))[0] <= slack:
        return declared
    if np.ptp(np.diff(starts)) == 0:
        return ticks * steps / int(starts[-1])
    fits = {rate: spread(float(ticks / rate))[0] for rate in _USUAL}
    best = min(fits, key=lambda rate: round(fits[rate], 3))
    if fits[best] <= slack:
        return best
    # The spread is convex in the period, and the first and last frame bound it.
    low, high = mean - most / steps, mean + most / steps
    for _ in range(60):
        middle = (low + high) / 2
        width, side = spread(middle)
        if width <= slack:
            break
        low, high = (middle, high) if side > 0 else (low, middle)
    else:
        return None
    ends = []
    for end in (low, high):
        inside, outside = middle, end
        for _ in range(30):
            between = (inside + outside) / 2
            fit = spread(between)[0] <= slack
            inside, outside = (between, outside) if fit else (inside, between)
        ends.append(inside)
    first, second = sorted(ticks / fractions.Fraction(end) for end in ends)
    return _simplest(first, second)


def _simplest(low: fractions.Fraction, high: fractions.Fraction) -> fractions.Fraction:
    """The fraction of the smallest denominator in ``[low, high]``, both positive."""
    whole = -(-low.numerator // low.denominator)
    if whole <= high:
        return fractions.Fraction(whole)
    floor = whole - 1
    return floor + 1 / _simplest(1 / (high - floor), 1 / (low - floor))
