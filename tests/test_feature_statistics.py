"""What is kept of features. Oracle: the plain arrays of the rows that count."""

import chex
import numpy as np
import pytest

from bsq_jax.evaluation.metrics import FeatureStatistics, InceptionScore, Moments


@pytest.mark.parametrize("batch", [4, 10, 30])
def test_it_keeps_the_rows_that_count(batch):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30, 2, 3))
    logits = rng.normal(size=(30, 2, 5))
    clips = rng.normal(size=(30, 1, 4))
    good = (rng.random(30) < 0.8)[:, None] & np.array([[True, True]])
    good[5:20:3, 1] = False  # clips of one frame
    found = FeatureStatistics({"a": 3, "b": 3, "clips": 4}, 5, kept="b", share=(9, 30))
    for start in range(0, 30, batch):
        index = np.arange(start, start + batch)
        index = np.where(index < 30, index, -1)
        mask = good[index] & (index >= 0)[:, None]
        rows = [np.where(mask[..., None], x[index], np.nan) for x in (a, b, logits)]
        whole = np.where(mask.all(axis=1)[:, None, None], clips[index], np.nan)
        features = {"a": rows[0], "b": rows[1], "clips": whole, "logits": rows[2]}
        found.update(features, mask, index)
    moments, of_clips, score = Moments(3), Moments(4), InceptionScore(5)
    moments.update(a[good], np.ones(good.sum()))
    whole = good.all(axis=1)
    assert 0 < whole.sum() < good.any(axis=1).sum() < 30
    of_clips.update(clips[whole, 0], np.ones(whole.sum()))
    score.update(logits[good], np.ones(good.sum()))
    kept = {name: found.moments[name].to_arrays() for name in ("a", "clips")}
    chex.assert_trees_all_equal(kept, {"a": moments.to_arrays(), "clips": of_clips.to_arrays()})
    np.testing.assert_allclose(found.inception_score(), score.result()[0], rtol=1e-12)
    chosen = [i for i in range(30) if (i + 1) * 9 // 30 > i * 9 // 30]
    assert len(chosen) == 9
    assert np.diff(chosen).max() <= 4
    wanted = [b[i][good[i]] for i in chosen]
    np.testing.assert_array_equal(found.sample(), np.concatenate(wanted))
