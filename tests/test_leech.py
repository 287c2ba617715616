"""Spherical Leech quantization.

Oracles: golden vectors of the published code, what is known of the lattice and the Golay code,
brute force over all codes, float64 numpy.
"""

import functools
import itertools
from importlib.metadata import version

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsq_jax.config import default_config, finalize
from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import batch_sharding, jit_on, make_mesh
from bsq_jax.quantizers import LeechQuantizer, ResidualQuantizer, golay, leech, make_quantizer
from bsq_jax.quantizers.leech import CODES, nearest_vector, numbers_of, vectors

pytestmark = pytest.mark.smoke

QUANTIZER = LeechQuantizer()
# Optimised as users have it (conftest turns it off): much is computed here.
OPTIMISED = {"xla_backend_optimization_level": 3}
if version("jaxlib").startswith("0.10."):
    OPTIMISED["xla_cpu_use_fusion_emitters"] = True
fast_jit = functools.partial(jax.jit, compiler_options=OPTIMISED)
search = fast_jit(nearest_vector)


@pytest.fixture(scope="module")
def lattice():
    """All vectors, in the order of their numbers."""
    return np.asarray(fast_jit(vectors)(jnp.arange(CODES)))


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(*shape, 24)).astype(np.float32)


def unit(v):
    v = np.asarray(v, np.float64)
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def test_golden(golden):
    arrays = golden("l24sq")
    out = jax.jit(QUANTIZER.encode)(arrays["latents"])
    np.testing.assert_allclose(QUANTIZER.project(arrays["latents"]), arrays["unit"], atol=1e-6)
    np.testing.assert_allclose(out.quantized, arrays["quant"], atol=1e-6)
    clear = arrays["margin"] > 1e-5
    assert clear.all()
    entries = np.rint(np.asarray(out.quantized) * np.sqrt(32))
    np.testing.assert_array_equal(entries, arrays["quant_times_sqrt32"])


def test_golay_code():
    """Linear, of the known weights: that is this code, but for the order of the coordinates."""
    words = golay.words()
    weights, counts = np.unique(words.sum(axis=1), return_counts=True)
    assert dict(zip(weights, counts, strict=True)) == {0: 1, 8: 759, 12: 2576, 16: 759, 24: 1}
    numbers = words[:, :12] @ (1 << np.arange(12)[::-1])
    np.testing.assert_array_equal(numbers, np.arange(4096))
    basis = words[1 << np.arange(12)]
    chosen = np.arange(4096)[:, None] >> np.arange(12)[None] & 1
    np.testing.assert_array_equal(chosen @ basis % 2, words)


