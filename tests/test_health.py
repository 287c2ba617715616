"""Health of the bits. Oracle: small batches whose statistics are counted by hand, and numpy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.quantizers.health import code_counts, health_of


def bit_health(bits, weights=None):
    return health_of(code_counts(bits, weights))


def test_hand_made_batch():
    bits = jnp.array([[0, 1, 0], [0, 1, 1], [0, 0, 0], [0, 1, 1]], jnp.uint8)
    health = bit_health(bits)
    np.testing.assert_allclose(health["bit_mean"], [0, 0.75, 0.5])
    quarter = -0.75 * np.log2(0.75) - 0.25 * np.log2(0.25)
    np.testing.assert_allclose(health["bit_entropy"], (0 + quarter + 1) / 3, rtol=1e-6)
    assert health["bit_entropy_min"] == 0
    assert health["group_usage"] == 3 / 8  # 010, 011 and 000 of the eight codes


def test_groups_of_eight_are_counted_apart_and_the_rest_is_left_out():
    every = np.array([list(f"{code:08b}") for code in range(256)], int)
    same = np.zeros((256, 8), int)
    rest = np.ones((256, 2), int)
    bits = np.concatenate([every, same, rest], axis=1).reshape(4, 8, 8, 18)
    usage = bit_health(jnp.asarray(bits, jnp.uint8))["group_usage"]
    np.testing.assert_allclose(usage, (1 + 1 / 256) / 2)


def test_random_batch_against_numpy():
    bits = np.random.default_rng(0).integers(0, 2, (2, 30, 16))
    bits[..., 3] = 1
    health = bit_health(jnp.asarray(bits, jnp.uint8))
    flat = bits.reshape(-1, 16)
    mean = flat.mean(axis=0)
    shares = np.stack([mean, 1 - mean])
    entropy = -np.sum(shares * np.log2(np.maximum(shares, 1e-300)), axis=0)
    used = [len({tuple(row) for row in flat[:, i : i + 8]}) / 256 for i in (0, 8)]
    np.testing.assert_allclose(health["bit_mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(health["bit_entropy"], entropy.mean(), rtol=1e-5)
    np.testing.assert_allclose(health["bit_entropy_min"], entropy.min(), atol=1e-6)
    np.testing.assert_allclose(health["group_usage"], np.mean(used), rtol=1e-6)


def test_tokens_that_are_left_out_might_as_well_not_be_there():
    bits = np.random.default_rng(1).integers(0, 2, (3, 4, 5, 16)).astype(np.uint8)
    weights = np.arange(4)[None, :] < np.array([[1], [4], [2]])
    health = bit_health(jnp.asarray(bits), jnp.asarray(weights, jnp.float32))
    wanted = bit_health(jnp.asarray(bits[weights]))
    chex.assert_trees_all_close(health, wanted, rtol=1e-5)
    assert health["group_usage"] < bit_health(jnp.asarray(bits))["group_usage"]


def test_shares_that_round_up_leave_entropies_finite():
    """A bit that is always one: in float32 some shares add up to more than 1."""
    weights = jnp.asarray(np.random.default_rng(2).uniform(0.1, 1, (200, 20)), jnp.float32)
    assert (jnp.sum(weights / jnp.sum(weights, axis=1, keepdims=True), axis=1) > 1).any()
    health = jax.jit(jax.vmap(bit_health, (None, 0)))(jnp.ones((20, 2), jnp.uint8), weights)
    chex.assert_tree_all_finite(health)


def test_counts_of_parts_add_up():
    bits = jnp.asarray(np.random.default_rng(3).integers(0, 2, (6, 5, 16)), jnp.uint8)
    bits = bits.at[..., 3].set(1)
    parts = jax.tree.map(
        lambda *x: x[0] / 3 + 2 * x[1] / 3, *map(code_counts, (bits[:2], bits[2:]))
    )
    for name, value in bit_health(bits).items():
        np.testing.assert_allclose(health_of(parts)[name], value, rtol=1e-5, atol=1e-6)
    above = health_of({"bit_mean": jnp.float32([1 + 1e-6]), "codes_seen": jnp.ones((1, 2))})
    assert above["bit_entropy"] == 0  # as of exactly 1


class Variants(chex.TestCase):
    """The same numbers with and without jit and on a device. Oracle: counted by hand."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_half_of_the_codes(self):
        bits = np.array([[0, 1], [0, 0], [0, 1], [0, 0]], np.uint8)
        health = self.variant(bit_health)(bits)
        wanted = {
            "bit_mean": [0, 0.5],
            "bit_entropy": 0.5,
            "bit_entropy_min": 0,
            "group_usage": 0.5,
        }
        chex.assert_trees_all_close(
            health,
            jax.tree.map(
                jnp.float32, {name: np.array(value, np.float32) for name, value in wanted.items()}
            ),
            atol=1e-6,
        )
