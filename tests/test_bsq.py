"""Binary spherical quantization.

Oracles: golden vectors of the published code, closed forms of the paper, float64 numpy.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import gammaln
from shapes import bsq_quantizer

from bsq_jax.quantizers.bsq import to_sphere
from bsq_jax.quantizers.entropy import group_distributions, soft_logits
from bsq_jax.quantizers.signs import to_corners

# g: bits a group, kind: how the entropies were computed, t: inverse temperature, b: commitment.
CASES = [
    (g, kind, t, b) for g in (9, 1) for kind in ("group", "analytical") for t in (1, 10)
    for b in (0, 0.25)
]  # fmt: skip


def shift(probabilities) -> float:
    """What -p log(p) exceeds -p log(p + 1e-8) by, summed."""
    p = np.asarray(probabilities, np.float64)
    return float(np.sum(p * (np.log(p + 1e-8) - np.log(np.maximum(p, 1e-300)))))


# Optimised as users have it (conftest turns it off): the comparison is to the last bits.
@functools.partial(
    jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 3}
)
def everything(quantizer, z, w):
    """All that the golden cases list, in one program."""
    logits = soft_logits(z, quantizer.inv_temperature, quantizer.slope)
    tokens = logits.reshape(-1, 1, z.shape[-1])
    return {
        "out": quantizer.encode_points(z),
        "averages": group_distributions(logits, quantizer.group_size),
        "each": jax.vmap(lambda row: group_distributions(row, quantizer.group_size))(tokens),
        "gradient": jax.grad(lambda u: quantizer.encode_points(u).loss)(z),
        "probe": jax.grad(lambda u: jnp.sum(quantizer.encode_points(u).quantized * w))(z),
    }


@pytest.mark.smoke
@pytest.mark.parametrize(("g", "kind", "t", "b"), CASES)
def test_golden_values_and_gradients(golden, g, kind, t, b):
    arrays = golden("bsq")
    # "analytical" takes the codebook entropy bit by bit whatever the group size.
    size = 1 if kind == "analytical" else g
    quantizer = bsq_quantizer(size, inv_temperature=t, commitment_weight=b)
    ours = everything(quantizer, arrays["L18/z"], arrays["L18/w"])
    out = ours["out"]
    case = f"L18_g{g}_{kind}_t{t}_b{b}"
    np.testing.assert_allclose(out.quantized, arrays[f"{case}/zq"], atol=1e-6)
    np.testing.assert_allclose(ours["gradient"], arrays[f"{case}/dloss_dz"], atol=1e-5)
    np.testing.assert_allclose(ours["probe"], arrays[f"{case}/dzqw_dz"], atol=1e-6)
    averages, wanted = ours["averages"], arrays[f"{case}/avg_prob"]
    if size == 1:  # ours: the probability of a one; theirs: both, in an order of their own
        averages, wanted = [np.sort(averages[0], axis=-1)], np.sort(wanted, axis=-1)
    np.testing.assert_allclose(averages[0], wanted, atol=1e-6)

    # The golden entropies use log(p + 1e-8), which moves them by about 1e-5. The move follows from
    # the distributions, so it is taken out exactly; what is left must agree to float32 rounding
    # (the entropies are about 12, and an ulp there is 1e-6).
    codebook_shift = sum(shift(p) for p in ours["averages"])
    token_shift = sum(shift(p) for p in ours["each"]) / arrays["L18/z"][..., 0].size
    token = arrays[f"{case}/per_sample_entropy"] + token_shift
    codebook = arrays[f"{case}/codebook_entropy"] + codebook_shift
    np.testing.assert_allclose(out.losses["token_entropy"], token, rtol=4e-7)
    np.testing.assert_allclose(out.losses["codebook_entropy"], codebook, rtol=4e-7)
    loss = arrays[f"{case}/loss"] + (token_shift - codebook_shift) / t
    np.testing.assert_allclose(out.loss, loss, atol=1e-5)


def test_golden_inputs_with_exact_zeros(golden):
    arrays = golden("bsq")
    z = arrays["zero/z"]
    assert (z == 0).any()
    out = bsq_quantizer().encode_points(jnp.asarray(z))
    np.testing.assert_allclose(out.quantized, arrays["extra_zero/zq"], atol=1e-6)
    np.testing.assert_allclose(np.asarray(out.quantized)[z == 0], -1 / np.sqrt(18), rtol=1e-6)
    assert not np.asarray(out.bits)[z == 0].any()


@jax.jit
def unit_and_corner(v):
    unit = to_sphere(v)
    return unit, bsq_quantizer(length=v.shape[-1]).encode_points(unit).quantized


def squared_errors(v: np.ndarray) -> np.ndarray:
    """|u - q|^2 per token, with u and q as the package computes them."""
    unit, quantized = unit_and_corner(jnp.asarray(v, jnp.float32))
    return np.sum(np.square(np.asarray(unit, np.float64) - np.asarray(quantized)), axis=-1)


def ascend(unit):
    """Points on the sphere moved to where the commitment term, the squared error, is larger."""
    quantizer = bsq_quantizer(length=unit.shape[-1])
    error = jax.grad(lambda v: quantizer(v).losses["commitment"])

    def climb(_, v):
        gradient = error(v)
        step = gradient / jnp.max(jnp.linalg.norm(gradient, axis=-1))
        return to_sphere(v + 0.01 * step)

    return jax.lax.fori_loop(0, 1500, climb, unit)


@pytest.mark.parametrize("length", [2, 10, 18, 36])
def test_error_bound(length):
    """|u - q|^2 = 2 - 2 |u|_1 / sqrt(L), at most 2 - 2 / sqrt(L), reached on the axes."""
    rng = np.random.default_rng(length)
    worst = 2 - 2 / np.sqrt(length)
    axes = np.concatenate([np.eye(length), -np.eye(length)])
    np.testing.assert_allclose(squared_errors(3 * axes), worst, rtol=1e-5)

    # Ascent on the error from random starts: it must approach the bound and never pass it.
    start = to_sphere(jnp.asarray(rng.normal(size=(32, length)), jnp.float32))
    v = jax.jit(ascend)(start)
    adversarial = squared_errors(np.asarray(v))
    assert adversarial.max() > 0.97 * worst

    gaussian = rng.normal(size=(2000, length))
    inputs = [
        np.asarray(v),
        gaussian,
        gaussian * 10.0 ** rng.uniform(-6, 6, (2000, 1)),  # lengths over twelve decades
        gaussian**5,  # heavy tails: near the axes
        axes + 1e-4 * rng.normal(size=axes.shape),
        np.where(rng.random((2000, length)) < 0.1, gaussian, 0.0) + axes[:1],  # mostly zeros
        np.sign(gaussian),  # the corners themselves
    ]
    for vectors in inputs:
        unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
        formula = 2 - 2 * np.abs(unit).sum(axis=-1) / np.sqrt(length)
        errors = squared_errors(vectors)
        np.testing.assert_allclose(errors, formula, atol=2e-6)
        assert errors.max() <= worst + 2e-6
        assert np.sqrt(errors.max()) < np.sqrt(2)
    assert squared_errors(np.sign(gaussian)).max() < 1e-10


@pytest.mark.parametrize("length", [10, 18, 36])
def test_expected_error_of_uniform_inputs(length):
    drawn = np.random.default_rng(0).normal(size=(40_000, length))
    errors = squared_errors(drawn)
    mean_l1 = length * np.exp(gammaln(length / 2) - gammaln((length + 1) / 2)) / np.sqrt(np.pi)
    closed = 2 - 2 * mean_l1 / np.sqrt(length)
    assert abs(errors.mean() - closed) < 5 * errors.std() / np.sqrt(len(errors))
    assert abs(closed - (2 - 2 * np.sqrt(2 / np.pi))) < 0.5 / length  # tends to 0.404


def test_straight_through_gradient_passes_the_jacobian_of_the_normalisation():
    rng = np.random.default_rng(0)
    v, w = rng.normal(size=(2, 5, 18)) * 3, rng.normal(size=(2, 5, 18))
    quantizer = bsq_quantizer()
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(quantizer(x).quantized * w.astype(np.float32))))(
        v.astype(np.float32)
    )
    norm = np.linalg.norm(v, axis=-1, keepdims=True)
    unit = v / norm
    wanted = (w - unit * np.sum(unit * w, axis=-1, keepdims=True)) / norm / np.sqrt(18)
    np.testing.assert_allclose(gradient, wanted, atol=1e-6)


def test_the_origin_has_a_token_and_finite_gradients():
    v = jnp.zeros((3, 18)).at[1].set(1.0)
    quantizer = bsq_quantizer(commitment_weight=0.25)

    def loss(x):
        out = quantizer(x)
        return out.loss + jnp.sum(out.quantized * jnp.arange(18.0)[None]), out

    gradient, out = jax.jit(jax.grad(loss, has_aux=True))(v)
    chex.assert_tree_all_finite((gradient, out))
    assert np.asarray(gradient)[1].any()
    assert not np.asarray(gradient)[0].any()
    assert not np.asarray(out.bits)[0].any()
    np.testing.assert_allclose(out.quantized[0], -1 / np.sqrt(18), rtol=1e-6)


def test_low_precision_latents_are_computed_in_float32():
    v = jnp.asarray(np.random.default_rng(0).normal(size=(4, 7, 36)), jnp.bfloat16)
    quantizer = bsq_quantizer(length=36, group_size=9, commitment_weight=0.25)
    low, full = jax.jit(lambda x: (quantizer(x), quantizer(x.astype(jnp.float32))))(v)
    assert low.quantized.dtype == jnp.float32
    assert low.bits.dtype == jnp.uint8
    chex.assert_trees_all_equal(low, full)
    assert {leaf.dtype for leaf in low.losses.values()} == {jnp.dtype("float32")}
    gradient = jax.eval_shape(jax.grad(lambda x: quantizer(x).loss), v)
    assert gradient.dtype == jnp.bfloat16


def test_weights_of_the_terms():
    z = to_sphere(jnp.asarray(np.random.default_rng(0).normal(size=(9, 18)), jnp.float32))
    out = bsq_quantizer(1, 5.0, 0.7, 1.3, 0.2).encode_points(z)
    terms = {name: float(value) for name, value in out.losses.items()}
    wanted = (0.7 * terms["token_entropy"] - 1.3 * terms["codebook_entropy"]) / 5.0
    np.testing.assert_allclose(out.loss, wanted + 0.2 * terms["commitment"], rtol=1e-5)


@pytest.mark.parametrize("group_size", [1, 9])
def test_tokens_that_are_left_out_might_as_well_not_be_there(group_size):
    rng = np.random.default_rng(5)
    v = rng.normal(size=(2, 3, 4, 18)).astype(np.float32)
    weights = np.array([[1, 1, 1], [1, 0, 0]], np.float32)
    quantizer = bsq_quantizer(group_size, 2.0, 0.7, 1.3, 0.25)
    out = quantizer(jnp.asarray(v), jnp.asarray(weights))
    kept = quantizer(jnp.asarray(v[weights > 0]))
    for name, value in kept.losses.items():
        np.testing.assert_allclose(out.losses[name], value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(out.loss, kept.loss, rtol=1e-4)
    np.testing.assert_array_equal(out.bits, v > 0)  # tokens are made for all
    np.testing.assert_array_equal(np.asarray(out.quantized)[weights > 0], kept.quantized)


@pytest.mark.parametrize("length", [1e-30, 1e-20, 1e18, 1e30])
@pytest.mark.parametrize("group_size", [1, 9])
def test_the_length_of_a_latent_does_not_matter(length, group_size):
    quantizer = bsq_quantizer(group_size=group_size)
    v = jnp.asarray(np.random.default_rng(3).normal(size=(32, 18)), jnp.float32)

    def loss(x):
        return quantizer(x).loss

    np.testing.assert_allclose(loss(v * length), loss(v), atol=1e-5)
    # The gradient falls as the length grows: d loss / d v scales with 1 / length.
    np.testing.assert_allclose(jax.grad(loss)(v * length) * length, jax.grad(loss)(v), atol=1e-6)


def test_nan_is_not_taken_for_the_origin():
    out = bsq_quantizer()(jnp.full((2, 18), jnp.nan))
    assert np.isnan(out.loss)
    assert np.isnan(out.quantized).all()


@pytest.mark.parametrize("group_size", [1, 9])
@pytest.mark.parametrize("inv_temperature", [1.0, 100.0, 300.0])
def test_gradients_stay_finite_with_a_dead_bit(group_size, inv_temperature):
    quantizer = bsq_quantizer(group_size=group_size, inv_temperature=inv_temperature)
    v = np.random.default_rng(4).normal(size=(32, 18)).astype(np.float32)
    v[:, 3] = -3.0
    chex.assert_tree_all_finite(jax.grad(lambda x: quantizer(x).loss)(v))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("group_size", [1, 9])
def test_memory_grows_linearly_with_the_bits(group_size, weighted):
    def peak(bits):
        quantizer = bsq_quantizer(length=bits, group_size=group_size)
        latents = jax.ShapeDtypeStruct((2048, bits), jnp.float32)
        shapes = (latents, jax.ShapeDtypeStruct((2048,), jnp.float32))[: 1 + weighted]
        gradient = jax.jit(jax.grad(lambda *arguments: quantizer(*arguments).loss))
        compiled = gradient.lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert peak(144) <= 4.5 * peak(36)


class Variants(chex.TestCase):
    """The same numbers with and without jit and on a device. Oracle: float64 numpy."""

    def latents(self):
        return np.random.default_rng(6).normal(size=(2, 3, 5, 18)).astype(np.float32)

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_quantizer(self):
        v = self.latents()
        out = self.variant(bsq_quantizer(group_size=9, commitment_weight=0.25).__call__)(v)
        chex.assert_shape([out.quantized, out.bits], v.shape)
        chex.assert_shape([out.loss, *out.losses.values()], ())
        chex.assert_type([out.quantized, out.bits, out.loss], [jnp.float32, jnp.uint8, jnp.float32])
        chex.assert_tree_all_finite(out)
        np.testing.assert_array_equal(out.bits, v > 0)
        np.testing.assert_allclose(out.quantized, np.sign(v) / np.sqrt(18), rtol=1e-6)
        unit = v / np.linalg.norm(v.astype(np.float64), axis=-1, keepdims=True)
        error = np.sum((unit - np.sign(v) / np.sqrt(18)) ** 2, axis=-1).mean()
        np.testing.assert_allclose(out.losses["commitment"], error, rtol=1e-5)

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_codes_are_what_was_quantized(self):
        quantizer = bsq_quantizer()
        out = quantizer(self.latents())
        codes = self.variant(lambda bits: quantizer.decode(bits))(out.bits)
        chex.assert_trees_all_close(codes, out.quantized, rtol=1e-7)
        first = self.variant(lambda bits: quantizer.decode(bits))(out.bits[..., :4])
        chex.assert_trees_all_equal(first[..., :4], codes[..., :4])
        assert not np.asarray(first)[..., 4:].any()

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_corners(self):
        corners = self.variant(to_corners)(np.array([[0, 1, 1, 0]], np.uint8))
        assert corners.tolist() == [[-0.5, 0.5, 0.5, -0.5]]
        for length in (10, 18, 36):
            bits = np.random.default_rng(length).integers(0, 2, (7, length), np.uint8)
            norms = np.linalg.norm(self.variant(to_corners)(bits), axis=-1)
            np.testing.assert_allclose(norms, 1, rtol=1e-6)


def test_latents_that_are_no_floats_are_refused_by_name():
    for wrong in (np.zeros((2, 18), np.int32), np.float32(0)):
        with pytest.raises(ValueError, match=r"^latents is .*: floats of shape \[\.\.\., 18\]"):
            bsq_quantizer()(wrong)
