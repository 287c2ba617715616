"""Schedule, clipping, AdamW and averaging. Oracle: closed forms and float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsq_jax.config import default_config
from bsq_jax.training.optimizer import (
    clip_each_parameter,
    make_discriminator_optimizer,
    make_optimizer,
    make_schedule,
    schedule,
    update_ema,
)


@pytest.mark.parametrize(
    ("step", "share"),
    [
        (0, 0.1),
        (2500, 0.55),
        (5000, 1.0),
        (5000 + 995_000 // 4, 0.5 + 0.25 * (1 + np.cos(np.pi / 4))),
        (5000 + 995_000 // 2, 0.75),
        (1_000_000, 0.5),
        (2_000_000, 0.5),
    ],
)
def test_published_schedule(step, share):
    rate = schedule(1.024e-4, warmup_steps=5000, warmup_start=0.1, steps=1_000_000, final=0.5)
    np.testing.assert_allclose(rate(jnp.int32(step)), 1.024e-4 * share, rtol=1e-5)


def test_no_warm_up_starts_at_the_peak():
    rate = schedule(0.3, warmup_steps=0, warmup_start=0.1, steps=10, final=0.0)
    np.testing.assert_allclose(rate(jnp.int32(0)), 0.3, rtol=1e-6)
    np.testing.assert_allclose(rate(jnp.int32(10)), 0, atol=1e-7)


def test_schedule_of_a_config():
    config = default_config()
    config.optimizer.update(learning_rate=0.2, warmup_steps=10, warmup_start=0.5, final=0.1)
    config.train.steps = 30
    rate = make_schedule(config)
    shares = [rate(jnp.int32(step)) / 0.2 for step in (0, 5, 10, 20, 30)]
    np.testing.assert_allclose(shares, [0.5, 0.75, 1, 0.55, 0.1], rtol=1e-5)


def test_clipping_counts_each_parameter_and_each_stacked_layer():
    rng = np.random.default_rng(0)
    large = rng.normal(size=(3, 4)) * 10
    stacked = rng.normal(size=(3, 5, 2)) * np.array([0.01, 1.0, 100.0])[:, None, None]
    small = np.full(4, 0.1)
    gradients = {
        "head": {"kernel": large, "bias": small},
        "blocks": {"mlp": {"kernel": stacked}},
    }
    gradients = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), gradients)
    clipped, _ = clip_each_parameter(1.0).update(gradients, None)
    np.testing.assert_allclose(clipped["head"]["kernel"], large / np.linalg.norm(large), rtol=1e-5)
    np.testing.assert_array_equal(clipped["head"]["bias"], gradients["head"]["bias"])
    norms = np.linalg.norm(stacked.reshape(3, -1), axis=1)
    wanted = stacked / np.maximum(norms, 1)[:, None, None]
    assert norms[0] < 1 < norms[1]
    np.testing.assert_allclose(clipped["blocks"]["mlp"]["kernel"], wanted, rtol=1e-5)


def test_clipping_leaves_zero_gradients_alone():
    clipped, _ = clip_each_parameter(1.0).update({"bias": jnp.zeros(3)}, None)
    assert clipped["bias"].tolist() == [0, 0, 0]


def config_of(**optimizer):
    config = default_config()
    config.optimizer.update(
        learning_rate=0.01, warmup_steps=0, final=1.0, weight_decay=0.1, **optimizer
    )
    return config


def parameters():
    names = ("kernel", "bias", "scale", "spatial")
    return {"blocks": {name: jnp.full((2, 3), i + 1.0) for i, name in enumerate(names)}}


@pytest.mark.parametrize("decay_all", [False, True])
def test_only_matrices_decay_unless_all_do(decay_all):
    params = parameters()
    optimizer = make_optimizer(config_of(decay_all=decay_all))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    for name, update in updates["blocks"].items():
        decays = decay_all or name == "kernel"
        wanted = -0.01 * 0.1 * params["blocks"][name] if decays else 0 * params["blocks"][name]
        np.testing.assert_allclose(update, wanted, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("clip", ["none", "global", "parameter"])
def test_three_steps_of_adamw_against_numpy(clip):
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)}
    gradients = [jax.tree.map(lambda p: rng.normal(size=p.shape) * 2, params) for _ in range(3)]
    optimizer = make_optimizer(config_of(clip=clip, clip_norm=1.5))
    ours = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    state = optimizer.init(ours)
    for gradient in gradients:
        updates, state = jax.jit(optimizer.update)(
            jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), gradient), state, ours
        )
        ours = jax.tree.map(jnp.add, ours, updates)

    m = jax.tree.map(np.zeros_like, params)
    v = jax.tree.map(np.zeros_like, params)
    for count, gradient in enumerate(gradients, start=1):
        whole = np.sqrt(sum(np.sum(g**2) for g in gradient.values()))
        for name in params:
            norm = {"none": 0.0, "global": whole, "parameter": np.linalg.norm(gradient[name])}[clip]
            g = gradient[name] * min(1.0, 1.5 / max(norm, 1e-30))
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.99 * v[name] + 0.01 * g**2
            step = m[name] / (1 - 0.9**count) / (np.sqrt(v[name] / (1 - 0.99**count)) + 1e-8)
            decay = 0.1 * params[name] if name == "kernel" else 0.0
            params[name] = params[name] - 0.01 * (step + decay)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, params)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.9), (90, 9 / 100), (10**7, 0.001)])
def test_averaging(step, rate):
    """The decay is min(0.999, (1 + step) / (10 + step))."""
    average, params = {"a": jnp.array([1.0, -2.0])}, {"a": jnp.array([3.0, 4.0])}
    moved = update_ema(average, params, jnp.int32(step), 0.999)
    np.testing.assert_allclose(moved["a"], [1 + 2 * rate, -2 + 6 * rate], rtol=1e-5)
    steady = update_ema(average, params, jnp.int32(step), 0.999, warmup=False)
    np.testing.assert_allclose(steady["a"], [1.002, -1.994], rtol=1e-5)


@pytest.mark.parametrize("late", [0, 80])
def test_the_discriminators_schedule_is_laid_out_over_the_steps_that_it_plays(late):
    """Adam of a steady gradient moves by the rate: a cosine from 1 to 0.2 over these steps."""
    config = default_config()
    config.train.steps, config.loss.adversarial_start = 100, late
    config.discriminator.learning_rate = 1.0
    config.optimizer.update(warmup_steps=0, final=0.2, weight_decay=0.0, b1=0.0, b2=0.0)
    optimizer = make_discriminator_optimizer(config)
    params = {"kernel": jnp.zeros(())}
    state, update, moved = optimizer.init(params), jax.jit(optimizer.update), []
    for _ in range(101 - late):
        updates, state = update({"kernel": jnp.float32(1)}, state, params)
        moved.append(-float(updates["kernel"]))
    progress = np.linspace(0, 1, 101 - late)
    np.testing.assert_allclose(moved, 0.2 + 0.4 * (1 + np.cos(np.pi * progress)), rtol=1e-4)
