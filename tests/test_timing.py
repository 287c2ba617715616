"""Rates and times of videos. Oracles: times rounded by hand, files that PyAV writes."""

from fractions import Fraction

import numpy as np
import pytest
from video_files import write_video

from bsq_jax.core.errors import UserError
from bsq_jax.data.command_line_files import find_inputs
from bsq_jax.data.decoding.video import Video
from bsq_jax.media.timing import (
    DEFAULT_RATE,
    MOST_TICKS,
    Timing,
    durations_of,
    end_of,
    mean_rate,
    regular_or_times,
    seconds_of,
)

PHONE = [0, 33, 66, 100, 1100, 2100, 3100]
NTSC = Fraction(30000, 1001)
RATES = (NTSC, Fraction(24000, 1001), Fraction(60000, 1001), 24, 25, 30, 50, 60, 240, 300, 1, 7)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("rate", "ticks"),
    [
        (rate, ticks)
        for rate in RATES
        for ticks in (1000, 600, 16000, 90000, 10**9)
        if 3 * rate <= ticks  # longer ticks are more than rounding
    ],
)
def test_rounded_times_are_a_constant_rate(rate, ticks):
    """Rounded to the nearest or cut off, whatever the file claims; the end is where it was."""
    for count in (2, 3, 10, 999, 20000):
        exact = [number * ticks / Fraction(rate) for number in range(count)]
        for times in ([round(time) for time in exact], [int(time) for time in exact]):
            if len(set(times)) < count:
                continue
            for first in (0, 7):
                shifted = np.array(times) + first
                assert regular_or_times(shifted, Fraction(ticks), declared=Fraction(rate)) == rate
            for claimed in (None, Fraction(1000), Fraction(rate) * 2, Fraction(rate) / 3):
                found = regular_or_times(np.array(times), Fraction(ticks), declared=claimed)
                assert isinstance(found, Fraction)
                late = abs((count - 1) / found - (count - 1) / Fraction(rate))
                assert late <= 2 * max(Fraction(1, ticks), Fraction(1, 1000))
                if count == 20000 and ticks > 600:
                    assert abs(found / rate - 1) < 1e-4


def test_usual_and_simple_rates_are_preferred():
    for rate in (NTSC, Fraction(30), Fraction(24000, 1001), Fraction(59), Fraction(25, 2)):
        times = np.array([round(number * 1000 / rate) for number in range(2000)])
        assert regular_or_times(times, Fraction(1000)) == rate


def test_milliseconds_that_went_through_another_container_are_constant():
    times = np.array([16 * round(number * 1001 / 30) for number in range(500)])
    assert regular_or_times(times, Fraction(16000), declared=Fraction(25)) == NTSC