def test_lattice(lattice):
    assert len(np.unique(lattice, axis=0)) == CODES
    rows = lattice[:: CODES // 100].astype(np.float32)
    products = np.unique(rows @ lattice.T.astype(np.float32))
    np.testing.assert_array_equal(products, [-32, -16, -8, 0, 8, 16, 32])
    np.testing.assert_array_equal(np.sum(lattice.astype(int) ** 2, axis=1), 32)


def documented():
    """The vectors in the order that the module's docstring states, one by one."""
    for first, second in itertools.combinations(range(24), 2):
        for signs in itertools.product((4, -4), repeat=2):
            row = np.zeros(24, np.int8)
            row[[first, second]] = signs
            yield row
    for octad in golay.octads():
        rows = np.zeros((128, 24), np.int8)
        signs = np.array(list(itertools.product((1, -1), repeat=7)))
        rows[:, octad] = 2 * np.concatenate([signs, signs.prod(axis=1)[:, None]], axis=1)
        yield from rows
    for word in golay.words()[:2048].astype(np.int8):
        for ones in (1 - 2 * word, 2 * word - 1):
            yield from ones[None] * (1 - 4 * np.eye(24, dtype=np.int8))


def test_order(lattice):
    np.testing.assert_array_equal(lattice, np.stack(list(documented())))


def test_every_code_is_its_own(lattice):
    np.testing.assert_array_equal(search(lattice.astype(np.float32)), np.arange(CODES))
    bits = np.asarray(CODES - 1) >> np.arange(18)[::-1] & 1
    codes = QUANTIZER.decode(jnp.asarray(np.stack([bits * 0, bits, bits * 0 + 1]), jnp.uint8))
    np.testing.assert_allclose(codes, lattice[[0, -1, -1]] / np.sqrt(32), rtol=1e-6)
    np.testing.assert_array_equal(QUANTIZER.nearest(codes)[1], bits)


@fast_jit
def highest_products(points, codes):
    """The highest of the inner products of points with codes and their negatives."""

    def compare(best, block):
        products = jnp.matmul(block, points.T, precision=jax.lax.Precision.HIGHEST)
        return jnp.maximum(best, jnp.max(jnp.abs(products), axis=0)), None

    blocks = codes.reshape(-1, 216, 24)
    return jax.lax.scan(compare, jnp.zeros(len(points)), blocks)[0]


def hard_points(lattice, count):
    """Directions, a fifth of them each: uniform; nearly as near to two codes, and to four or more;
    axes and sums of a few, with and without noise; heavy tails with exact zeros."""
    rng = np.random.default_rng(5)
    each = count // 5
    codes = lattice[rng.integers(CODES, size=(4, each))].astype(np.float32)
    # Neighbors: 16 is the highest inner product of two codes.
    move = np.sign(np.einsum("nc,nc->n", codes[0], codes[1]))[:, None]
    two = codes[0] + np.where(move == 0, 1, move) * codes[1]
    axes = np.where(rng.random((each, 24)) < rng.random((each, 1)) / 4, rng.choice([-1, 1]), 0)
    axes[np.arange(each), rng.integers(24, size=each)] = rng.choice([-1, 1], each)
    tails = rng.normal(size=(each, 24)) ** 5
    noise = rng.normal(size=(each, 24)) * rng.choice([0, 1e-7, 1e-4], (each, 1))
    parts = [
        rng.normal(size=(each, 24)),
        unit(two) + noise,
        unit(codes.sum(axis=0)) + noise,
        unit(axes) + noise,
        np.where(rng.random(tails.shape) < 0.2, 0, tails) + 1e-3 * axes,
    ]
    return unit(np.concatenate(parts)).astype(np.float32)


def test_search_is_brute_force(lattice):
    """Of 100,000 points: the code found has the highest inner product to 1e-6.

    So it is the same code where the next one's is less by more than that.
    """
    points = hard_points(lattice, 100_000)
    half = lattice[lattice[np.arange(CODES), np.argmax(lattice != 0, axis=1)] > 0]
    assert len(half) == CODES // 2
    codes = half.astype(np.float32) / np.float32(np.sqrt(32))
    blocks = points.reshape(-1, 1000, 24)
    wanted = np.concatenate([highest_products(block, codes) for block in blocks])
    numbers = np.asarray(search(points.reshape(100, 1000, 24))).reshape(-1)
    found = np.einsum("nc,nc->n", points.astype(np.float64), lattice[numbers]) / np.sqrt(32)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_memory_is_bounded():
    """At a million tokens: a few copies of the points, 96 MiB, at most."""
    points = jax.ShapeDtypeStruct((1024, 1024, 24), jnp.float32)
    sizes = jax.jit(nearest_vector).lower(points).compile().memory_analysis()
    assert sizes.temp_size_in_bytes < 3 * points.size * 4


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)])
def test_sharded_is_single(eight_devices, monkeypatch, shape):
    """Each device searches for the tokens of its own examples, in blocks, and none is exchanged."""
    monkeypatch.setattr(leech, "CPU_BLOCK", 4)
    mesh = make_mesh(*shape)
    latents = gaussian(8, 3, 3)
    bits = QUANTIZER.encode(latents).bits
    on_devices = jax.device_put(latents, batch_sharding(mesh))
    program = jit_on(mesh, lambda v: QUANTIZER.encode(v).bits).lower(on_devices).compile()
    sharded = program(on_devices)
    np.testing.assert_array_equal(sharded, bits)
    assert sharded.sharding.is_equivalent_to(batch_sharding(mesh), sharded.ndim)
    for exchange in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert exchange not in program.as_text()


def test_blocks_change_nothing(monkeypatch):
    points = gaussian(7, 5)
    whole = nearest_vector(points)
    monkeypatch.setattr(leech, "CPU_BLOCK", 8)
    np.testing.assert_array_equal(nearest_vector(points), whole)
    assert nearest_vector(points[:0]).shape == (0, 5)


