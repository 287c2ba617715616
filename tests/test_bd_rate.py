"""Bjontegaard's delta rate. Oracles: closed forms, and scipy's PCHIP integrated by scipy."""

import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator

from bsq_jax.core.errors import UserError
from bsq_jax.evaluation.metrics import bd_rate

CURVE = [(0.05, 24.0), (0.11, 27.1), (0.3, 30.2), (0.5, 31.0), (1.2, 36.5)]


def scaled(points, factor):
    return [(rate * factor, quality) for rate, quality in points]


@pytest.mark.smoke
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.25, 3.0])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_same_curve_at_other_rates(factor, count):
    curve = CURVE[:count]
    assert bd_rate(curve, scaled(curve, factor)) == pytest.approx(100 * (factor - 1), abs=1e-9)


def test_straight_lines_against_the_integral_by_hand():
    """log10 of the rate is q / 10 and q / 20 + 1; their means over 10..14 are 1.2 and 1.6."""
    anchor = [(10 ** (q / 10), q) for q in (6.0, 10.0, 11.0, 14.0)]
    tested = [(10 ** (q / 20 + 1), q) for q in (10.0, 12.0, 17.0)]
    assert bd_rate(anchor, tested) == pytest.approx(100 * (10**0.4 - 1), abs=1e-9)
    assert bd_rate(tested, anchor) == pytest.approx(100 * (10**-0.4 - 1), abs=1e-9)


def test_random_curves_against_scipy():
    """Some of them go down in rate where quality goes up, so all branches of the slopes are met."""
    rng, compared = np.random.default_rng(0), 0
    for _ in range(300):
        curves = []
        for _ in range(2):
            count = int(rng.integers(2, 8))
            quality = np.sort(rng.uniform(20, 40, count))
            rate = np.exp(rng.normal(0, 1, count))
            if rng.random() < 0.5:
                rate = np.sort(rate)
            order = rng.permutation(count)
            curves.append((quality, rate, list(zip(rate[order], quality[order], strict=True))))
        low = max(quality[0] for quality, _, _ in curves)
        high = min(quality[-1] for quality, _, _ in curves)
        found = bd_rate(curves[0][2], curves[1][2])
        if low >= high:
            assert found is None
            continue
        means = [
            PchipInterpolator(quality, np.log(rate)).integrate(low, high) / (high - low)
            for quality, rate, _ in curves
        ]
        assert found == pytest.approx(100 * (np.exp(means[1] - means[0]) - 1), rel=1e-9)
        compared += 1
    assert compared > 200


def test_no_rate_where_there_is_no_common_quality():
    better = [(rate, quality + 20) for rate, quality in CURVE]
    assert bd_rate(CURVE, better) is None
    touching = [(rate, quality + 12.5) for rate, quality in CURVE]
    assert bd_rate(CURVE, touching) is None
    assert bd_rate(CURVE, CURVE[:1]) is None
    assert bd_rate(CURVE, []) is None
    assert bd_rate(CURVE, [(1.0, 30.0), (2.0, 30.0)]) is None


def test_of_equal_qualities_the_cheapest_counts():
    doubled = [*CURVE, (0.9, 31.0), (0.4, 27.1)]
    assert bd_rate(CURVE, doubled) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("point", [(0.0, 30.0), (-1.0, 30.0), (1.0, np.nan), (np.inf, 30.0)])
def test_points_that_are_none(point):
    with pytest.raises(UserError, match="rates above 0") as caught:
        bd_rate(CURVE, [*CURVE, point])
    assert "\n" not in str(caught.value)
