"""Losses of reconstructions. Oracles: closed forms, numpy in float64, LPIPS's own function."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bsq_jax.config import default_config, finalize
from bsq_jax.core.errors import UserError
from bsq_jax.evaluation.networks.lpips import load_lpips, lpips
from bsq_jax.losses import (
    L1,
    L2,
    Perceptual,
    ReconstructionLoss,
    make_entropy_weight,
    make_losses,
    weighted_sum,
)

CLIPS = (3, 4, 4, 6, 3)  # [batch, time, height, width, 3]
REAL = np.arange(4)[None, :] < np.array([[4], [1], [2]])


def two_batches(seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (2, *CLIPS))


class PixelLossesTest(chex.TestCase):
    """L1 and L2, jitted, op by op and on a device that is named."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    @parameterized.named_parameters(("l1", L1, np.abs), ("l2", L2, np.square))
    def test_a_mean_over_real_frames_against_float64(self, kind, error):
        original, reconstruction = two_batches()
        arrays = [x.astype(np.float32) for x in (original, reconstruction)]
        loss = self.variant(lambda *args: kind(1.0)(*args, {}))
        found = [loss(*arrays, None), loss(*arrays, REAL.astype(np.float32))]
        chex.assert_shape(found, ())
        chex.assert_type(found, np.float32)
        errors = error(original - reconstruction)
        np.testing.assert_allclose(found, [errors.mean(), errors[REAL].mean()], rtol=1e-6)

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_black_for_white(self):
        black, white = (np.full((1, 1, 2, 2, 3), value, np.float32) for value in (-1, 1))
        run = self.variant(lambda a, b: (L1(1.0)(a, b, None, {}), L2(1.0)(a, b, None, {})))
        chex.assert_trees_all_equal(run(black, white), (np.float32(2), np.float32(4)))

    @chex.variants(with_jit=True, without_jit=True)
    def test_gradients_in_closed_form_and_none_at_padding(self):
        original, reconstruction = (x.astype(np.float32) for x in two_batches())
        weights, size = REAL.astype(np.float32), REAL.sum() * original[0, 0].size
        there = REAL[:, :, None, None, None]
        difference = (reconstruction - original).astype(np.float64)
        wanted = (there * np.sign(difference) / size, there * 2 * difference / size)
        found = self.variant(
            lambda x: tuple(
                jax.grad(lambda x, kind=kind: kind(1.0)(original, x, weights, {}))(x)
                for kind in (L1, L2)
            )
        )(reconstruction)
        chex.assert_trees_all_close(found, wanted, atol=1e-8, rtol=1e-5)


class WeightedSumTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_the_sum_and_every_value(self):
        original, reconstruction = two_batches()
        arrays = [x.astype(np.float32) for x in (original, reconstruction)]
        terms = (L1(0.7), L2(0.4))
        total, values = self.variant(lambda *x: weighted_sum(terms, *x, None, {}))(*arrays)
        l1 = np.abs(original - reconstruction).mean()
        l2 = np.square(original - reconstruction).mean()
        chex.assert_trees_all_close(values, {"l1": l1, "l2": l2}, rtol=1e-6)
        np.testing.assert_allclose(total, 0.7 * l1 + 0.4 * l2, rtol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    def test_weight_zero_is_watched_without_a_gradient(self):
        """Not even that of a loss whose gradient is not a number."""

        class Root(L1):
            name = "root"

            def __call__(self, original, reconstruction, weights, frozen):
                return jnp.sqrt(super().__call__(original, reconstruction, weights, frozen))

        original = np.zeros(CLIPS, np.float32)
        run = self.variant(
            jax.value_and_grad(
                lambda x: weighted_sum((L2(1.0), Root(0.0)), original, x, None, {}), has_aux=True
            )
        )
        (total, values), gradient = run(original)
        chex.assert_tree_all_finite(gradient)
        chex.assert_trees_all_equal(values, {"l2": np.float32(0), "root": np.float32(0)})
        assert total == 0


@pytest.mark.parametrize("kind", [L1, L2])
@pytest.mark.parametrize(
    "wrong",
    [
        lambda a, b, w: (a, b[:, :-1], w),
        lambda a, b, w: (a[..., :1], b[..., :1], w),
        lambda a, b, w: (a[:, 0], b[:, 0], w),
        lambda a, b, w: (a, b.astype(np.uint8), w),
        lambda a, b, w: (a, b, w[:, :-1]),
        lambda a, b, w: (a, b, w > 0),
    ],
    ids=["time", "channels", "rank", "dtype", "frames", "weights_dtype"],
)
def test_wrong_shapes_and_dtypes_are_errors_of_the_trace(kind, wrong):
    arguments = (*two_batches().astype(np.float32), REAL.astype(np.float32))
    jax.eval_shape(lambda *x: kind(1.0)(*x, {}), *arguments)
    with pytest.raises(AssertionError):
        jax.eval_shape(lambda *x: kind(1.0)(*x, {}), *wrong(*arguments))


def test_a_loss_must_be_a_scalar():
    class PerFrame(ReconstructionLoss):
        name = "per_frame"

        def __call__(self, original, reconstruction, weights, frozen):
            return jnp.mean(original - reconstruction, axis=(2, 3, 4))

    arrays = two_batches().astype(np.float32)
    with pytest.raises(AssertionError):
        jax.eval_shape(lambda *x: weighted_sum((PerFrame(1.0),), *x, None, {}), *arrays)


@pytest.mark.parametrize(("network", "side"), [("vgg16", 16), ("alexnet", 36)])
def test_the_perceptual_loss_is_lpips_of_the_real_frames(network, side):
    """Of two clips, one of which has only one real frame; its gradient too.

    With AlexNet the second clip is moved to the left by a pixel, its last column repeated.
    """
    rng = np.random.default_rng(0)
    original, fake = rng.uniform(-1, 1, (2, 2, 2, side, side, 3)).astype(np.float32)
    real, params = np.array([[True, True], [True, False]]), load_lpips(network)

    def wanted(fake):
        found = []
        for place in (0, 1):
            pair = original[place][real[place]][:, None], fake[place][real[place]][:, None]
            if network == "alexnet" and place:
                pair = [jnp.concatenate([x[..., 1:, :], x[..., -1:, :]], axis=-2) for x in pair]
            found.append(lpips(params, *pair, net=network))
        return jnp.mean(jnp.concatenate(found))

    def ours(fake):
        loss = Perceptual(1.0, jnp.float32, network)
        return loss(original, fake, real.astype(np.float32), {loss.needs.name: params})

    found = jax.jit(jax.value_and_grad(ours))(fake)
    chex.assert_tree_all_finite(found)
    chex.assert_trees_all_close(found, jax.jit(jax.value_and_grad(wanted))(fake), atol=1e-6)
    assert not np.asarray(found[1])[~real].any()


@pytest.mark.parametrize("start", [0, 3])
def test_a_loss_counts_from_its_start_on(start):
    """Its value and gradient are 0 before, and then those of a loss that starts at once."""
    rng = np.random.default_rng(0)
    original, fake = rng.uniform(-1, 1, (2, 1, 1, 36, 36, 3)).astype(np.float32)
    frozen = {"alexnet": load_lpips("alexnet")}

    @jax.jit
    def run(step, fake):
        terms = (L2(1.0), Perceptual(0.5, jnp.float32, "alexnet", start))
        return jax.value_and_grad(
            lambda x: weighted_sum(terms, original, x, None, frozen, step), has_aux=True
        )(fake)

    def at_once(terms):
        return jax.value_and_grad(
            lambda x: weighted_sum(terms, original, x, None, frozen), has_aux=True
        )(fake)

    (total, values), gradient = at_once((L2(1.0), Perceptual(0.5, jnp.float32, "alexnet")))
    assert values["perceptual"] > 0.01
    for step in (3, 4):
        chex.assert_trees_all_close(
            run(step, fake), ((total, values), gradient), rtol=1e-5, atol=1e-8
        )
    (total, values), gradient = run(2, fake)
    (l2, _), l2_gradient = at_once((L2(1.0),))
    assert (values["perceptual"] == 0) == bool(start)
    if start:
        chex.assert_trees_all_close((total, gradient), (l2, l2_gradient), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["vgg16", "alexnet"])
def test_the_network_of_the_perceptual_loss_is_declared_as_it_is_loaded(name):
    network = Perceptual(1.0, jnp.float32, name).needs
    assert network.name == name
    loaded = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), network.load())
    assert loaded == network.abstract()