def test_ties():
    """The first of codes that are equally near."""
    octad, signs = golay.octads()[9], 1 - 2.0 * golay.words()[77]
    ties, wanted = np.zeros((4, 24), np.float32), np.zeros((4, 24))
    wanted[0, :2] = 4, 4  # the origin: the first of all
    ties[1, 3:6] = 1, -1, 1  # three pairs
    wanted[1, 3:5] = 4, -4
    ties[2, octad] = 1, 1, 1, 1, 1, 1, 1, -1  # odd: eight entries may change their sign
    wanted[2, octad] = -2, 2, 2, 2, 2, 2, 2, -2
    ties[3] = signs  # 24 places
    wanted[3] = np.where(np.arange(24) == 0, -3, 1) * signs
    np.testing.assert_array_equal(vectors(nearest_vector(ties)), wanted)
    ties[:, 17] = [np.nan, np.inf, -np.inf, np.nan]  # count as 0
    again = np.where(np.isfinite(ties), ties, 0)
    np.testing.assert_array_equal(nearest_vector(ties), nearest_vector(again))


class Variants(chex.TestCase):
    """The same with and without jit and on a device."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_straight_through_gradient(self):
        """That of a function of the points is that of the same function of the codes."""
        v, w = gaussian(6), gaussian(6, seed=1)
        probe = lambda v: jnp.sum(QUANTIZER.encode(v).quantized * w)  # noqa: E731
        direction, length = unit(v), np.linalg.norm(v, axis=-1, keepdims=True)
        along = np.sum(direction * w, axis=-1, keepdims=True)
        wanted = (w - direction * along) / length
        np.testing.assert_allclose(self.variant(jax.grad(probe))(v), wanted, atol=1e-6)

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_unusual_latents(self):
        latents = gaussian(5)
        latents[1] = 0
        latents[2, 7] = np.nan
        latents[3] *= 1e-30
        latents = latents.astype(jnp.bfloat16)
        out = self.variant(QUANTIZER.encode)(latents)
        chex.assert_type([out.quantized, out.bits, out.loss], [jnp.float32, jnp.uint8, jnp.float32])
        assert np.asarray(QUANTIZER.names_code(out.bits)).all()
        assert np.isnan(out.quantized[2]).any()
        assert np.isfinite(np.delete(out.quantized, 2, axis=0)).all()
        assert not np.asarray(out.bits[1]).any()
        again = QUANTIZER.encode(1e30 * latents.astype(jnp.float32)[3])
        np.testing.assert_array_equal(out.bits[3], again.bits)


def test_step():
    """Of two stages: what the docstring says, from other points than those it is measured with."""
    points = unit(gaussian(4096, seed=3)).astype(np.float32)
    two = ResidualQuantizer(QUANTIZER, 2)
    bits = jax.jit(two.nearest)(points)
    left = points - np.asarray(two.decode(bits[:, :18]))
    code = np.asarray(QUANTIZER.decode(bits[:, 18:]))
    np.testing.assert_allclose(np.mean(np.sum(left**2, axis=-1)), 0.445, atol=0.004)
    np.testing.assert_allclose(np.mean(np.sum(left * code, axis=-1)), QUANTIZER.step, atol=0.004)
    left = points - np.asarray(two.decode(bits))
    np.testing.assert_allclose(np.mean(np.sum(left**2, axis=-1)), 0.175, atol=0.002)


def test_foreign_order(lattice):
    order = np.random.default_rng(0).permutation(CODES)
    codebook = (lattice / np.sqrt(32)).astype(np.float32)[order]
    rounded = np.asarray(codebook.astype(jnp.bfloat16), np.float32)
    np.testing.assert_array_equal(numbers_of(rounded), order)
    with pytest.raises(UserError, match=r"has shape \(5, 24\): that of the Leech quantizer"):
        numbers_of(codebook[:5])
    changed = codebook.copy()
    changed[7] = changed[9]
    with pytest.raises(UserError, match="rows 7 and 9 of the codebook are the same code"):
        numbers_of(changed)
    for row in (np.nan, 1.05 * codebook[7], np.zeros(24), np.eye(24)[3]):
        changed[7] = row
        with pytest.raises(UserError, match="row 7 of the codebook is no shortest vector"):
            numbers_of(changed)


def test_of_a_config():
    config = default_config()
    config.quantizer.name, config.model.bits = "leech", 0
    quantizer = make_quantizer(finalize(config))
    assert isinstance(quantizer, LeechQuantizer)
    assert (quantizer.bits, quantizer.channels, quantizer.codes) == (18, 24, CODES)
    assert not quantizer.names_code(jnp.ones(18, jnp.uint8))