@pytest.mark.parametrize(
    ("times", "ticks", "end", "claimed", "lasting", "seconds"),
    [
        (PHONE, 1000, 3133, 30, [33, 33, 34, 1000, 1000, 1000, 33], Fraction(3133, 1000)),
        (PHONE, 1000, None, 30, [33, 33, 34, 1000, 1000, 1000, 33], Fraction(3133, 1000)),
        ([0, 1, 3, 4], 25, None, 25, [1, 2, 1, 1], Fraction(5, 25)),  # one is missing
        ([0, 1, 2, 3, 14], 25, 15, 25, [1, 1, 1, 11, 1], Fraction(15, 25)),
        ([5, 45, 85], 1000, 1085, 25, [40, 40, 1000], Fraction(108, 100)),  # the last stands
        ([0, 3600, 7200, 90000], 90000, 93600, None, [1, 1, 23, 1], Fraction(26, 25)),
        ([0, 2, 5, 6], 10**9, None, None, [1, 1, 1, 1], Fraction(4, 10**6)),
    ],
)
def test_times_that_no_rate_explains_are_kept(times, ticks, end, claimed, lasting, seconds):
    claimed = None if claimed is None else Fraction(claimed)
    found = regular_or_times(np.array(times), Fraction(ticks), end=end, declared=claimed)
    assert isinstance(found, Timing)
    common = int(np.gcd.reduce(lasting))
    np.testing.assert_array_equal(found.lasting, np.array(lasting) // common)
    assert found.seconds == seconds
    assert found.rate == len(times) / seconds
    np.testing.assert_allclose(
        seconds_of(found, len(times))[-1], float(seconds - found.lasting[-1] / found.ticks)
    )


@pytest.mark.parametrize(
    ("end", "claimed", "rate"),
    [
        (None, None, DEFAULT_RATE), (None, 12, 12), (None, 1000, DEFAULT_RATE),
        (5000, None, Fraction(1, 5)), (5000, 30, Fraction(1, 5)), (33, 30, 30),
        (33, None, Fraction(1000, 33)), (40, 1000, 25),
    ],
)  # fmt: skip
def test_videos_of_one_frame(end, claimed, rate):
    claimed = None if claimed is None else Fraction(claimed)
    assert regular_or_times(np.array([0]), Fraction(1000), end=end, declared=claimed) == rate


def test_absurd_times_are_named():
    with pytest.raises(UserError, match="frame 1 lasts for 5,124,095,576 hours"):
        regular_or_times(np.array([0, 1, 2**64 // 1000, 2**64 // 999]), Fraction(1000))
    for lasting in ([], [1, 0], [-1], [[1]]):
        with pytest.raises(UserError):
            Timing(Fraction(25), np.array(lasting, np.int64))
    assert Timing(Fraction(10**6), np.array([MOST_TICKS])).seconds < 36000


def test_timings_compare_and_are_told_in_short():
    one, other = (Timing(Fraction(25), np.array([1, 2, 3])) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one != Timing(Fraction(25), np.array([1, 2, 4]))
    assert one != Timing(Fraction(50), np.array([1, 2, 3]))
    assert "3 frames" in repr(one)
    assert mean_rate(one) == Fraction(25, 2)
    with pytest.raises(ValueError, match="read-only"):
        one.lasting[0] = 5


def test_durations():
    assert durations_of([Fraction(1, 30)] * 4) == 30
    made = durations_of([Fraction(1, 30), Fraction(1, 10), Fraction(2)])
    assert (made.ticks, made.lasting.tolist()) == (30, [1, 3, 60])
    many = [Fraction(1, number) for number in range(50, 99)]  # of no common tick
    made = durations_of(many)
    assert made.ticks <= 10**6
    assert abs(made.seconds - sum(many)) <= Fraction(1, 10**6)


def test_when_the_last_frame_ends():
    assert end_of([0, 80, 40], [40, 40, 40]) == 120  # in the order of decoding
    assert end_of(PHONE, [33] * 7) == 3133
    assert end_of([0, 40, 80], [40, 40, 0]) is None
    assert end_of([0, 40, 80], [1000, 1000, 1000]) is None  # not so for the others
    assert end_of([7], [40]) == 47


# --- files ---


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.mp4", {"bf": "0"}), ("a.mkv", {}), ("a.mov", {"bf": "0"}), ("a.ts", {"bf": "0"}),
        ("a.webm", {"codec": "libvpx-vp9"}), ("b_frames.mp4", {}), ("a.wmv", {"codec": "mpeg4"}),
    ],
)  # fmt: skip
def test_files_of_variable_rate(tmp_path, name, settings):
    path = write_video(tmp_path / name, 7, size=(48, 64), times=PHONE, **settings)
    with Video(path) as video:
        found = video.timing()
        assert isinstance(found, Timing)
        np.testing.assert_allclose(seconds_of(found, 7) * 1000, PHONE, atol=0.6)
        assert video.timing(1) in (30, Fraction(1000, 33))
        # The first four come at 30 a second, and the last of them stands for a second.
        first = video.timing(4)
        assert isinstance(first, Timing)
        assert float(first.seconds) == pytest.approx(1.1, abs=1e-3)
        assert video.timing(3) == pytest.approx(Fraction(30), rel=0.02)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.mp4", {}), ("a.mkv", {}), ("a.avi", {"codec": "mpeg4", "bf": "2"}), ("a.ts", {}),
        ("made_up_times.avi", {}), ("a.mpg", {"codec": "mpeg2video", "bf": "2"}),
    ],
)  # fmt: skip
def test_files_of_constant_rate(tmp_path, name, settings):
    path = write_video(tmp_path / name, 20, size=(48, 64), **settings)
    with Video(path) as video:
        assert video.timing() == video.timing(1) == video.timing(5) == 25


def test_a_claim_that_is_not_so_is_not_believed(tmp_path):
    """PyAV writes 25 frames a second into the header; the frames come at 29.97, in milliseconds."""
    times = [round(number * 1001 / 30) for number in range(60)]
    path = write_video(tmp_path / "a.mkv", 60, size=(16, 16), times=times)
    with Video(path) as video:
        assert video.rate == 25
        assert video.timing() == NTSC
    (one,) = find_inputs([str(path)])
    assert one.read(0)[1] == NTSC
    path = write_video(tmp_path / "b.mkv", 7, size=(16, 16), times=PHONE)
    (one,) = find_inputs([str(path)])
    assert float(one.read(0)[1]) == pytest.approx(7 / 3.14, rel=1e-3)


def test_raw_video(tmp_path):
    (tmp_path / "a_16x16_50.yuv").write_bytes(bytes(16 * 24 * 3))
    (tmp_path / "b_16x16.yuv").write_bytes(bytes(16 * 24 * 3))
    for name, rate in (("a_16x16_50.yuv", 50), ("b_16x16.yuv", 25)):
        with Video(tmp_path / name) as video:
            assert video.timing() == rate