def config_of(**loss):
    config = default_config()
    config.loss.update(**loss)
    return finalize(config)


def test_losses_of_a_config():
    """Weights by name; what needs a network is left out at weight 0, the others are watched."""
    made = {each.name: each for each in make_losses(config_of(l1=0.5, l2=0.0, perceptual=0.2))}
    assert {name: each.weight for name, each in made.items()} == {
        **{"l1": 0.5, "l2": 0.0, "perceptual": 0.2}
    }
    dtype = jnp.dtype(default_config().model.dtype)
    assert made["perceptual"] == Perceptual(0.2, dtype, "vgg16", 0)
    later = config_of(perceptual=0.1, perceptual_network="alexnet", perceptual_start=7)
    assert make_losses(later)[-1] == Perceptual(0.1, dtype, "alexnet", 7)
    assert dataclasses.replace(made["l1"], weight=1.0) == L1(1.0)
    assert [each.name for each in make_losses(config_of(perceptual=0.0))] == ["l1", "l2"]


@pytest.mark.parametrize("network", ["vgg16", "alexnet"])
@pytest.mark.parametrize("side", ["model", "data"])
def test_frames_too_small_for_lpips_are_told_at_the_start(side, network):
    config = default_config()
    config.loss.perceptual_network = network
    if side == "model":
        config.model.image_size = (8, 256)
    else:
        config.data.sizes = ("256x256", "8x512")
    least = {"vgg16": 16, "alexnet": 31}[network]
    message = f"with {network} needs .* at least {least} pixels a side, not 8x.*: set loss.perc"
    with pytest.raises(UserError, match=message) as error:
        make_losses(config)
    assert "\n" not in str(error.value)
    config.loss.perceptual = 0.0
    assert [each.name for each in make_losses(config)] == ["l1", "l2"]


class EntropyWeightTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(
        (0, 3.0), (500, 2.5), (1000, 2.0), (1999, 1.001), (2000, 1.0), (10**6, 1.0)
    )
    def test_ramp(self, step, factor):
        ramp = make_entropy_weight(
            config_of(entropy=0.2, entropy_ramp_start=3.0, entropy_ramp_steps=2000)
        )
        found = self.variant(ramp)(jnp.int32(step))
        np.testing.assert_allclose(found, 0.2 * factor, rtol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    def test_a_ramp_of_no_steps_is_at_its_end(self):
        ramp = make_entropy_weight(config_of(entropy=0.2, entropy_ramp_steps=0))
        for step in (0, 7):
            np.testing.assert_allclose(self.variant(ramp)(jnp.int32(step)), 0.2, rtol=1e-6)
