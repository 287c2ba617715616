"""The tokenizer's training step.

Oracles: one device against many (SGD: Adam would normalise rounding errors into steps), one big
batch against accumulated small ones, the loss written out from its terms.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bsq_jax.config import default_config
from bsq_jax.core.pixels import to_float
from bsq_jax.core.sharding import batch_sharding, make_mesh, replicated, to_global
from bsq_jax.core.trees import leaves
from bsq_jax.models.tokenizer import TokenizerModel, TokenizerShape
from bsq_jax.quantizers import BinarySphericalQuantizer
from bsq_jax.tasks.state import TrainState
from bsq_jax.tasks.tokenizer import LossWeights, TokenizerTask, make_tokenizer_task

SHAPE = TokenizerShape(16, 16, 1, 8, bits=6, width=16, layers=2, heads=2, head_hidden=32)
ALL_TERMS = LossWeights(l1=1.0, l2=0.5, entropy=0.1, entropy_ramp_steps=10)


def make_task(**fields) -> TokenizerTask:
    optimizer = fields.pop("optimizer", optax.sgd(0.1))
    model = TokenizerModel(SHAPE, BinarySphericalQuantizer(3, commitment_weight=0.25))
    return TokenizerTask(model, optimizer, optax.constant_schedule(0.1), **fields)


def photographs(step: int, count: int = 16) -> dict[str, np.ndarray]:
    """Smooth colour ramps with a little noise, uint8 [count, 1, 16, 16, 3]."""
    rng = np.random.default_rng(step)
    corners = rng.uniform(0, 255, (3, count, 1, 1, 1, 3))
    x = np.linspace(0, 1, 16)
    x, y = x[None, None, None, :, None], x[None, None, :, None, None]
    picture = corners[0] * (1 - x) + corners[1] * x * (1 - y) + corners[2] * x * y
    picture = picture + rng.normal(size=picture.shape)
    return {"pixels": np.clip(np.round(picture), 0, 255).astype(np.uint8)}


def one_device():
    return make_mesh(1, 1, 1, jax.devices()[:1])


@functools.cache
def first_params():
    """Random parameters, made once: making them is half the time of a test."""
    return jax.device_get(make_task().init_state(one_device()).params)


def start(task: TokenizerTask, mesh):
    """The state at step 0 from `first_params`, laid out on the mesh as the task asks."""
    params = jax.tree.map(np.copy, first_params())
    ema = jax.tree.map(np.copy, params) if task.ema_decay else None
    state = TrainState(np.int32(0), params, ema, task.optimizer.init(params))
    layout = jax.tree.map(lambda leaf: leaf.sharding, task.abstract_state(mesh))
    return jax.device_put(state, layout)


def compile_step(task: TokenizerTask, mesh):
    """The step as the train loop jits it, and a state to start from."""
    state = start(task, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = jax.jit(
        task.train_step,
        in_shardings=(shardings, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    return step, state


def train(task: TokenizerTask, mesh, steps: int = 3):
    step, state = compile_step(task, mesh)
    for index in range(steps):
        state, metrics = step(state, to_global(photographs(index), mesh), {})
    return jax.device_get((state, metrics))


@functools.cache
def on_one_device():
    return train(make_task(weights=ALL_TERMS, ema_decay=0.9), one_device())


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
def test_many_devices_do_what_one_does(sizes):
    state, metrics = train(make_task(weights=ALL_TERMS, ema_decay=0.9), make_mesh(*sizes))
    wanted_state, wanted_metrics = on_one_device()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        (state.params, state.ema),
        (wanted_state.params, wanted_state.ema),
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        metrics,
        wanted_metrics,
    )
    assert state.step == 3


def test_the_start_is_the_same_on_every_mesh():

    def init(task, mesh):
        # Optimised as users have it (conftest turns it off): the comparison is to the bit.
        options = {"xla_backend_optimization_level": 3}
        return jax.jit(lambda: task.init_state(mesh).params, compiler_options=options)()

    here, there = (init(make_task(), mesh) for mesh in (one_device(), make_mesh(2, 2, 2)))
    jax.tree.map(np.testing.assert_array_equal, there, here)
    assert any(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(there))
    other, ours = init(make_task(seed=1), one_device()), here["to_latent"]["kernel"]
    assert abs(np.corrcoef(ours.ravel(), np.ravel(other["to_latent"]["kernel"]))[0, 1]) < 0.5


def test_accumulated_gradients_are_those_of_the_big_batch():
    """Without the entropy, whose codebook term is not a mean over examples."""
    weights = LossWeights(l1=1.0, l2=0.5, entropy=0.0)
    state, metrics = train(make_task(weights=weights, accumulate=2), make_mesh(8, 1, 1), 2)
    wanted, wanted_metrics = train(make_task(weights=weights), one_device(), 2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.params, wanted.params
    )
    for name in ("loss", "l1", "l2", "gradient_norm", "token_entropy", "commitment"):
        np.testing.assert_allclose(metrics[name], wanted_metrics[name], rtol=1e-5, err_msg=name)


def test_the_loss_is_its_weighted_terms_with_the_ramp():
    task = make_task(weights=LossWeights(l1=0.7, l2=0.4, entropy=0.1, entropy_ramp_steps=2000))
    params = first_params()
    pixels = to_float(jnp.asarray(photographs(0)["pixels"]))
    gradients = jax.jit(task.gradients)
    for step, factor in [(0, 3), (1000, 2), (2000, 1), (9000, 1)]:
        _, _, terms = gradients(params, None, pixels, jnp.int32(step), {})
        wanted = 0.7 * terms["l1"] + 0.4 * terms["l2"] + 0.1 * factor * terms["entropy"]
        np.testing.assert_allclose(terms["loss"], wanted, rtol=1e-5)
        penalty = terms["token_entropy"] - terms["codebook_entropy"] + 0.25 * terms["commitment"]
        np.testing.assert_allclose(terms["entropy"], penalty, rtol=1e-4)


def test_a_step_in_full():
    """What it reports, what it averages, and that the old state's memory is given up."""
    task = make_task(weights=ALL_TERMS, ema_decay=0.9)
    step, state = compile_step(task, make_mesh(8, 1, 1))
    before = start(task, one_device())
    after, metrics = step(state, to_global(photographs(0), make_mesh(8, 1, 1)), {})
    kept = [name for name, leaf in leaves(state).items() if not leaf.is_deleted()]
    assert kept == []

    scalars = {"loss", "l1", "l2", "entropy", "psnr", "gradient_norm", "learning_rate"}
    scalars |= {"token_entropy", "codebook_entropy", "commitment"}
    scalars |= {"bit_entropy", "bit_entropy_min", "group_usage"}
    assert set(metrics) == scalars | {"bit_mean"}
    assert {metrics[name].shape for name in scalars} == {()}
    assert metrics["bit_mean"].shape == (6,)
    assert all(np.isfinite(value).all() for value in metrics.values())
    np.testing.assert_allclose(metrics["learning_rate"], 0.1, rtol=1e-6)

    # SGD: the parameters moved by -0.1 times the gradient, whose norm is reported.
    moved = jax.tree.map(lambda a, b: (np.asarray(b) - a) / -0.1, before.params, after.params)
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(moved)))
    np.testing.assert_allclose(norm, metrics["gradient_norm"], rtol=1e-4)
    # At step 0 the average keeps a tenth of itself.
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(c, 0.1 * a + 0.9 * np.asarray(b), atol=1e-6),
        before.ema,
        after.params,
        after.ema,
    )


