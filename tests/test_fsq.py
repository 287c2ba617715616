"""Finite scalar quantization, and numbers of mixed radix.

Oracles: Python's integers, float64 numpy, closed forms.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsq_jax.config import default_config, finalize
from bsq_jax.core.errors import UserError
from bsq_jax.quantizers import FiniteScalarQuantizer, ResidualQuantizer, make_quantizer, radix

pytestmark = pytest.mark.smoke


def fsq_of(**settings):
    config = default_config()
    config.model.bits = 0
    config.quantizer.update(name="fsq", **settings)
    return make_quantizer(finalize(config))


def number(bits):
    return int("".join(map(str, np.asarray(bits))), 2)


# 144 bits, radices of all sizes that do not fit into one limb, and common ones.
RADICES = [(2, 3) * 55 + (3,), (65536, 65535, 7) * 4, (8, 8, 8, 6, 5), (2,), (1000, 999)]


@pytest.mark.parametrize("radices", RADICES, ids=len)
def test_digits_and_bits_are_the_same_number(radices):
    rng = np.random.default_rng(0)
    digits = np.stack([rng.integers(0, n, 20) for n in radices], axis=-1)
    digits[0], digits[1] = 0, np.array(radices) - 1
    bits, back = jax.jit(lambda d: (b := radix.to_bits(d, radices), radix.to_digits(b, radices)))(
        digits.reshape(4, 5, -1)
    )
    assert bits.shape[-1] == (math.prod(radices) - 1).bit_length()
    for row, found in zip(digits, np.asarray(bits).reshape(20, -1), strict=True):
        value = 0
        for digit, n in zip(row, radices, strict=True):
            value = value * n + int(digit)
        assert number(found) == value
    np.testing.assert_array_equal(np.asarray(back).reshape(digits.shape), digits)


def test_levels_that_are_powers_of_two_have_bits_of_their_own():
    digits = np.array([[5, 1, 2, 0], [7, 0, 3, 1]])
    bits = radix.to_bits(jnp.asarray(digits), (8, 2, 4, 2))
    np.testing.assert_array_equal(bits, [[1, 0, 1, 1, 1, 0, 0], [1, 1, 1, 0, 1, 1, 1]])


def with_gradient(quantizer):
    """A function of latents: what they become, and the gradient of the codes' sum."""

    def total(z):
        out = quantizer(z)
        return jnp.sum(out.quantized), out

    def both(z):
        gradient, out = jax.grad(total, has_aux=True)(z)
        return out, gradient

    return jax.jit(both)


