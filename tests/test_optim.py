"""Schedule, clipping, AdamW, Muon and averaging. Oracles: closed forms and numpy in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from absl.testing import parameterized

from bsq_jax.config import default_config, finalize
from bsq_jax.core.sharding import make_mesh
from bsq_jax.core.trees import leaves
from bsq_jax.models.transformer import STACK
from bsq_jax.training.optimizer import (
    block_matrices,
    clip_each_parameter,
    make_discriminator_optimizer,
    make_optimizer,
    make_schedule,
    norm,
    update_ema,
)
from bsq_jax.training.step_cost import make_task
from bsq_jax.training.tasks.tokenizer import make_tokenizer_task


def config_of(steps=1_000_000, **optimizer):
    config = tiny.get_config()
    config.train.steps = steps
    config.optimizer.update(learning_rate=0.01, **optimizer)
    return finalize(config)


def steady(**optimizer):
    """A config with a steady rate of 0.01."""
    settings = {"warmup_steps": 0, "final": 1.0, "weight_decay": 0.1}
    return config_of(**{**settings, **optimizer})


@pytest.fixture(scope="module")
def params():
    """Parameters of a small tokenizer with two layers in each half, on the host."""
    config = tiny.get_config()
    config.model.update(layers=2)
    task = make_tokenizer_task(finalize(config))
    return jax.device_get(task.init_state(make_mesh(devices=jax.devices()[:1])).params)


def random_like(params, seed, scale=1.0):
    """Normal numbers, float64, in the shape of some parameters."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) * scale, params)


def single(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), tree)


# --- schedule ---


def closed_form(step, *, warmup_steps, warmup_start, steps, final):
    """Share of the peak at a step, in float64."""
    if step < warmup_steps:
        return warmup_start + (1 - warmup_start) * step / warmup_steps
    progress = min((step - warmup_steps) / max(steps - warmup_steps, 1), 1.0)
    return final + (1 - final) * 0.5 * (1 + np.cos(np.pi * progress))


class ScheduleTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.named_parameters(
        ("published", 5000, 0.1, 1_000_000, 0.5),
        ("from_half_to_a_tenth", 10, 0.5, 30, 0.1),
        ("to_zero", 3, 0.0, 30, 0.0),
        ("without_warm_up", 0, 0.1, 10, 0.5),
        ("warm_up_alone", 10, 0.1, 10, 0.5),
        ("longer_warm_up_than_the_run", 5000, 0.1, 20, 0.5),
    )
    def test_every_step_against_the_closed_form(self, warmup_steps, warmup_start, steps, final):
        settings = {"warmup_steps": warmup_steps, "warmup_start": warmup_start, "final": final}
        rate = self.variant(make_schedule(config_of(steps, **settings)))
        last = max(steps, warmup_steps + 1)
        middle = {warmup_steps // 2, warmup_steps, last // 3}
        for step in {*range(4), *middle, last - 1, last, 2 * last}:
            wanted = 0.01 * closed_form(step, steps=steps, **settings)
            np.testing.assert_allclose(rate(jnp.int32(step)), wanted, rtol=2e-6, atol=2e-9)


@pytest.mark.parametrize("late", [0, 80])
def test_the_discriminators_schedule_is_laid_out_over_the_steps_that_it_is_trained(late):
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


# --- clipping ---


def clipped_one_by_one(gradients, max_norm):
    """Each parameter's gradient at most that long, in float64; a stacked layer by itself."""

    def clip(path, gradient):
        if any(getattr(entry, "key", None) == STACK for entry in path):
            return np.stack([clip((), layer) for layer in gradient])
        return gradient * min(1.0, max_norm / max(np.linalg.norm(gradient), 1e-30))

    return jax.tree_util.tree_map_with_path(clip, gradients)


def test_clipping_counts_each_parameter_and_each_stacked_layer(params):
    gradients = random_like(params, 0)
    # The two layers of a stack differ in length, so that one is clipped and one is not.
    stacked = [name for name in leaves(gradients) if f"/{STACK}/" in name]
    assert stacked
    for name, leaf in leaves(gradients).items():
        if name in stacked:
            leaf[0] *= 0.5 / np.linalg.norm(leaf[0])
    clipped, _ = jax.jit(clip_each_parameter(1.0).update)(single(gradients), None)
    wanted = clipped_one_by_one(gradients, 1.0)
    chex.assert_trees_all_close(clipped, wanted, rtol=1e-5, atol=1e-8)
    for name in stacked:
        np.testing.assert_array_equal(leaves(clipped)[name][0], leaves(single(gradients))[name][0])
        assert np.linalg.norm(leaves(clipped)[name][1]) < np.linalg.norm(leaves(gradients)[name][1])


def test_the_norm_of_all_gradients_is_optaxs(params):
    gradients = jax.tree.map(lambda x: jnp.asarray(x) - 0.3, params)
    np.testing.assert_allclose(norm(gradients), optax.tree.norm(gradients), rtol=1e-6)


def test_clipping_leaves_zero_gradients_alone(params):
    zeros = jax.tree.map(np.zeros_like, params)
    clipped, _ = jax.jit(clip_each_parameter(1.0).update)(zeros, None)
    chex.assert_tree_all_finite(clipped)
    chex.assert_trees_all_equal(clipped, zeros)


# --- AdamW ---


@pytest.mark.parametrize("decay_all", [False, True])
def test_only_matrices_decay_unless_all_do(params, decay_all):
    """Which those are is in test_decay.py; here all of a model's parameters are random."""
    values = single(random_like(params, 1))
    optimizer = make_optimizer(steady(decay_all=decay_all))
    zeros = jax.tree.map(np.zeros_like, values)
    updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(values), values)
    decayed = 0
    for name, update in leaves(updates).items():
        decays = decay_all or name.endswith("/kernel")
        wanted = -0.01 * 0.1 * leaves(values)[name] if decays else np.zeros_like(update)
        np.testing.assert_allclose(update, wanted, rtol=1e-5, err_msg=name)
        decayed += decays
    assert 0 < decayed < len(leaves(updates)) or decay_all


