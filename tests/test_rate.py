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
    np.testing.assert_allclose(found.coded.sum(-1), wanted, rtol=1e-5)
    np.testing.assert_array_equal(found.coded, found.soft)


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


def test_far_outside_the_levels_nothing_is_gained():
    logits = jnp.array([[[0.0, 3.0]]])

    def soft(level):
        return code_length(logits, jnp.full((1, 1), level), 2).soft[0, 0]

    wanted = 3 / -np.log(2)  # what the second level saves
    for level, slope in {-0.6: 0, -0.4: wanted, 0.3: wanted, 1.4: wanted, 1.6: 0, 9.0: 0}.items():
        assert jax.grad(soft)(level) == pytest.approx(slope, rel=1e-5)
        assert soft(level) >= 0


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


def test_a_latents_gradient_is_the_weight_times_what_the_next_level_saves():
    config = config_of(**FSQ)
    training = make_tokenizer_task(finalize(config)).rate
    quantizer = make_quantizer(finalize(config))
    params = training.network.init()
    latents = jax.random.normal(jax.random.key(0), (1, 1, 1, 1, 2))
    points = quantizer.project(latents)

    def loss(points):
        quantized = quantizer.encode_points(points)
        return training.rate(params, quantized, jnp.int32(0), None, None).loss

    found = quantizer.encode_points(points)
    chosen = np.clip(np.round(found.levels), 0, 7).astype(np.int32)
    logits = np.asarray(training.prior.apply({"params": params}, chosen[0]), np.float64)[0, 0, 0]
    lengths = -np.log2(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    below = np.clip(np.floor(found.levels), 0, 6).astype(int).ravel()
    saved = lengths[[0, 1], below + 1] - lengths[[0, 1], below]
    per_point = 7 / 2 / quantizer.outer_level
    slope = jax.grad(loss)(points).ravel()
    np.testing.assert_allclose(slope, 0.05 * saved * per_point / 64, rtol=1e-4)


@pytest.mark.parametrize(("frames", "pixels"), [(1, 1), (2, 5), (3, 9)])
def test_the_first_frame_of_tokens_is_of_one_frame(frames, pixels):
    """With tokens of 4 frames a clip of 1 + 4 k frames has 1 + k frames of tokens."""
    config = config_of(**FSQ)
    config.model.update(patch_time=4, frames=9)
    training = make_tokenizer_task(finalize(config)).rate
    params = training.network.init()
    quantizer = make_quantizer(finalize(config))
    quantized = quantizer.encode(jax.random.normal(jax.random.key(0), (2, frames, 2, 2, 2)))
    found = training.rate(params, quantized, jnp.int32(0), None, None).bits_per_pixel
    image = dataclasses.replace(training, patch_time=1)
    each = image.rate(params, quantized, jnp.int32(0), None, None).bits_per_pixel
    assert found == pytest.approx(float(each) * frames / pixels, rel=1e-5)


def test_bits_that_the_decoder_does_not_get_cost_nothing():
    """Of signs without stages the first bits are kept, one for each channel."""
    config = config_of(name="bsq")
    config.model.min_bits = 2
    training = make_tokenizer_task(finalize(config)).rate
    quantizer = make_quantizer(finalize(config))
    quantized = quantizer.encode(jax.random.normal(jax.random.key(0), (1, 1, 2, 2, 6)))
    params = training.network.init()
    logits = training.prior.apply({"params": params}, quantized.bits[0].astype(jnp.int32))
    lengths = code_length(logits, quantized.levels[0], 2).coded.mean((0, 1, 2))
    for kept in (2, 5, 6):
        loss = training.rate(params, quantized, jnp.int32(0), jnp.array([kept]), None).loss
        assert loss == pytest.approx(0.05 * float(lengths[:kept].sum()) / 64, rel=1e-4)


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
    quantizer = make_quantizer(finalize(config))
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
