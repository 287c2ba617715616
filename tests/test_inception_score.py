"""Oracle: the definition in float64 numpy, with the logarithms of scipy, and known extremes."""

import chex
import numpy as np
import pytest
from scipy import special

from bsq_jax.core.errors import UserError
from bsq_jax.evaluation.metrics import InceptionScore


def score_of(logits):
    p = special.softmax(logits.astype(np.float64), axis=1)
    return np.exp(special.rel_entr(p, p.mean(axis=0)).sum(axis=1).mean())


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("batch", [1, 9, 103])
def test_it_is_the_definition_for_any_batches(splits, batch):
    rng = np.random.default_rng(0)
    logits = (5 * rng.normal(size=(103, 12)) + 300).astype(np.float32)
    score = InceptionScore(12, splits=splits)
    for start in range(0, len(logits), batch):
        part = logits[start : start + batch]
        padded = np.full((batch + 2, 12), np.nan, np.float32)
        padded[2 : 2 + len(part)] = part
        score.update(padded, np.isfinite(padded[:, 0]))
    loaded = InceptionScore.from_arrays(score.to_arrays())
    chex.assert_trees_all_equal(loaded.to_arrays(), score.to_arrays())
    assert loaded.result() == score.result()
    parts = [score_of(logits[i::splits]) for i in range(splits)]
    np.testing.assert_allclose(score.result(), [np.mean(parts), np.std(parts)], rtol=1e-10)


def test_extremes():
    alike = InceptionScore(10)
    alike.update(np.tile(np.arange(10.0), (7, 1)), np.ones(7))
    np.testing.assert_allclose(alike.result(), [1, 0], rtol=1e-12)
    sure = InceptionScore(10)
    with np.errstate(divide="ignore"):
        sure.update(np.log(np.eye(10)), np.ones(10))  # -inf but for one class
    sure.update(1e4 * np.eye(10, dtype=np.float32), np.ones(10))
    np.testing.assert_allclose(sure.result(), [10, 0], rtol=1e-12)


def test_what_has_no_score_is_refused():
    score = InceptionScore(5, splits=2)
    score.update(np.zeros((3, 5)), [True, False, False])
    with pytest.raises(UserError, match=r"over 2 part\(s\) has only 1 sample"):
        score.result()
    with pytest.raises(UserError, match=r"expected logits \[n, 5\]"):
        score.update(np.zeros((3, 4)), np.ones(3))
    with pytest.raises(UserError, match="at least 1 split"):
        InceptionScore(5, splits=0)
