"""Counted operations. Oracle: closed forms of products, convolutions and whole networks."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shapes import bsq_quantizer, stylegan_discriminator, tokenizer_shape
from small_task import adversarial_training, tokenizer_task

from bsq_jax.config import default_config
from bsq_jax.core.sharding import make_mesh
from bsq_jax.models.tokenizer import TokenizerModel
from bsq_jax.training import step_cost
from bsq_jax.training.flops import PEAKS, count, peak_of_kind
from bsq_jax.training.useful_flops import step_flops


def convolve(x, kernel, stride=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=numbers
    )


@pytest.mark.smoke
def test_products_and_convolutions():
    x, w = jnp.zeros((3, 5)), jnp.zeros((5, 7))
    assert count(jnp.matmul, x, w) == 2 * 3 * 5 * 7
    assert count(jax.grad(lambda x, w: jnp.sum((x @ w) ** 2), (0, 1)), x, w) == 3 * 2 * 3 * 5 * 7
    assert count(lambda q, k: jnp.einsum("bqd,bkd->bqk", q, k), *[jnp.zeros((2, 4, 8))] * 2) == (
        2 * 2 * 4 * 4 * 8
    )
    x, w = jnp.zeros((2, 16, 16, 8)), jnp.zeros((3, 3, 8, 4))
    once = 2 * (2 * 16 * 16 * 4) * (3 * 3 * 8)
    for stride in (1, 2):
        assert count(lambda x, w, s=stride: convolve(x, w, s), x, w) == once / stride**2
        gradient = jax.grad(lambda x, w, s=stride: jnp.sum(convolve(x, w, s) ** 2), (0, 1))
        assert count(gradient, x, w) == 3 * once / stride**2


@pytest.mark.smoke
def test_loops_branches_and_what_nobody_uses():
    x, once = jnp.zeros((8, 8)), 2 * 8**3

    def looped(x):
        return jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=5)[0]

    assert count(looped, x) == count(jax.jit(looped), x) == 5 * once
    assert count(jax.remat(looped), x) == 5 * once
    branches = [lambda x: x, lambda x: x @ x, lambda x: x @ x @ x]
    assert count(lambda x: jax.lax.switch(0, branches, x), x) == 2 * once
    assert count(lambda x: (x @ x, x)[1], x) == 0
    mesh = make_mesh()
    spec = jax.sharding.PartitionSpec("data")
    body = jax.shard_map(lambda x: x @ jnp.ones((8, 8)), mesh=mesh, in_specs=spec, out_specs=spec)
    assert count(body, x) == once


SHAPE = tokenizer_shape(32, 32, 1, 8, bits=6, width=64, layers=3, heads=4, head_hidden=128)


def make_task(shape=SHAPE, **changes):
    return tokenizer_task(
        TokenizerModel(shape, bsq_quantizer(length=shape.bits, group_size=1)), **changes
    )


def abstract_batch(task, batch, frames):
    sides = task.model.shape.image_height, task.model.shape.image_width
    return {"pixels": jax.ShapeDtypeStruct((batch, frames, *sides, 3), jnp.uint8)}


def flops_of(task, batch=2, frames=1):
    return step_flops(
        task, task.abstract_state(make_mesh()), abstract_batch(task, batch, frames), {}
    )


def closed_form(shape, frames):
    """Of a training step on a clip: forward and backward are three times the forward pass."""
    tokens, width = shape.tokens * frames, shape.width
    seen = sum(range(1, frames + 1)) * shape.tokens**2  # pairs of tokens, block-causal
    block = 2 * tokens * 12 * width**2 + 4 * seen * width
    patch = 3 * math.prod(shape.patch)
    head = shape.head_hidden * (width + patch)
    ends = 2 * tokens * (patch * width + 2 * width * shape.bits + head)
    # The pixels have no gradient, so the patch embedding needs two products, not three.
    return 3 * (2 * shape.layers * block + ends) - 2 * tokens * patch * width


@pytest.mark.parametrize("frames", [1, 4])
def test_a_training_step_of_the_tokenizer(frames):
    shape = dataclasses.replace(SHAPE, frames=frames)
    expected = 2 * closed_form(shape, frames)
    task = make_task(shape)
    # Layer norms and entropies have small products of their own.
    assert expected == pytest.approx(flops_of(task, 2, frames), rel=0.03)
    again = dataclasses.replace(task, model=task.model.clone(remat="full", attention="dense"))
    assert flops_of(again, 2, frames) == flops_of(task, 2, frames)
    executed = count(
        again.train_step, again.abstract_state(make_mesh()), abstract_batch(again, 2, frames), {}
    )
    assert executed > 1.15 * expected


def test_micro_batches_are_counted():
    assert flops_of(make_task(accumulate=4), 8) == pytest.approx(flops_of(make_task(), 8), rel=0.01)


def test_the_penalty_counts_with_its_share():
    discriminator = stylegan_discriminator(channel_base=256, channel_max=32, stddev_group=2)

    def flops(**changes):
        training = adversarial_training(discriminator, **changes)
        return flops_of(make_task(adversarial=training))

    without, always, lazy = flops(r1=0.0), flops(r1_every=1), flops(r1_every=16, start=100)
    assert without < lazy < always
    np.testing.assert_allclose(lazy, without + (always - without) / 16)


@pytest.mark.smoke
def test_peaks():
    assert peak_of_kind("TPU v5") == 459e12
    assert peak_of_kind("TPU v5 lite") == 197e12
    assert peak_of_kind("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of_kind("NVIDIA L40S") == 362e12
    assert peak_of_kind("NVIDIA L4") == 121e12
    assert peak_of_kind("NVIDIA L40") is None
    assert peak_of_kind("cpu") is None
    assert all(math.log10(peak) > 13 for peak in PEAKS.values())


def test_the_largest_step_of_several_sizes_and_its_tokens():
    config = default_config()
    config.model.update(image_size=(64, 64), patch_size=8)
    assert step_cost.largest_step(config, 1) == (256, 64, 64)
    # Of 2^20 pixels 341 x 3,072 and 273 x 3,840 are the most; of multiples of 50, 300 and 250.
    config.data.sizes = ("32x96", "80x48")
    assert step_cost.largest_step(config, 1) == (273, 80, 48)
    assert step_cost.largest_step(config, 50) == (250, 80, 48)
    assert step_cost.largest_step(config, 300) == (300, 80, 48)
    pixels = jax.ShapeDtypeStruct((341, 5, 32, 96, 3), jnp.uint8)
    assert step_cost.tokens_of(config, {"pixels": pixels}) == 341 * 5 * 4 * 12
    config.model.update(patch_size=(16, 8), patch_time=4)  # the first frame, and the other four
    assert step_cost.tokens_of(config, {"pixels": pixels}) == 341 * 2 * 2 * 12
    bits = jax.ShapeDtypeStruct((2, 3, 4, 5, 6), jnp.uint8)
    assert step_cost.tokens_of(config, {"bits": bits}) == 2 * 3 * 4 * 5
