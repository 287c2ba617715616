"""Tokens of which a decoder gets only the first bits.

Oracles: corners written by hand, counted draws, a big batch against its micro-batches.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from one_step import one_step

from bsq_jax.config import finalize
from bsq_jax.core.errors import UserError
from bsq_jax.core.rng import stream_key
from bsq_jax.core.sharding import batch_sharding, make_mesh
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.losses import L1, L2
from bsq_jax.models.factory import make_tokenizer
from bsq_jax.models.frozen_tokenizer import FrozenTokenizer
from bsq_jax.quantizers.base import keep_first
from bsq_jax.quantizers.signs import to_corners
from bsq_jax.training.tasks import variable_bits
from bsq_jax.training.tasks.prior import make_prior_task
from bsq_jax.training.tasks.tokenizer import make_tokenizer_task
from bsq_jax.training.tasks.variable_bits import draw_kept

DEVICES = 8


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


@pytest.mark.smoke
class KeepBitsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_bits_after_those_that_are_kept_are_zeros(self):
        values = np.ones((3, 1, 3, 4), np.float32)
        kept = self.variant(keep_first)(values, np.array([1, 3, 4]))
        wanted = np.array([[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]], np.float32)
        chex.assert_trees_all_equal(kept, np.tile(wanted[:, None, None], (1, 1, 3, 1)))


def test_half_keep_all_and_the_others_any_number():
    drawn = np.asarray(draw_kept(jax.random.key(0), 15_000, tuple(range(3, 11))))
    counts = np.bincount(drawn, minlength=11)
    assert counts[:3].sum() == 0
    np.testing.assert_allclose(counts[3:10], 1000, rtol=0.12)  # one in 15 each
    np.testing.assert_allclose(counts[10], 8000, rtol=0.05)


def test_stages_are_kept_whole():
    config = tiny.get_config()
    config.quantizer.stages, config.model.min_bits = 3, 4
    shape = make_tokenizer(finalize(config)).shape
    assert shape.prefixes == (4, 6)
    drawn = np.asarray(variable_bits.kept_bits(shape, 0, 3000, jnp.int32(0)))
    assert set(drawn.tolist()) == {4, 6}
    np.testing.assert_allclose(np.mean(drawn == 4), 1 / 3, atol=0.03)
    config.model.min_bits = 0
    shape = make_tokenizer(finalize(config)).shape
    assert shape.prefixes == (2, 4, 6)  # it decodes from them, and is not trained to
    assert variable_bits.kept_bits(shape, 0, 8, jnp.int32(0)) is None
    config.model.min_bits = 3
    with pytest.raises(UserError, match=r"min_bits is 3: .* from their first 2, 4 or 6 bits"):
        make_tokenizer(finalize(config))


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
    *_, watched = jax.jit(task.gradients)(state.params, None, pixels, None, step, {}, kept)
    made = jax.jit(lambda k: task.reconstruct(state.params, pixels, kept=k).pixels)(kept)
    np.testing.assert_allclose(watched["l1"], np.abs(pixels - made).mean(), rtol=1e-5)
    whole = jax.jit(lambda: task.reconstruct(state.params, pixels).pixels)()
    assert abs(np.abs(pixels - whole).mean() - float(watched["l1"])) > 1e-6
    assert make_tokenizer_task(config_of(0)).kept_bits(8, step) is None


def prior_task(tokenizer):
    config = tiny.get_prior("tokenizer")
    config.model.min_bits = 2
    return make_prior_task(finalize(config), FrozenTokenizer(tokenizer.model, tokenizer.params))


def tokenizer_task(_):
    # Without the entropy, whose codebook term is not a mean over examples.
    return dataclasses.replace(
        make_tokenizer_task(config_of(2)),
        losses=(L1(1.0), L2(0.5)),
        entropy_weight=optax.constant_schedule(0.0),
    )


MAKE = {"tokenizer": tokenizer_task, "prior": prior_task}
EXAMPLES, DRAWN = 16, 64


def draws_of(task, step, mesh):
    """How many bits each example of a batch keeps, drawn in a program over the mesh."""
    draw = jax.jit(lambda step: task.kept_bits(DRAWN, step), out_shardings=batch_sharding(mesh))
    return np.asarray(draw(jnp.int32(step)))


@pytest.mark.smoke
@pytest.mark.parametrize("kind", MAKE)
def test_draws_differ_between_micro_batches_and_steps_and_not_between_meshes(tokenizer, kind):
    task, meshes = MAKE[kind](tokenizer), (make_mesh(devices=jax.devices()[:1]), make_mesh())
    drawn = [draws_of(task, step, meshes[0]) for step in range(3)]
    for step, values in enumerate(drawn):
        np.testing.assert_array_equal(draws_of(task, step, meshes[1]), values)
        # As over_micro_batches splits them: strided.
        parts = values.reshape(-1, 4).T.tolist()
        assert len({tuple(part) for part in parts}) == 4
    assert len({values.tobytes() for values in drawn}) == 3
    key = stream_key(0, "bits", 1)  # with one micro-batch as ever
    wanted = jax.random.randint(key, (DRAWN,), -2, 7)
    np.testing.assert_array_equal(drawn[1], np.where(wanted < 2, 6, wanted))


@pytest.mark.parametrize("kind", MAKE)
def test_micro_batches_do_what_the_big_batch_does(tokenizer, kind):
    """Gradients too: plain descent moves the parameters by them."""
    pixels = np.random.default_rng(0).integers(0, 256, (EXAMPLES, 1, 16, 16, 3), np.uint8)
    batch = {"pixels": pixels, "frames": np.ones(EXAMPLES, np.int32)}
    task = dataclasses.replace(MAKE[kind](tokenizer), optimizer=optax.sgd(0.1))
    (params, watched), (other, values) = (
        one_step(dataclasses.replace(task, accumulate=parts), mesh, batch)
        for parts, mesh in ((1, make_mesh(devices=jax.devices()[:1])), (2, make_mesh()))
    )
    np.testing.assert_allclose(values["loss"], watched["loss"], rtol=1e-5)
    chex.assert_trees_all_close(other, params, atol=1e-5)
