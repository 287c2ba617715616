"""Tokens that can do with their first bits. Oracles: corners written by hand, counted draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from bsq_jax.api import Tokenizer
from bsq_jax.config import finalize
from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import make_mesh
from bsq_jax.models.tokenizer import TokenizerShape
from bsq_jax.quantizers.bits import to_corners
from bsq_jax.tasks.tokenizer import draw_kept, keep_bits, make_tokenizer_task


def config_of(min_bits):
    config = tiny.get_config()
    config.model.min_bits = min_bits
    return finalize(config)


@pytest.fixture(scope="module")
def tokenizer():
    config = config_of(2)
    state = make_tokenizer_task(config).init_state(make_mesh(devices=jax.devices()[:1]))
    return Tokenizer(config, jax.device_get(state.params))


@pytest.mark.smoke
def test_missing_bits_are_zeros():
    bits = jnp.array([[1, 0, 1]], jnp.uint8)
    np.testing.assert_allclose(to_corners(bits, 5), np.array([[1, -1, 1, 0, 0]]) / np.sqrt(5))
    values = jnp.ones((2, 1, 3, 4))
    kept = np.asarray(keep_bits(values, jnp.array([1, 3])))
    np.testing.assert_array_equal(kept[0, 0], [[1, 0, 0, 0]] * 3)
    np.testing.assert_array_equal(kept[1, 0], [[1, 1, 1, 0]] * 3)


def test_half_keep_all_and_the_others_any_number():
    shape = TokenizerShape(bits=10, min_bits=3)
    drawn = np.asarray(draw_kept(jax.random.key(0), 15_000, shape))
    counts = np.bincount(drawn, minlength=11)
    assert counts[:3].sum() == 0
    np.testing.assert_allclose(counts[3:10], 1000, rtol=0.12)  # one in 15 each
    np.testing.assert_allclose(counts[10], 8000, rtol=0.05)


def test_decoding_the_first_bits(tokenizer):
    bits = np.random.default_rng(0).integers(0, 2, (64, 2, 2, 6)).astype(np.uint8)
    model, params = tokenizer._model, tokenizer.params
    for kept in (2, 4, 6):
        corners = np.zeros((64, 1, 2, 2, 6), np.float32)
        corners[:, 0, ..., :kept] = (2.0 * bits[..., :kept] - 1) / np.float32(np.sqrt(6))
        wanted = jax.jit(lambda c: model.apply({"params": params}, c, method="decode_quantized"))(
            corners
        )
        found = tokenizer.decode(bits[..., :kept])
        np.testing.assert_allclose(found, np.clip(wanted[:, 0], -1, 1), atol=1e-6)
    for wrong in (bits[..., :1], np.concatenate([bits, bits], axis=-1)):
        with pytest.raises(UserError, match="bits have shape"):
            tokenizer.decode(wrong)


def test_training_sees_the_bits_that_are_kept():
    task = make_tokenizer_task(config_of(2))
    state = task.init_state(make_mesh(devices=jax.devices()[:1]))
    pixels = np.random.default_rng(0).uniform(-1, 1, (8, 1, 16, 16, 3)).astype(np.float32)
    kept = task.kept_bits(8, jnp.int32(3))
    assert len(set(kept.tolist())) > 1
    step = jnp.int32(3)
    _, _, watched = jax.jit(task.gradients)(state.params, None, pixels, None, step, {})
    made = jax.jit(lambda k: task.reconstruct(state.params, pixels, kept=k).pixels)(kept)
    np.testing.assert_allclose(watched["l1"], np.abs(pixels - made).mean(), rtol=1e-5)
    whole = jax.jit(lambda: task.reconstruct(state.params, pixels).pixels)()
    assert abs(np.abs(pixels - whole).mean() - float(watched["l1"])) > 1e-6
    assert make_tokenizer_task(config_of(0)).kept_bits(8, step) is None