def published(z, levels):
    """Codes before and after rounding, in float64 (arXiv 2309.15505, with the inverse tanh)."""
    levels = np.array(levels)
    half = (levels - 1) * (1 + 1e-3) / 2
    offset = np.where(levels % 2 == 0, 0.5, 0.0)
    bounded = np.tanh(z.astype(np.float64) + np.arctanh(offset / half)) * half - offset
    slope = (half**2 - (bounded + offset) ** 2) / half
    return bounded / (levels // 2), np.rint(bounded) / (levels // 2), slope / (levels // 2)


def test_levels_and_gradient_are_the_published_ones():
    levels = (8, 5, 7, 6, 3)
    z = 2 * np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    z[0], z[1], z[2] = 0, 30, -30  # the outer levels
    quantizer = FiniteScalarQuantizer(levels)

    out, gradient = with_gradient(quantizer)(z)
    bounded, codes, slope = published(z, levels)
    np.testing.assert_allclose(quantizer.project(z), bounded, atol=1e-6)
    np.testing.assert_allclose(out.quantized, codes, atol=1e-7)
    np.testing.assert_allclose(gradient, slope, atol=2e-6)
    assert not np.asarray(out.quantized)[0].any()
    assert out.losses == {}
    assert float(out.loss) == 0.0
    for column, n in enumerate(levels):
        found = np.unique(np.asarray(out.quantized)[:, column])
        assert found.min() == -(n // 2) / (n // 2)
        assert found.max() == ((n - 1) // 2) / (n // 2)


def test_the_gradient_at_a_boundary_is_that_beside_it():
    quantizer = FiniteScalarQuantizer((8, 5))
    half = np.array([7, 4]) * 1.001 / 2
    offset = np.array([0.5, 0.0])
    edge = np.arctanh((0.5 + offset) / half) - np.arctanh(offset / half)  # 0 and 1 are as near
    z = (edge + np.array([[-1e-3], [0], [1e-3]])).astype(np.float32)
    out, gradient = with_gradient(quantizer)(z)
    np.testing.assert_allclose(out.quantized[0], 0)
    np.testing.assert_allclose(out.quantized[2], [1 / 4, 1 / 2])
    np.testing.assert_allclose(gradient, published(z, (8, 5))[2], rtol=1e-4)


def test_beyond_the_outer_levels_are_the_outer_levels():
    # As the tanh of many levels reaches, and what wrong bits leave for the next stage.
    z = np.array([[30, 30], [-30, -30]], np.float32)
    many = FiniteScalarQuantizer((4096, 5))
    np.testing.assert_allclose(many(z).quantized, [[2047 / 2048, 1], [-1, -1]])
    few = FiniteScalarQuantizer((8, 5), centered=True)
    np.testing.assert_allclose(few.encode_points(z).quantized, [[3.5 / 4, 1], [-3.5 / 4, -1]])


def test_two_levels_are_signs_with_a_gradient():
    quantizer = FiniteScalarQuantizer((2,) * 3)
    z = np.array([[-2, -1e-3, 1e-3], [0.5, 2, -1]], np.float32)
    out, gradient = with_gradient(quantizer)(z)
    np.testing.assert_array_equal(out.quantized, np.where(z > 0, 0.5, -0.5))
    np.testing.assert_allclose(gradient, 0.5005 / np.cosh(z) ** 2, rtol=1e-4)


@pytest.mark.parametrize("n", [2, 4, 5, 8])
def test_stages_are_a_uniform_quantizer(n):
    """R stages have n^R levels of equal width: a mean squared error of width^2 / 12."""
    stages, count = 2, 20_000
    quantizer = fsq_of(levels=(n, n), stages=stages)
    assert isinstance(quantizer, ResidualQuantizer)
    half = n / (n // 2) / 2  # all cells of the first stage
    points = np.random.default_rng(0).uniform(-half, half, (count, 2)).astype(np.float32)
    codes = np.asarray(jax.jit(quantizer.encode_points)(points).quantized, np.float64)
    width = 2 * half / n**stages
    place = (points + half) / width
    wanted = (np.floor(place) + 0.5) * width - half
    clear = np.abs(place - np.rint(place)) > 1e-3  # float32 may round either way
    np.testing.assert_allclose(codes[clear], wanted[clear], atol=1e-5)
    error = np.mean((codes - points) ** 2)
    np.testing.assert_allclose(error, width**2 / 12, rtol=0.03)


def test_one_stage_has_the_published_levels_and_several_symmetric_ones():
    assert fsq_of(levels=(8, 6, 5)) == FiniteScalarQuantizer((8, 6, 5))
    stage = fsq_of(levels=(8, 6, 5), stages=2).stage
    assert stage == FiniteScalarQuantizer((8, 6, 5), centered=True, whole_cells=True)
    before = fsq_of(levels=(8, 6, 5), stages=2, whole_cells=False).stage
    assert before == FiniteScalarQuantizer((8, 6, 5), centered=True)
    lowest = stage.decode(np.zeros(8, np.uint8))
    np.testing.assert_allclose(lowest, [-3.5 / 4, -2.5 / 3, -1])


@pytest.mark.parametrize("levels", [(1, 8), (8, 65537)])
def test_levels_that_cannot_be_are_one_line(levels):
    with pytest.raises(UserError, match=r"quantizer\.levels.*from 2 to 65536 each") as caught:
        fsq_of(levels=levels)
    assert "\n" not in str(caught.value)
