"""Oracles: closed forms of Gaussians, numpy's covariance, scipy's square root of a matrix."""

import chex
import numpy as np
import pytest
from scipy import linalg

from bsq_jax.core.errors import UserError
from bsq_jax.evaluation.metrics import Moments, frechet, frechet_distance


def moments(features):
    found = Moments(features.shape[1])
    found.update(features, np.ones(len(features)))
    return found


def gaussian(mean, covariance):
    """Moments that are what is asked for to rounding: samples whitened, then coloured."""
    rng = np.random.default_rng(0)
    white = rng.normal(size=(4 * len(mean), len(mean)))
    white -= white.mean(axis=0)
    white = white @ np.linalg.inv(linalg.cholesky(np.cov(white.T)))
    values, vectors = np.linalg.eigh(covariance)
    return moments(white @ (vectors * np.sqrt(np.maximum(values, 0))).T + mean)


def test_moments_do_not_depend_on_batches_or_padding(monkeypatch):
    monkeypatch.setattr(frechet, "_CHUNK", 32)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(201, 7)).astype(np.float32)
    whole = moments(rows)
    for size in (1, 8, 50, 201):
        split = Moments(7)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            padded = np.full((size + 3, 7), np.nan, np.float32)
            padded[1 : 1 + len(part)] = part
            mask = np.isfinite(padded[:, 0])
            split.update(padded, mask)
        assert split.count == whole.count == 201
        chex.assert_trees_all_equal(split.to_arrays(), whole.to_arrays())
    np.testing.assert_allclose(whole.mean, rows.mean(axis=0, dtype=np.float64), rtol=1e-13)
    np.testing.assert_allclose(whole.covariance, np.cov(rows.T.astype(np.float64)), rtol=1e-12)


def test_a_large_offset_costs_no_digits(monkeypatch):
    monkeypatch.setattr(frechet, "_CHUNK", 16)
    rows = np.random.default_rng(1).integers(-8, 8, (100, 3)).astype(np.float64)
    wanted = np.cov(rows.T)
    np.testing.assert_allclose(moments(rows + 2.0**24).covariance, wanted, rtol=1e-8, atol=1e-8)


def test_commuting_gaussians_have_their_closed_form():
    rng = np.random.default_rng(2)
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    a, b = rng.uniform(0.1, 4, (2, 6))
    mean_a, mean_b = rng.normal(size=(2, 6))
    first = gaussian(mean_a, basis @ np.diag(a) @ basis.T)
    second = gaussian(mean_b, basis @ np.diag(b) @ basis.T)
    wanted = np.sum((mean_a - mean_b) ** 2) + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    np.testing.assert_allclose(frechet_distance(first, second), wanted, rtol=1e-10)
    np.testing.assert_allclose(frechet_distance(second, first), wanted, rtol=1e-10)


@pytest.mark.parametrize(("samples", "dimension"), [(200, 8), (20, 48)])
def test_any_gaussians_match_scipy(samples, dimension):
    # The second case has fewer samples than dimensions, and features that are never negative.
    rng = np.random.default_rng(samples)
    mix = rng.normal(size=(dimension, dimension))
    a, b = (np.maximum(rng.normal(size=(samples, dimension)) @ mix, 0) for _ in range(2))
    b *= 1.5
    product = np.cov(a.T) @ np.cov(b.T)
    # A singular product has no root that scipy finds: a small ridge, which moves the trace by
    # about its root, lets it.
    ridge = 0.0 if samples > dimension else 1e-9
    root = linalg.sqrtm(product + ridge * np.eye(dimension))
    spread = np.trace(np.cov(a.T)) + np.trace(np.cov(b.T)) - 2 * np.trace(np.real(root))
    wanted = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2) + spread
    # From the samples alone: the root's trace is the sum of the singular values of A B^T.
    left, right = ((x - x.mean(axis=0)) / np.sqrt(len(x) - 1) for x in (a, b))
    exact = wanted + 2 * np.trace(np.real(root)) - 2 * linalg.svdvals(left @ right.T).sum()
    first, second = moments(a), moments(b)
    value = frechet_distance(first, second)
    np.testing.assert_allclose(value, wanted, rtol=1e-10 if not ridge else 1e-4)
    np.testing.assert_allclose(value, exact, rtol=1e-10)
    np.testing.assert_allclose(value, frechet_distance(second, first), rtol=1e-10)
    assert frechet_distance(first, first) <= 1e-9 * np.trace(first.covariance)


def test_rank_one_against_rank_one_is_exact():
    # Both on lines: tr (C_a C_b)^(1/2) is the product of the spreads and the lines' cosine.
    line_a, line_b = np.eye(64)[0], (np.eye(64)[0] + np.eye(64)[1]) / np.sqrt(2)
    rng = np.random.default_rng(3)
    s, t = rng.normal(size=(2, 30, 1))
    a, b = s * line_a, t * line_b
    var_s, var_t = s.var(ddof=1), t.var(ddof=1)
    wanted = (
        np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
        + var_s
        + var_t
        - 2 * np.sqrt(var_s * var_t / 2)
    )
    np.testing.assert_allclose(frechet_distance(moments(a), moments(b)), wanted, rtol=1e-12)
    constant = moments(np.ones((5, 64)))
    np.testing.assert_allclose(frechet_distance(constant, constant), 0, atol=1e-12)


def test_what_has_no_distance_is_refused():
    one = moments(np.zeros((1, 4)))
    with pytest.raises(UserError, match="at least 2 samples, got 1"):
        frechet_distance(one, moments(np.zeros((3, 4))))
    with pytest.raises(UserError, match="4 and 5 dimensions"):
        frechet_distance(one, moments(np.zeros((3, 5))))
    with pytest.raises(UserError, match=r"expected features \[n, 4\]"):
        one.update(np.zeros((3, 5)), np.ones(3))
    with pytest.raises(UserError, match="not finite"):
        one.update(np.full((1, 4), np.nan), [True])
