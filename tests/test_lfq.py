"""Lookup-free quantization. Oracles: all codes written out in float64 numpy, closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from bsq_jax.config import default_config, finalize
from bsq_jax.quantizers import LookupFreeQuantizer, make_quantizer

pytestmark = pytest.mark.smoke

LENGTH = 5


def lfq(inv_temperature=1.0, token_weight=1.0, codebook_weight=1.0, commitment_weight=0.25):
    return LookupFreeQuantizer(
        LENGTH, LENGTH, inv_temperature, token_weight, codebook_weight, commitment_weight
    )


def latents(*shape):
    return np.random.default_rng(0).normal(size=(*shape, LENGTH)).astype(np.float32)


def entropy(p):
    return -np.sum(p * np.log(p), axis=-1)


def test_the_terms_are_those_of_a_softmax_over_the_distances_to_all_codes():
    v, t = latents(30), 0.7
    codes = 1.0 - 2 * (np.arange(2**LENGTH)[:, None] >> np.arange(LENGTH) & 1)
    squares = np.sum((v[:, None].astype(np.float64) - codes) ** 2, axis=-1)
    q = softmax(-t * squares, axis=-1)
    out = jax.jit(lfq(t, 0.5, 2.0).__call__)(v)
    terms = {
        "token_entropy": entropy(q).mean(),
        "codebook_entropy": entropy(q.mean(axis=0)),
        "commitment": squares.min(axis=-1).mean(),
    }
    for name, wanted in terms.items():
        np.testing.assert_allclose(out.losses[name], wanted, rtol=1e-5, err_msg=name)
    entropies = 0.5 * terms["token_entropy"] - 2.0 * terms["codebook_entropy"]
    np.testing.assert_allclose(out.loss, entropies / t + 0.25 * terms["commitment"], rtol=1e-5)


def test_codes_are_signs_and_their_gradient_is_that_of_the_latents_everywhere():
    v = latents(6)
    v[0] = 0  # the boundary; zero counts as -1
    v[1] *= 1e20
    probe = latents(6)[::-1]

    @jax.jit
    def both(v):
        def total(v):
            quantized = lfq()(v).quantized
            return jnp.sum(quantized * probe), quantized

        return jax.grad(total, has_aux=True)(v)

    gradient, quantized = both(v)
    np.testing.assert_array_equal(quantized, np.where(v > 0, 1, -1))
    np.testing.assert_array_equal(gradient, probe)


def test_first_bits_decode_alone():
    quantizer, v = lfq(), latents(2, 3)
    out = jax.jit(lambda v, kept: quantizer.encode(v, kept=kept))(v, np.array([2, 4], np.int32))
    for row, count in enumerate((2, 4)):
        code = quantizer.decode(out.bits[row][..., :count])
        np.testing.assert_array_equal(out.quantized[row], code)
        assert not np.asarray(code)[:, count:].any()
    assert quantizer.prefixes == (1, 2, 3, 4, 5)


def test_the_config_gives_the_published_commitment():
    config = default_config()
    config.model.bits = LENGTH
    config.quantizer.update(name="lfq", group_size=LENGTH)
    assert make_quantizer(finalize(config)) == lfq()