@pytest.mark.parametrize("clip", ["none", "global", "parameter"])
def test_three_steps_of_adamw_against_numpy(params, clip):
    exact = jax.tree.map(np.float64, params)
    gradients = [random_like(params, seed, 2.0) for seed in range(3)]
    optimizer = make_optimizer(steady(clip=clip, clip_norm=1.5))
    update = jax.jit(optimizer.update)
    ours, state = single(exact), optimizer.init(single(exact))
    for gradient in gradients:
        updates, state = update(single(gradient), state, ours)
        ours = jax.tree.map(np.add, ours, jax.device_get(updates))

    m, v = (jax.tree.map(np.zeros_like, exact) for _ in range(2))
    decays = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", exact)
    for count, gradient in enumerate(gradients, start=1):
        whole = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(gradient)))
        g = {
            "none": lambda g: g,
            "global": lambda g, whole=whole: jax.tree.map(lambda x: x * min(1.0, 1.5 / whole), g),
            "parameter": lambda g: clipped_one_by_one(g, 1.5),
        }[clip](gradient)
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g**2, v, g)

        def step(p, m, v, decay, count=count):
            adam = m / (1 - 0.9**count) / (np.sqrt(v / (1 - 0.99**count)) + 1e-8)
            return p - 0.01 * (adam + 0.1 * p * decay)

        exact = jax.tree.map(step, exact, m, v, decays)
    chex.assert_trees_all_close(ours, exact, rtol=1e-5, atol=1e-6)


# --- Muon ---

# What Muon trains, and how many of a matrix's axes after that of the stacked layers are inputs.
INPUTS = {"qkv": 1, "out": 2, "up": 1, "down": 1}


def orthogonalized(matrix):
    """Five Newton-Schulz iterations of Jordan's quintic, in float64."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (np.linalg.norm(x) + 1e-8)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


def muon_direction(name, momentum):
    """The step of one stacked parameter: each layer's matrix by itself."""
    inputs = INPUTS[name.split("/")[-2]]
    rows = int(np.prod(momentum.shape[1 : 1 + inputs]))
    flat = momentum.reshape(len(momentum), rows, -1)
    factor = np.sqrt(max(1.0, flat.shape[2] / rows))
    return (factor * np.stack([orthogonalized(layer) for layer in flat])).reshape(momentum.shape)


