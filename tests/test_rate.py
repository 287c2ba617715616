"""The rate in the loss: code lengths, the small prior's causality, its training, who has levels."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsq_jax.config import default_config, finalize
from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import make_mesh
from bsq_jax.losses.rate import code_length
from bsq_jax.models.level_prior import LevelPrior
from bsq_jax.quantizers import make_quantizer
from bsq_jax.quantizers.bits import to_index
from bsq_jax.training.tasks.tokenizer import make_tokenizer_task


def config_of(**quantizer):
    config = default_config()
    config.model.update(
        image_size=(16, 16), bits=6, width=16, layers=1, heads=2, head_hidden=0, dtype="float32"
    )
    config.quantizer.update(quantizer)
    if quantizer["name"] in ("fsq", "vq"):
        config.model.bits = 0  # follow from the levels or codes
    config.loss.update(l1=0.0, l2=1.0, entropy=0.0, perceptual=0.0, adversarial=0.0)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=2)
    config.train.update(steps=50, batch_size=4)
    config.loss.update(rate=0.05, rate_ramp_steps=0)
    return config


FSQ = {"name": "fsq", "levels": (2, 2), "stages": 3}
KINDS = {
    "bsq": {"name": "bsq"},
    "bsq, 2 stages": {"name": "bsq", "stages": 2},
    "lfq, 3 stages": {"name": "lfq", "stages": 3},
    "fsq": {"name": "fsq", "levels": (4, 4, 4)},
    "fsq, odd": {"name": "fsq", "levels": (3, 3, 3)},
    "fsq, 3 stages": FSQ,
}


def float64_length(logits, levels, count):
    """Bits of one token of C channels, from the definition."""
    total = 0.0
    for row, level in zip(np.asarray(logits, np.float64), levels, strict=True):
        share = np.exp(row - row.max())
        share /= share.sum()
        size = len(row) // count
        total -= np.log2(share[level // size * size : (level // size + 1) * size].sum())
    return total


@pytest.mark.smoke
@pytest.mark.parametrize("count", [2, 4, 8])
def test_the_code_length_is_that_of_the_groups_of_levels(count):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 3, 8))
    levels = rng.integers(0, 8, (5, 3))
    found = code_length(jnp.asarray(logits), jnp.asarray(levels, jnp.float32), count)
    wanted = [float64_length(*each, count) for each in zip(logits, levels, strict=True)]
    np.testing.assert_allclose(found.coded, wanted, rtol=1e-5)
    if count == 8:  # of whole levels
        np.testing.assert_allclose(found.soft, wanted, rtol=1e-5)


def test_its_slope_is_what_the_next_level_would_save():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(7, 2, 8))
    below = rng.integers(0, 7, (7, 2))
    levels = jnp.asarray(below + 0.3, jnp.float32)
    slope = jax.grad(lambda at: code_length(jnp.asarray(logits), at, 8).soft.sum())(levels)
    lengths = -np.log2(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    index = np.ogrid[:7, :2]
    wanted = lengths[(*index, below + 1)] - lengths[(*index, below)]
    np.testing.assert_allclose(slope, wanted, rtol=2e-4, atol=1e-5)


def test_only_the_coded_length_teaches_the_prior():
    logits, levels = jnp.zeros((1, 2, 4)), jnp.full((1, 2), 1.2)

    def of(name):
        return jax.grad(lambda *given: getattr(code_length(*given, 4), name).sum(), argnums=(0, 1))(
            logits, levels
        )

    assert jnp.any(of("coded")[0] != 0)
    assert not jnp.any(of("coded")[1])
    assert not jnp.any(of("soft")[0])


@pytest.mark.parametrize("kind", KINDS)
def test_levels_are_those_of_the_bits(kind):
    """The nearest level of a channel is the place of its code among all codes of the channel."""
    quantizer = make_quantizer(finalize(config_of(**KINDS[kind])))
    latents = jax.random.normal(jax.random.key(0), (1, 400, quantizer.channels))
    found = quantizer.encode(latents)
    count = quantizer.scalar_levels
    levels = np.clip(np.round(found.levels), 0, count - 1).astype(int)
    values = np.asarray(quantizer.decode(found.bits))
    scale = np.unique(np.round(values, 5))
    assert len(scale) == count
    np.testing.assert_allclose(np.diff(scale), np.diff(scale)[0], rtol=1e-3)
    np.testing.assert_array_equal(np.searchsorted(scale, np.round(values, 5)), levels)


def test_residual_fsq_uses_all_its_levels():
    """The outer cells are as wide as the others, so that stages nest."""
    quantizer = make_quantizer(finalize(config_of(**FSQ)))
    points = jnp.repeat(jnp.linspace(-0.999, 0.999, 800)[None, :, None], 2, axis=-1)
    bits = quantizer.nearest(points)
    used = np.bincount(np.asarray(to_index(bits[0, :, ::2])), minlength=8)
    np.testing.assert_allclose(used / used.sum(), 1 / 8, atol=0.01)
    reach = quantizer.project(jnp.array([[-50.0, 50.0]]))
    np.testing.assert_allclose(reach, [[-1.0, 1.0]])


def test_the_small_prior_sees_earlier_tokens_and_channels_alone():
    prior = LevelPrior(channels=3, levels=4)
    levels = jax.random.randint(jax.random.key(0), (1, 4, 5, 3), 0, 4)
    params = prior.init(jax.random.key(1), levels)
    logits = prior.apply(params, levels)
    chex.assert_shape(logits, (1, 4, 5, 3, 4))
    changed = levels.at[0, 1, 2, 1].add(1) % 4
    moved = np.any(np.asarray(prior.apply(params, changed) != logits)[0], axis=-1)
    assert moved[1, 2].tolist() == [False, False, True]
    later = np.zeros((4, 5), bool)
    later[1, 3:5] = later[2, 1:4] = later[3, 2] = True
    np.testing.assert_array_equal(np.delete(moved.any(-1), 7), np.delete(later, 7))


@pytest.fixture(scope="module")
def trained():
    """The metrics of 40 steps on one batch, with a small and a large weight."""
    found = {}
    pixels = jax.random.randint(jax.random.key(3), (4, 1, 16, 16, 3), 0, 255).astype(jnp.uint8)
    for weight in (1e-9, 0.5):
        config = config_of(**FSQ)
        config.loss.rate = weight
        task = make_tokenizer_task(finalize(config))
        mesh = make_mesh(1, 1, 1)
        state, step = task.init_state(mesh), jax.jit(task.train_step)
        history = []
        for _ in range(40):
            state, metrics = step(state, {"pixels": pixels}, {})
            history.append(metrics)
        found[weight] = state, history
    return found


def test_a_weight_lowers_the_rate(trained):
    free, paid = (history[-1]["bits_per_pixel"] for _, history in trained.values())
    assert paid < 0.7 * free


def test_the_prior_learns_whatever_the_weight(trained):
    _, history = trained[1e-9]
    first, last = (history[at]["bits_per_pixel"] for at in (0, -1))
    assert first == pytest.approx(6 / 64, rel=0.2)  # nothing is known at first
    assert last < first


def test_the_rate_is_in_the_loss(trained):
    _, history = trained[0.5]
    first = history[0]
    assert first["loss"] == pytest.approx(
        float(first["l2"] + 0.5 * first["bits_per_pixel"]), rel=0.05
    )


def test_the_gradient_is_that_of_the_whole_loss():
    """Of the network's last latent layer, against finite differences of the soft rate."""
    config = config_of(**FSQ)
    config.loss.rate = 1e4  # so that float32 resolves the differences
    task = make_tokenizer_task(finalize(config))
    state = task.init_state(make_mesh(1, 1, 1))
    pixels = jax.random.uniform(jax.random.key(5), (2, 1, 16, 16, 3), minval=-1.0)

    def rate_of(shift):
        params = jax.tree.map(lambda leaf: leaf, state.params)
        params["to_latent"]["bias"] = params["to_latent"]["bias"] + shift * jnp.array([1.0, 0.0])
        quantized = task.reconstruct(params, pixels).quantized
        found = task.rate.rate(state.rate.params, quantized, jnp.int32(9), None, None)
        return found.loss

    slope = jax.grad(rate_of)(0.0)
    step = 1e-3
    wanted = (rate_of(step) - rate_of(-step)) / (2 * step)
    np.testing.assert_allclose(slope, wanted, rtol=0.02)


