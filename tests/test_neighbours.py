"""Oracles: all pairs by scipy in float64, and an example in the plane by hand."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from bsq_jax.core.errors import UserError
from bsq_jax.evaluation.metrics import precision_recall


def covered(points, by, k):
    """Share of `points` in the balls of `by`; a point's first neighbour is itself."""
    radii = np.sort(cdist(by, by), axis=1)[:, k]
    return np.mean([np.any(np.linalg.norm(by - p, axis=1) <= radii) for p in points])


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_it_matches_all_pairs(k, offset):
    rng = np.random.default_rng(k)
    real = (rng.normal(size=(90, 6)) + offset).astype(np.float32)
    fake = (1.3 * rng.normal(size=(70, 6)) + 0.5 + offset).astype(np.float32)
    wanted = covered(fake, real, k), covered(real, fake, k)
    assert min(wanted) > 0.1
    assert min(wanted) < 0.95
    for chunk in (1, 32, 1000):
        assert precision_recall(real, fake, k, chunk=chunk) == pytest.approx(wanted, abs=1e-12)


def test_an_example_in_the_plane():
    # Real points a unit apart on a line, with radius 1 for k = 1. Of the fakes the first two lie
    # within 1 of a real point, one of them on the rim, and the others far from all. The radii of
    # the fakes are 2, 2, 1 and 1, so that the first two cover all real points.
    real = [[0, 0], [1, 0], [2, 0]]
    fake = [[0, 1], [2, 1], [50, 50], [50, 51]]
    assert precision_recall(real, fake, k=1) == (0.5, 1.0)
    assert precision_recall(fake, real, k=1) == (1.0, 0.5)


def test_copies_are_covered_and_cover():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(40, 300)).astype(np.float32) * 1e3
    assert precision_recall(points, points) == (1.0, 1.0)
    # Radii of 0: only what is exactly there counts.
    repeated = np.repeat(points[:5], 4, axis=0)
    assert precision_recall(repeated, points) == (5 / 40, 1.0)
    same = np.ones((20, 8))
    assert precision_recall(same, same) == (1.0, 1.0)
    assert precision_recall(same, same + 1e-3) == (0.0, 0.0)


def test_what_has_no_neighbours_is_refused():
    with pytest.raises(UserError, match="more than 3 samples"):
        precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))
    with pytest.raises(UserError, match=r"\[n, d\] and \[m, d\]"):
        precision_recall(np.zeros((9, 2)), np.zeros((9, 3)))
    with pytest.raises(UserError, match="not finite"):
        precision_recall(np.full((9, 2), np.nan), np.zeros((9, 2)))
