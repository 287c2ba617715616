"""Bits that the decoder gets wrong in training.

Oracles: counted draws, decoding the flipped tokens, a big batch against its micro-batches.
"""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from one_step import one_step

from bsq_jax.config import finalize
from bsq_jax.core.sharding import batch_sharding, make_mesh
from bsq_jax.losses import L1, L2
from bsq_jax.quantizers.base import flip
from bsq_jax.quantizers.vq import VectorQuantizer
from bsq_jax.training.tasks.flipped_bits import flipped_bits
from bsq_jax.training.tasks.tokenizer import make_tokenizer_task

DEVICES = 8
EXAMPLES, FRAMES, BITS = 16, 2, 6


@functools.cache
def task_of(share):
    """Without the entropy, whose codebook term is not a mean over examples."""
    config = tiny.get_config()
    config.quantizer.flip = share
    return dataclasses.replace(
        make_tokenizer_task(finalize(config)),
        losses=(L1(1.0), L2(0.5)),
        entropy_weight=optax.constant_schedule(0.0),
        optimizer=optax.sgd(0.1),
    )


def one_device():
    return make_mesh(devices=jax.devices()[:1])


def pixels():
    return np.random.default_rng(0).integers(0, 256, (EXAMPLES, FRAMES, 16, 16, 3), np.uint8)


@pytest.mark.smoke
@pytest.mark.parametrize("share", [0.01, 0.2, 0.5])
def test_share_of_flipped_bits(share):
    drawn = np.asarray(flipped_bits((4000, 2, 2, 2, BITS), share, 0, jnp.int32(0)))
    chex.assert_shape(drawn, (4000, 2, 2, 2, BITS))
    assert set(np.unique(drawn)) == {0, 1}
    spread = np.sqrt(share * (1 - share))
    assert abs(drawn.mean() - share) < 4 * spread / np.sqrt(drawn.size)
    each = drawn.mean(axis=(0, 1, 2, 3))
    assert np.abs(each - share).max() < 4.5 * spread / np.sqrt(drawn.size / BITS)


@pytest.mark.smoke
def test_frames_of_another_size_have_their_own_tokens():
    patch = task_of(0.2).model.shape.patch[0]
    wide = jnp.zeros((3, 1, 2 * patch, 5 * patch, 3))
    chex.assert_shape(task_of(0.2).flipped_bits(wide, jnp.int32(0)), (3, 1, 2, 5, BITS))


@pytest.mark.smoke
def test_draws_differ_between_steps_and_not_between_meshes():
    task = task_of(0.2)
    drawn = []
    for sizes in ((1, 1, 1), (8, 1, 1), (2, 2, 2)):
        mesh = make_mesh(*sizes, devices=jax.devices()[: np.prod(sizes)])
        draw = jax.jit(
            lambda step: task.flipped_bits(pixels(), step), out_shardings=batch_sharding(mesh)
        )
        drawn.append([np.asarray(draw(jnp.int32(step))) for step in range(2)])
    chex.assert_trees_all_equal(*drawn)
    first, second = drawn[0]
    assert (first != second).any()
    assert len({row.tobytes() for row in first}) > EXAMPLES / 2


@pytest.mark.smoke
def test_none_draw_nothing():
    task = task_of(0.0)
    assert task.flipped_bits(pixels(), jnp.int32(0)) is None
    state = task.abstract_state(one_device())

    def program(task):
        return str(jax.make_jaxpr(task.train_step)(state, {"pixels": pixels()}, {}))

    assert "random_bits" not in program(task)
    assert "random_bits" in program(task_of(0.2))


@pytest.mark.smoke
def test_tokens_that_would_name_no_code_stay_right():
    """Of eleven codes in four bits; their numbers are Python's."""
    quantizer, random = VectorQuantizer(11, 4, False, False, 0.25), np.random.default_rng(0)
    v = random.normal(size=(300, 4)).astype(np.float32)
    flipped = random.integers(0, 2, (300, 4), np.uint8)
    variables = nn.unbox(quantizer.init(jax.random.key(0), v))
    out = jax.jit(lambda: quantizer.apply(variables, v, flipped=flipped, method="encode"))()

    def numbers(bits):
        return [int("".join(map(str, row)), 2) for row in np.asarray(bits).tolist()]

    right, wrong = numbers(out.bits), numbers(np.asarray(out.bits) ^ flipped)
    sent = [w if w < 11 else r for r, w in zip(right, wrong, strict=True)]
    assert any(w >= 11 for w in wrong)
    assert sent != right
    chex.assert_trees_all_equal(out.quantized, variables["params"]["codebook"][np.array(sent)])


def test_the_decoder_gets_wrong_bits_and_all_else_the_right_ones():
    task, step = task_of(0.2), jnp.int32(0)
    state = task.init_state(one_device())
    floats = np.float32(pixels()) / 127.5 - 1
    flipped = task.flipped_bits(floats, step)
    params = state.params

    @jax.jit
    def both(flipped):
        gradients = functools.partial(task.gradients, params, None, floats, None, step, {})
        return gradients()[-1], gradients(flipped=flipped)[-1], task.reconstruct(params, floats)

    right, wrong, plain = both(flipped)
    for name in ("bit_mean", "codes_seen", "token_entropy", "codebook_entropy", "commitment"):
        chex.assert_trees_all_close(wrong[name], right[name], rtol=1e-6)
    codes = task.model.quantizer.decode(flip(task.model.quantizer, plain.quantized.bits, flipped))
    made = jax.jit(
        lambda x: task.model.apply({"params": params}, x, method="decode_quantized")
    )(codes.reshape(-1, 1, *codes.shape[2:]))  # fmt: skip
    wanted = np.abs(floats - made.reshape(floats.shape)).mean()
    np.testing.assert_allclose(wrong["l1"], wanted, rtol=1e-5)
    assert abs(float(right["l1"]) - wanted) > 1e-5


def test_micro_batches_and_meshes_do_what_the_big_batch_does():
    """Gradients too: plain descent moves the parameters by them."""
    batch = {"pixels": pixels()}
    params, watched = one_step(task_of(0.2), one_device(), batch)
    task = dataclasses.replace(task_of(0.2), accumulate=2)
    other, values = one_step(task, make_mesh(2, 2, 2), batch)
    np.testing.assert_allclose(values["loss"], watched["loss"], rtol=1e-5)
    chex.assert_trees_all_close(other, params, atol=1e-5)
    without = one_step(task_of(0.0), one_device(), batch)[1]
    assert abs(float(without["loss"]) - float(watched["loss"])) > 1e-5