def test_three_steps_of_muon_against_numpy(params):
    """Nesterov momentum, orthogonalized, on the blocks' matrices; all else moves as by AdamW."""
    exact = leaves(jax.tree.map(np.float64, params))
    gradients = [random_like(params, seed) for seed in range(3)]
    settings = {"muon_learning_rate": 0.03, "momentum": 0.9, "clip": "none"}
    optimizer, adamw = (make_optimizer(steady(name=name, **settings)) for name in ("muon", "adamw"))
    (ours, state), (others, of_adamw) = (
        (single(params), one.init(single(params))) for one in (optimizer, adamw)
    )
    for gradient in gradients:
        updates, state = jax.jit(optimizer.update)(single(gradient), state, ours)
        ours = jax.tree.map(np.add, ours, jax.device_get(updates))
        updates, of_adamw = jax.jit(adamw.update)(single(gradient), of_adamw, others)
        others = jax.tree.map(np.add, others, jax.device_get(updates))
    ours, others = leaves(ours), leaves(others)
    matrices = {name for name in exact if f"/{STACK}/" in name and name.endswith("/kernel")}
    assert len(matrices) == 2 * len(INPUTS)  # encoder and decoder
    for name in exact.keys() - matrices:
        np.testing.assert_array_equal(ours[name], others[name], err_msg=name)
    for name in matrices:
        value, average = exact[name], np.zeros_like(exact[name])
        for count, gradient in enumerate(map(leaves, gradients), start=1):
            average = 0.9 * average + 0.1 * gradient[name]
            ahead = 0.9 * average / (1 - 0.9 ** (count + 1)) + 0.1 * gradient[name] / (
                1 - 0.9**count
            )
            value = value - 0.03 * (muon_direction(name, ahead) + 0.1 * value)
        np.testing.assert_allclose(ours[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_muon_trains_the_matrices_of_the_priors_blocks():
    config = tiny.get_prior("tokenizer", order="raster")
    params = make_task(finalize(config)).abstract_state(make_mesh(devices=jax.devices()[:1])).params
    found = {name for name, axes in leaves_or_none(block_matrices(params)) if axes is not None}
    assert found == {
        f"block_{layer}/{name}" for layer in range(config.prior.layers) for name in INPUTS
    }


def leaves_or_none(tree):
    flat, _ = jax.tree_util.tree_flatten_with_path(
        tree,
        is_leaf=lambda leaf: leaf is None or isinstance(leaf, optax.contrib.MuonDimensionNumbers),
    )
    return [("/".join(entry.key for entry in path), leaf) for path, leaf in flat]


def test_the_discriminator_is_trained_by_adamw():
    config = steady(name="muon")
    with config.unlocked():
        config.discriminator.learning_rate = 0.01
    params = {STACK: {"kernel": jnp.ones((2, 3, 4))}}
    made = [
        make_discriminator_optimizer(config).init(params),
        make_optimizer(steady(), 0.01).init(params),
    ]
    chex.assert_trees_all_equal_structs(*made)


@pytest.mark.usefixtures("eight_devices")
def test_a_muon_step_on_a_mesh_is_that_of_one_device():
    """Its momentum lies as the parameters do, from `abstract_state` on."""
    config = tiny.get_config()
    config.model.update(layers=2)
    config.optimizer.update(name="muon", warmup_steps=0)
    task = make_tokenizer_task(finalize(config))
    state = task.abstract_state(make_mesh(2, 2, 2))
    owners, momentum = leaves(state.params), leaves(state.opt_state[1].inner_states["muon"])
    held = [name for name in owners if any(key.endswith(f"mu/{name}") for key in momentum)]
    assert len(held) == 2 * len(INPUTS)
    for name in held:
        (statistic,) = (leaf for key, leaf in momentum.items() if key.endswith(f"mu/{name}"))
        assert statistic.sharding == owners[name].sharding, name
    assert not owners[held[0]].sharding.is_fully_replicated

    values = single(random_like(state.params, 0))
    gradient = single(random_like(state.params, 1))
    wanted, _ = jax.jit(task.optimizer.update)(gradient, task.optimizer.init(values), values)
    shardings = [
        jax.tree.map(lambda leaf: leaf.sharding, tree) for tree in (state.params, state.opt_state)
    ]
    update = jax.jit(
        task.optimizer.update,
        in_shardings=(shardings[0], shardings[1], shardings[0]),
        out_shardings=tuple(shardings),
    )
    found, _ = update(gradient, task.optimizer.init(values), values)
    chex.assert_trees_all_close(found, wanted, rtol=1e-4, atol=1e-6)


# --- averaging ---


class AveragingTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    @parameterized.parameters((0, 0.9), (90, 9 / 100), (10**7, 0.001))
    def test_averaging(self, step, rate):
        """The decay is min(0.999, (1 + step) / (10 + step)), and 0.999 without warm-up."""
        average, params = {"a": np.float32([1.0, -2.0])}, {"a": np.float32([3.0, 4.0])}
        moved, steady = (
            self.variant(lambda *x, warmup=warmup: update_ema(*x, 0.999, warmup=warmup))(
                average, params, np.int32(step)
            )
            for warmup in (True, False)
        )
        chex.assert_trees_all_close(moved, {"a": np.array([1 + 2 * rate, 6 * rate - 2])}, rtol=1e-5)
        chex.assert_trees_all_close(steady, {"a": np.array([1.002, -1.994])}, rtol=1e-5)
        chex.assert_trees_all_equal_dtypes(moved, average)
