"""Entropies of the soft assignment. Oracle: all 2^L codes written out, in float64 numpy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsq_jax.core.sharding import batch_sharding, make_mesh
from bsq_jax.quantizers import entropy as package
from bsq_jax.quantizers.entropy import binary_entropy, soft_logits

token_entropy = jax.jit(package.token_entropy)
codebook_entropy = jax.jit(package.codebook_entropy, static_argnums=1)
group_distributions = jax.jit(package.group_distributions, static_argnums=1)


def unit_vectors(tokens: int, length: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(tokens, length))
    # Correlated channels: otherwise factorised and exact entropies are almost the same.
    drawn[:, 1:] += 1.5 * drawn[:, :1]
    return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)


def assignment(unit: np.ndarray, inv_temperature: float) -> np.ndarray:
    """q(c|u) over all 2^L corners, from its definition: softmax of tau c.u."""
    length = unit.shape[-1]
    codes = (np.arange(2**length)[:, None] >> np.arange(length)[::-1]) & 1
    corners = (2 * codes - 1) / np.sqrt(length)
    scores = 2 * inv_temperature * unit @ corners.T  # tau is twice the inverse temperature
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def entropy(p: np.ndarray) -> np.ndarray:
    return -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=-1)


def marginal(p: np.ndarray, length: int, first: int, size: int) -> np.ndarray:
    """The distribution of `size` neighbouring bits out of one over all codes."""
    return p.reshape(2**first, 2**size, -1).sum(axis=(0, 2))


@pytest.mark.smoke
@pytest.mark.parametrize("inv_temperature", [1.0, 10.0])
@pytest.mark.parametrize("length", [1, 2, 10])
def test_both_terms_against_enumeration(length, inv_temperature):
    unit = unit_vectors(24, length)
    q = assignment(unit, inv_temperature)
    logits = soft_logits(jnp.asarray(unit, jnp.float32), inv_temperature)
    np.testing.assert_allclose(token_entropy(logits), entropy(q).mean(), rtol=1e-5, atol=1e-12)
    exact = entropy(q.mean(axis=0))
    np.testing.assert_allclose(codebook_entropy(logits, length), exact, rtol=1e-5, atol=1e-12)


def test_groups_are_marginals_and_bound_the_exact_entropy_from_above():
    length = 10
    unit = unit_vectors(40, length)
    average = assignment(unit, 4.0).mean(axis=0)
    logits = soft_logits(jnp.asarray(unit, jnp.float32), 4.0).reshape(2, 4, 5, length)
    bounds = []
    for size in (1, 2, 3, 5, 7, 10):  # 3 and 7 leave a smaller last group
        starts = range(0, length, size)
        wanted = [marginal(average, length, i, min(size, length - i)) for i in starts]
        got = [row for rows in group_distributions(logits, size) for row in rows]
        for ours, row in zip(got, wanted, strict=True):
            np.testing.assert_allclose(ours, row, atol=1e-6)
        bound = float(codebook_entropy(logits, size))
        np.testing.assert_allclose(bound, sum(map(entropy, wanted)), rtol=1e-5)
        bounds.append(bound)
    exact = entropy(average)
    assert all(bound >= exact - 1e-5 for bound in bounds)
    assert bounds[0] > exact + 0.1  # here the bits are far from independent
    # Groups that are unions of smaller ones can only be tighter.
    assert bounds[0] > bounds[1] > bounds[-1]
    assert bounds[0] > bounds[3] > bounds[-1]


@pytest.mark.parametrize("size", [1, 3, 6])
def test_weighted_tokens_against_enumeration(size):
    """Weights of frames: both terms, and the gradient, which is zero for tokens left out."""
    length = 6
    unit = unit_vectors(24, length).reshape(2, 3, 4, length)
    weights = np.array([[1.0, 0.25, 2.0], [1.0, 0.0, 0.0]])
    shares = np.broadcast_to(weights[..., None], (2, 3, 4)) / (4 * weights.sum())
    q = assignment(unit, 3.0)  # [batch, time, token, code]
    average = np.einsum("btn,btnc->c", shares, q)
    groups = [marginal(average, length, i, size) for i in range(0, length, size)]

    @jax.jit
    def both(u, weights):
        logits = soft_logits(u, 3.0)
        terms = [
            package.token_entropy(logits, weights),
            package.codebook_entropy(logits, size, weights),
        ]
        gradients = jax.grad(
            lambda x: package.token_entropy(x, weights) - package.codebook_entropy(x, size, weights)
        )(logits)
        return terms, gradients

    terms, gradients = both(unit.astype(np.float32), weights.astype(np.float32))
    wanted = [np.sum(shares * entropy(q)), sum(map(entropy, groups))]
    np.testing.assert_allclose(terms, wanted, rtol=1e-5)
    assert not np.asarray(gradients)[1, 1:].any()
    assert np.asarray(gradients)[shares > 0].all()
    # Weights that are all the same change nothing, and neither does their size.
    same, _ = both(unit.astype(np.float32), np.full((2, 3), 7.0, np.float32))
    logits = soft_logits(jnp.asarray(unit, jnp.float32), 3.0)
    plain = [token_entropy(logits), codebook_entropy(logits, size)]
    np.testing.assert_allclose(same, plain, rtol=1e-6)


def test_independent_bits_make_the_factorised_entropy_exact():
    # All sign patterns of one vector: the average is a product distribution.
    signs = np.array(np.meshgrid(*[[-1, 1]] * 4)).reshape(4, -1).T
    logits = soft_logits(jnp.asarray(signs * np.full(4, 0.5), jnp.float32), 3.0)
    for size in (1, 2, 3, 4):
        np.testing.assert_allclose(codebook_entropy(logits, size), 4 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 6])
def test_gradients_against_finite_differences_of_the_enumeration(size):
    length, step = 6, 1e-5
    unit = unit_vectors(8, length)

    def loss(u: np.ndarray) -> float:
        q = assignment(u, 2.0)
        average = q.mean(axis=0)
        groups = [marginal(average, length, i, size) for i in range(0, length, size)]
        return entropy(q).mean() - sum(map(entropy, groups))

    wanted = np.zeros_like(unit)
    for index in np.ndindex(*unit.shape):
        move = np.zeros_like(unit)
        move[index] = step
        wanted[index] = (loss(unit + move) - loss(unit - move)) / (2 * step)

    @jax.jit
    @jax.grad
    def gradient(u):
        logits = soft_logits(u, 2.0)
        return token_entropy(logits) - codebook_entropy(logits, size)

    np.testing.assert_allclose(gradient(jnp.asarray(unit, jnp.float32)), wanted, atol=2e-6)


def test_binary_entropy_at_all_sizes():
    logits = np.array([0.0, 1e-3, 1.0, 5.0, 20.0, 50.0, 80.0])
    wanted = np.log1p(np.exp(-logits)) + logits / (1 + np.exp(logits))
    for sign in (1, -1):
        np.testing.assert_allclose(
            binary_entropy(jnp.asarray(sign * logits, jnp.float32)), wanted, rtol=1e-5
        )


@pytest.mark.parametrize("size", [1, 2, 4])
def test_large_logits_stay_finite(size):
    signs = np.array([[1, -1, 1, -1], [-1, 1, 1, -1], [1, 1, -1, -1], [-1, -1, -1, 1]])

    @jax.jit
    def loss(x):
        return token_entropy(x) - codebook_entropy(x, size)

    huge = jnp.asarray(signs * 1e30, jnp.float32)
    probabilities = (signs > 0).mean(axis=0)  # of certain bits: shares of the four tokens
    factorised = entropy(np.stack([probabilities, 1 - probabilities], axis=-1)).sum()
    wanted = {1: factorised, 2: np.log(4) + 1.5 * np.log(2), 4: np.log(4)}
    np.testing.assert_allclose(loss(huge), -wanted[size], rtol=1e-5)
    # At 18 bits, 20 times the largest logit that the published temperature can give.
    gradient = jax.jit(jax.grad(loss))(jnp.asarray(signs * 20.0, jnp.float32))
    chex.assert_tree_all_finite(gradient)


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.usefixtures("eight_devices")
def test_entropies_are_those_of_the_global_batch(size):
    """Each device's tokens fill one half of the codes: only together do they fill them all."""
    mesh = make_mesh(8, 1, 1)
    devices = np.arange(8)[:, None, None]
    signs = np.where((devices >> np.arange(5)) & 1, 1.0, -1.0) * np.ones((8, 4, 5))
    noise = 0.1 * np.random.default_rng(0).normal(size=signs.shape)
    unit = (signs + noise) / np.linalg.norm(signs + noise, axis=-1, keepdims=True)

    @jax.jit
    def both(u):
        logits = soft_logits(u, 3.0)
        return token_entropy(logits), codebook_entropy(logits, size)

    placed = jax.device_put(unit.reshape(32, 5).astype(np.float32), batch_sharding(mesh))
    token, codebook = both(placed)
    q = assignment(unit, 3.0)  # [device, token, code]
    average = q.mean(axis=(0, 1))
    groups = [marginal(average, 5, i, size) for i in range(0, 5, size)]
    np.testing.assert_allclose(token, entropy(q).mean(), rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(codebook, sum(map(entropy, groups)), rtol=1e-5)
    alone = [
        sum(entropy(marginal(d.mean(axis=0), 5, i, size)) for i in range(0, 5, size)) for d in q
    ]
    assert np.mean(alone) < float(codebook) - 0.3


class Variants(chex.TestCase):
    """The same numbers with and without jit and on a device. Oracle: all codes written out."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_entropies(self):
        length = 6
        unit = unit_vectors(24, length)
        q = assignment(unit, 3.0)

        def both(u):
            logits = soft_logits(u, 3.0)
            return package.token_entropy(logits), package.codebook_entropy(logits, 3)

        found = self.variant(both)(unit.astype(np.float32))
        chex.assert_shape(found, ())
        average = q.mean(axis=0)
        groups = sum(entropy(marginal(average, length, first, 3)) for first in (0, 3))
        chex.assert_trees_all_close(found, (entropy(q).mean(), groups), rtol=1e-5)

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_distributions(self):
        logits = soft_logits(unit_vectors(24, 5).astype(np.float32), 3.0)
        pair, rest = self.variant(lambda x: package.group_distributions(x, 2))(logits)
        chex.assert_shape([pair, rest], [(2, 4), (1, 2)])
        chex.assert_trees_all_close(jnp.sum(pair, axis=-1), jnp.ones(2), rtol=1e-5)
        ones = jax.nn.sigmoid(logits).mean(axis=0)
        chex.assert_trees_all_close(rest[0, 1], ones[4], rtol=1e-5)


def test_arrays_that_do_not_fit_are_refused_by_name():
    logits = jnp.zeros((2, 3, 4))
    with pytest.raises(ValueError, match=r"weights \[3\] .* logits \[2, 3, 4\]"):
        package.token_entropy(logits, jnp.ones(3))
    with pytest.raises(ValueError, match="logits is int32"):
        package.codebook_entropy(logits.astype(jnp.int32))