@pytest.mark.smoke
def test_the_loss_falls_within_thirty_steps():
    config = default_config()
    config.model.update(
        image_size=(16, 16), bits=6, width=16, layers=2, heads=2, head_hidden=32, dtype="float32"
    )
    config.optimizer.update(learning_rate=3e-3, warmup_steps=5)
    config.loss.update(perceptual=0.0, adversarial=0.0)
    config.train.steps = 30
    config.quantizer.group_size = 3
    mesh = one_device()
    step, state = compile_step(make_tokenizer_task(config), mesh)
    batch = to_global(photographs(0), mesh)
    history = []
    for _ in range(30):
        state, metrics = step(state, batch, {})
        history.append({name: float(metrics[name]) for name in ("loss", "l1", "psnr")})
    assert history[-1]["l1"] < 0.6 * history[0]["l1"]
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["psnr"] > history[0]["psnr"] + 2


def test_evaluation_measures_each_example_in_bytes():
    task = make_task()
    params = first_params()
    batch = photographs(0, 4)
    out = jax.jit(task.evaluate_step)(params, batch)
    assert out["bits"].shape == (4, 1, 2, 2, 6)
    assert out["bits"].dtype == jnp.uint8
    assert out["reconstruction"].dtype == jnp.uint8
    assert "ms_ssim" not in out  # too small for it

    original = batch["pixels"].astype(np.float64)
    error = np.mean((original - np.asarray(out["reconstruction"])) ** 2, axis=(1, 2, 3, 4))
    np.testing.assert_allclose(out["psnr"], 10 * np.log10(255**2 / error), rtol=1e-5)
    means = original.reshape(4, 1, 2, 8, 2, 8, 3).mean(axis=(3, 5), keepdims=True)
    painted = np.broadcast_to(np.round(means), (4, 1, 2, 8, 2, 8, 3)).reshape(original.shape)
    error = np.mean((original - painted) ** 2, axis=(1, 2, 3, 4))
    np.testing.assert_allclose(out["oracle_psnr"], 10 * np.log10(255**2 / error), rtol=1e-4)