def test_micro_batches_give_the_same_step():
    pixels = jax.random.randint(jax.random.key(3), (4, 1, 16, 16, 3), 0, 255).astype(jnp.uint8)
    found = []
    for count in (1, 2):
        config = config_of(**FSQ)
        config.train.accumulate = count
        task = make_tokenizer_task(finalize(config))
        state = task.init_state(make_mesh(1, 1, 1))
        found.append(jax.jit(task.train_step)(state, {"pixels": pixels}, {})[0])
    chex.assert_trees_all_close(found[0].rate.params, found[1].rate.params, atol=2e-4)


def test_short_tokens_cost_less_or_more_by_the_growth():
    config = config_of(**FSQ)
    config.model.min_bits = 2
    training = make_tokenizer_task(finalize(config)).rate
    quantizer = make_quantizer(config)
    quantized = quantizer.encode(jax.random.normal(jax.random.key(0), (1, 1, 2, 2, 2)))
    params = training.network.init()

    def loss(kept, growth):
        changed = dataclasses.replace(training, growth=growth)
        return float(changed.rate(params, quantized, jnp.int32(0), jnp.array([kept]), None).loss)

    plain = [loss(kept, 1.0) for kept in (2, 4, 6)]
    assert plain[0] < plain[1] < plain[2]
    assert loss(4, 3.0) == pytest.approx(3 * plain[1], rel=1e-5)
    assert loss(2, 3.0) == pytest.approx(9 * plain[0], rel=1e-5)


@pytest.mark.parametrize(
    "quantizer", [{"name": "vq", "codes": 64}, {"name": "fsq", "levels": (8, 4, 2)}]
)
def test_quantizers_without_levels_are_refused(quantizer):
    with pytest.raises(UserError, match=r"loss.rate=0.05 is for quantizers that choose a level"):
        make_tokenizer_task(finalize(config_of(**quantizer)))
