"""Health of the bits. Oracle: small batches whose statistics are counted by hand, and numpy."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsq_jax.core.sharding import batch_sharding, jit_on, make_mesh
from bsq_jax.quantizers.health import WATCHED_CODES, code_counts, health_of
from bsq_jax.quantizers.layout import TokenLayout


def every_pattern(length):
    return TokenLayout(1, length, 2**length)


def health_with(layout, bits, weights=None):
    most = int(np.prod(bits.shape[:-1]))
    tokens = most if weights is None else jnp.sum(weights > 0) * (most // weights.size)
    return health_of(code_counts(bits, layout, weights), layout, tokens, most)


def bit_health(bits, weights=None):
    """Of tokens all of whose patterns name codes."""
    return health_with(every_pattern(bits.shape[-1]), bits, weights)


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


def in_parts(layout, bits):
    counts = [code_counts(part, layout) for part in (bits[:2], bits[2:])]
    return jax.tree.map(lambda *x: x[0] / 3 + 2 * x[1] / 3, *counts)


def test_counts_of_parts_add_up():
    bits = jnp.asarray(np.random.default_rng(3).integers(0, 2, (6, 5, 16)), jnp.uint8)
    bits, layout = bits.at[..., 3].set(1), every_pattern(16)
    found = health_of(in_parts(layout, bits), layout, 30, 30)
    chex.assert_trees_all_close(found, bit_health(bits), rtol=1e-5, atol=1e-6)
    counts = {
        "bit_mean": jnp.float32([1 + 1e-6]),
        **{name: jnp.ones((1, 2)) / 2 for name in ("codes_seen", "code_shares")},
    }
    above = health_of(counts, every_pattern(1), 1, 1)
    assert above["bit_entropy"] == 0  # as of exactly 1


STAGES = TokenLayout(2, 5, 20)


def tokens_of(layout, shape, seed=0):
    """Tokens of which most have the first codes, as numbers ``[..., stage]`` and as bits."""
    drawn = np.random.default_rng(seed).exponential(layout.codes / 6, (*shape, layout.stages))
    numbers = np.minimum(drawn.astype(int), layout.codes - 1)
    bits = numbers[..., None] >> np.arange(layout.bits)[::-1] & 1
    return numbers, bits.reshape(*shape, layout.length).astype(np.uint8)


def by_hand(layout, numbers):
    """Mean usage and perplexity of the stages in float64, and all their dead codes."""
    found = []
    for column in numbers.reshape(-1, layout.stages).T:
        shares = np.bincount(column, minlength=layout.codes) / len(column)
        there = shares[shares > 0]
        usage = len(there) / min(layout.codes, len(column))
        found.append([usage, np.prod(there**-there), layout.codes - len(there)])
    usage, perplexity, dead = np.array(found).T
    return {"usage": usage.mean(), "perplexity": perplexity.mean(), "codes_dead": dead.sum()}


def assert_like(health, wanted):
    for name, value in wanted.items():
        np.testing.assert_allclose(health[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("layout", [STAGES, TokenLayout(1, 9, 300), TokenLayout(1, 6, 64)])
def test_usage_perplexity_and_dead_codes_against_numpy(layout):
    numbers, bits = tokens_of(layout, (4, 100))
    health, wanted = health_with(layout, jnp.asarray(bits)), by_hand(layout, numbers)
    assert_like(health, wanted)
    assert 1 < wanted["codes_dead"] < layout.stages * layout.codes - 1
    assert 1 < wanted["perplexity"] < wanted["usage"] * layout.codes


def test_codes_of_padding_do_not_count():
    numbers, bits = tokens_of(STAGES, (3, 4, 5))
    weights = np.arange(4)[None, :] < np.array([[1], [4], [2]])
    health = health_with(STAGES, jnp.asarray(bits), jnp.asarray(weights, jnp.float32))
    assert_like(health, by_hand(STAGES, numbers[weights]))


def test_codes_of_parts_add_up():
    numbers, bits = tokens_of(STAGES, (6, 5))
    found = health_of(in_parts(STAGES, jnp.asarray(bits)), STAGES, 30, 30)
    assert_like(found, by_hand(STAGES, numbers))


@pytest.mark.usefixtures("eight_devices")
def test_codes_on_many_devices():
    numbers, bits = tokens_of(STAGES, (8, 7))
    mesh = make_mesh(4, 2, 1)
    run = jit_on(mesh, functools.partial(health_with, STAGES), in_shardings=(batch_sharding(mesh),))
    assert_like(run(jnp.asarray(bits)), by_hand(STAGES, numbers))


def test_few_tokens_and_many_codes():
    """Of more codes than tokens most must be unused; of very many none is counted one by one."""
    layout = TokenLayout(1, 16, WATCHED_CODES)
    numbers, bits = tokens_of(layout, (9,))
    health, wanted = health_with(layout, jnp.asarray(bits)), by_hand(layout, numbers)
    assert "codes_dead" not in health
    assert_like(health, {name: wanted[name] for name in ("usage", "perplexity")})
    leech = TokenLayout(1, 18, 196_560)
    assert not {"usage", "perplexity"} & set(health_with(leech, jnp.zeros((9, 18), jnp.uint8)))


def test_groups_are_measured_by_the_codes_that_they_can_have():
    """All codes are used; the first eight of nine bits have 150 values."""
    layout = TokenLayout(1, 9, 300)
    bits = np.arange(300)[:, None] >> np.arange(9)[::-1] & 1
    health = health_with(layout, jnp.asarray(bits, jnp.uint8))
    assert health["group_usage"] == health["usage"] == 1
    assert health["codes_dead"] == 0
    np.testing.assert_allclose(health["perplexity"], 300, rtol=1e-5)


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
            "usage": 0.5,
            "perplexity": 2,
            "codes_dead": 2,
        }
        chex.assert_trees_all_close(
            health,
            jax.tree.map(
                jnp.float32, {name: np.array(value, np.float32) for name, value in wanted.items()}
            ),
            atol=1e-6,
        )
