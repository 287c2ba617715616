"""What is kept of features. Oracle: the plain arrays of the rows that count."""

import numpy as np
import pytest

from bsq_jax.metrics import FeatureSet, InceptionScore, Moments


@pytest.mark.parametrize("batch", [4, 10, 30])
def test_it_keeps_the_rows_that_count(batch):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30, 2, 3))
    logits = rng.normal(size=(30, 2, 5))
    good = rng.random(30) < 0.8
    found = FeatureSet({"a": 3, "b": 3}, 5, kept="b", share=(9, 30))
    for start in range(0, 30, batch):
        index = np.arange(start, start + batch)
        index = np.where(index < 30, index, -1)
        mask = good[index] & (index >= 0)
        rows = [np.where(mask[:, None, None], x[index], np.nan) for x in (a, b, logits)]
        found.update({"a": rows[0], "b": rows[1]}, rows[2], mask.astype(np.float32), index)
    moments, score = Moments(3), InceptionScore(5)
    moments.update(a[good].reshape(-1, 3), np.ones(2 * good.sum()))
    score.update(logits[good].reshape(-1, 5), np.ones(2 * good.sum()))
    np.testing.assert_array_equal(found.moments["a"].covariance, moments.covariance)
    np.testing.assert_allclose(found.inception_score(), score.result()[0], rtol=1e-12)
    chosen = [i for i in range(30) if (i + 1) * 9 // 30 > i * 9 // 30]
    assert len(chosen) == 9
    assert np.diff(chosen).max() <= 4
    rows = [i for i in chosen if good[i]]
    np.testing.assert_array_equal(found.sample(), b[rows].reshape(-1, 3))
