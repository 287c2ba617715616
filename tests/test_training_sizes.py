"""Training steps whose frames have other sizes than the model's.

Oracle: each clip alone, without its padding, in a loop, and sums in float64 numpy.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from shapes import bsq_quantizer, stylegan_discriminator, tokenizer_shape
from small_task import adversarial_training, tokenizer_task

from bsq_jax.core.pixels import to_float
from bsq_jax.core.sharding import make_mesh
from bsq_jax.losses import L1, L2
from bsq_jax.models.tokenizer import TokenizerModel

BITS = 6
SHAPE = tokenizer_shape(16, 16, 3, 8, bits=BITS, width=16, layers=1, heads=2, head_hidden=0)
SIZES = [(16, 16), (8, 40), (24, 16)]
FRAMES = np.array([3, 1, 2, 1], np.int32)


def make_task(accumulate=1, **changes):
    return tokenizer_task(
        TokenizerModel(SHAPE, bsq_quantizer(3, length=BITS)),
        losses=(L1(1.0), L2(0.5)),
        optimizer=optax.sgd(0.05),
        accumulate=accumulate,
        **changes,
    )


def batch(size):
    pixels = np.random.default_rng(0).integers(0, 256, (len(FRAMES), 3, *size, 3), np.uint8)
    return {"pixels": pixels, "frames": FRAMES}


@functools.cache
def first_state():
    return jax.device_get(make_task().init_state(make_mesh(1, 1, 1, jax.devices()[:1])))


@functools.cache
def step(accumulate, size):
    return jax.device_get(jax.jit(make_task(accumulate).train_step)(first_state(), batch(size), {}))


def alone(task, params, data):
    """Errors ``[pixel, channel]`` and bits ``[token, L]`` of every clip without its padding."""
    errors, bits = [], []
    for clip, count in zip(data["pixels"], data["frames"], strict=True):
        real = to_float(clip[None, :count])
        output = task.model.apply({"params": params}, real)
        error = np.asarray(real, np.float64) - np.asarray(output.pixels, np.float64)
        inside = np.asarray(real, np.float64) - np.clip(output.pixels, -1, 1)
        errors.append(np.stack([error, inside], axis=-1).reshape(-1, 2))
        bits.append(np.asarray(output.quantized.bits).reshape(-1, BITS))
    return np.concatenate(errors), np.concatenate(bits)


@pytest.mark.parametrize(("accumulate", "size"), [(1, (8, 40)), (2, (8, 40))])
def test_metrics_of_a_step_are_those_of_its_clips_one_by_one(accumulate, size):
    _, found = step(accumulate, size)
    errors, bits = alone(make_task(), first_state().params, batch(size))
    tokens = FRAMES.sum() * (size[0] // 8) * (size[1] // 8)
    chex.assert_shape(bits, (tokens, BITS))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5)
    close(found["l1"], np.abs(errors[:, 0]).mean())
    close(found["l2"], np.square(errors[:, 0]).mean())
    close(found["psnr"], 10 * np.log10(4 / np.square(errors[:, 1]).mean()))
    close(found["bit_mean"], bits.mean(axis=0))
    counts = np.unique(bits, axis=0, return_counts=True)[1]
    close(found["usage"], len(counts) / min(2**BITS, tokens))
    close(found["perplexity"], np.exp(-np.sum(counts / tokens * np.log(counts / tokens))))


def test_micro_batches_of_another_size_are_the_big_batch():
    """Lengths differ: 5 of the 7 real frames are in the one micro-batch, 2 in the other."""
    (one, _), (two, _) = (step(accumulate, (8, 40)) for accumulate in (1, 2))
    chex.assert_trees_all_close(one.params, two.params, atol=2e-6, rtol=1e-4)


def test_codes_that_restart_are_drawn_from_all_tokens_of_the_batch():
    """The draws go over the tokens of frames of this size, not of the model's."""
    asked = []

    class Draws:
        def draw(self, params, tokens, step):
            del params, step
            asked.append(np.asarray(tokens).tolist())
            return ()

    task = make_task(codebooks=Draws())
    for size in SIZES:
        pixels = jnp.zeros((len(FRAMES), 3, *size, 3))
        task._draws(first_state(), pixels, jnp.asarray(FRAMES))
    assert asked == [[4 * n for n in FRAMES], [5 * n for n in FRAMES], [6 * n for n in FRAMES]]


def test_a_discriminator_goes_from_one_size_to_another():
    """A state that is made at the model's size takes a step of another, and both networks move."""
    discriminator = stylegan_discriminator(channel_base=32, channel_max=4, built_for=(16, 16))
    task = make_task(adversarial=adversarial_training(discriminator, r1=0.0))
    state = task.init_state(make_mesh(1, 1, 1, jax.devices()[:1]))
    after, metrics = jax.jit(task.train_step)(state, batch((24, 16)), {})
    chex.assert_tree_all_finite((after, metrics))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    for old, new in (
        (state.params, after.params),
        (state.adversary.params, after.adversary.params),
    ):
        moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), old, new)
        assert max(jax.tree.leaves(moved)) > 0
