"""Losses of the two players. Oracles: float64 numpy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsq_jax import losses
from bsq_jax.core.errors import UserError


@pytest.fixture
def logits():
    rng = np.random.default_rng(0)
    return 3 * rng.normal(size=(4, 2)), 3 * rng.normal(size=(4, 2))


def softplus(x):
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)


def test_non_saturating(logits):
    real, fake = logits
    np.testing.assert_allclose(
        losses.generator_loss("non_saturating", jnp.asarray(fake)),
        softplus(-fake).mean(),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        losses.discriminator_loss("non_saturating", jnp.asarray(real), jnp.asarray(fake)),
        (softplus(-real).mean() + softplus(fake).mean()) / 2,
        rtol=1e-6,
    )


def test_hinge(logits):
    real, fake = logits
    np.testing.assert_allclose(
        losses.generator_loss("hinge", jnp.asarray(fake)), -fake.mean(), rtol=1e-5
    )
    np.testing.assert_allclose(
        losses.discriminator_loss("hinge", jnp.asarray(real), jnp.asarray(fake)),
        (np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean()) / 2,
        rtol=1e-6,
    )


@pytest.mark.parametrize("kind", losses.KINDS)
def test_each_player_pulls_its_own_way(kind):
    """The generator raises the logits of its pictures, the discriminator lowers them."""
    zero = jnp.zeros((4, 1))
    assert np.all(jax.grad(lambda x: losses.generator_loss(kind, x))(zero) < 0)
    real, fake = jax.grad(lambda r, f: losses.discriminator_loss(kind, r, f), argnums=(0, 1))(
        zero, zero
    )
    assert np.all(np.asarray(real) < 0)
    assert np.all(np.asarray(fake) > 0)


def test_an_unknown_kind_is_named():
    for loss in (losses.generator_loss, lambda k, x: losses.discriminator_loss(k, x, x)):
        with pytest.raises(UserError, match=r"'hing': it must be one of non_saturating, hinge"):
            loss("hing", jnp.zeros(2))


def test_large_logits_stay_finite():
    huge = jnp.asarray([[1e4, -1e4]])
    for kind in losses.KINDS:
        value, gradient = jax.value_and_grad(lambda x, k=kind: losses.generator_loss(k, x))(huge)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_r1_of_a_linear_and_of_a_quadratic_discriminator():
    """For logits w.x the penalty is |w|^2; for a |x|^2 / 2 it is the mean of a^2 |x|^2."""
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(3, 2, 4, 4, 3)), rng.normal(size=(4, 4, 3))

    def linear(w):
        def logits(pixels):
            return jnp.einsum("bthwc,hwc->bt", pixels, w)

        return losses.r1_penalty(logits, jnp.asarray(x, jnp.float32))

    value, gradient = jax.value_and_grad(linear)(jnp.asarray(w, jnp.float32))
    np.testing.assert_allclose(value, np.sum(w**2), rtol=1e-5)
    # The second-order gradient, which a penalty that is only logged would not have.
    np.testing.assert_allclose(gradient, 2 * w, rtol=1e-5)

    def quadratic(a):
        def logits(clips):  # one sample a clip
            return 0.5 * a * jnp.sum(jnp.square(clips), axis=(2, 3, 4)).sum(1, keepdims=True)

        return losses.r1_penalty(logits, jnp.asarray(x, jnp.float32))

    norm = np.mean(np.sum(x**2, axis=(1, 2, 3, 4)))
    value, gradient = jax.value_and_grad(quadratic)(jnp.float32(0.7))
    np.testing.assert_allclose(value, 0.49 * norm, rtol=1e-5)
    np.testing.assert_allclose(gradient, 1.4 * norm, rtol=1e-5)


def test_lecam(logits):
    real, fake = logits
    anchors = np.asarray([0.5, -0.25])
    wanted = np.mean(np.maximum(real - anchors[1], 0) ** 2)
    wanted += np.mean(np.maximum(anchors[0] - fake, 0) ** 2)
    value = losses.lecam(jnp.asarray(real), jnp.asarray(fake), jnp.asarray(anchors))
    np.testing.assert_allclose(value, wanted, rtol=1e-5)


@pytest.mark.parametrize("kind", losses.KINDS)
@pytest.mark.parametrize("patches", [(), (3, 2)])
def test_padding_might_as_well_not_be_there(kind, patches):
    rng = np.random.default_rng(3)
    real, fake = (jnp.asarray(rng.normal(0, 3, (4, 3, *patches)), jnp.float32) for _ in range(2))
    weights = np.arange(3)[None, :] < np.array([[1], [3], [2], [3]])
    kept = [x[weights][:, None] for x in (real, fake)]
    anchors = jnp.asarray([0.5, -0.25])
    weighted = jnp.asarray(weights, jnp.float32)
    for ours, wanted in (
        (losses.generator_loss(kind, fake, weighted), losses.generator_loss(kind, kept[1])),
        (
            losses.discriminator_loss(kind, real, fake, weighted),
            losses.discriminator_loss(kind, *kept),
        ),
        (losses.lecam(real, fake, anchors, weighted), losses.lecam(*kept, anchors)),
    ):
        np.testing.assert_allclose(ours, wanted, rtol=1e-5)


def test_r1_counts_real_frames_alone():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(4, 3, 4, 4, 3)).astype(np.float32)
    weights = np.arange(3)[None, :] < np.array([[1], [3], [2], [3]])

    def logits(pixels):  # two a frame
        powers = jnp.stack([jnp.square(pixels), pixels**3], axis=-1)
        return jnp.sum(powers, axis=(2, 3, 4))

    value = losses.r1_penalty(logits, jnp.asarray(x), jnp.asarray(weights, jnp.float32))
    kept = np.float64(x[weights])
    wanted = np.mean(np.sum((2 * kept + 3 * kept**2) ** 2, axis=(1, 2, 3)))
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    every = losses.r1_penalty(logits, jnp.asarray(x[weights][:, None]))
    np.testing.assert_allclose(every, wanted, rtol=1e-5)


def test_adaptive_weight():
    a, b = jnp.full((2, 3), 2.0), jnp.full((2, 3), 0.5)
    np.testing.assert_allclose(
        losses.adaptive_weight(a, b), np.sqrt(24) / (np.sqrt(1.5) + 1e-4), rtol=1e-6
    )
    assert losses.adaptive_weight(a, jnp.zeros((2, 3))) == 1e4


def test_r1_leaves_out_gradients_at_padding():
    """Which a statistic over all frames has; closed form: logit = sum of all pixels, of each."""
    x = jnp.zeros((2, 3, 2, 2, 3))
    weights = jnp.asarray([[1.0, 0, 0], [1, 1, 0]])

    def logits(pixels):
        return jnp.broadcast_to(jnp.sum(pixels), (2, 3))

    # Three logits count, each with a gradient of 1 at every pixel; so do 3 frames of 12 values.
    assert losses.r1_penalty(logits, x, weights) == 3 * 12 * 3**2 / 3
    assert losses.r1_penalty(logits, x) == 6 * 12 * 6**2 / 6


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e25, 1e37])
def test_adaptive_weight_of_gradients_whose_squares_leave_float32(size):
    rng = np.random.default_rng(0)
    a, b = (np.float32(x * size) for x in rng.normal(size=(2, 4, 5)))
    norms = [np.linalg.norm(np.float64(x)) for x in (a, b)]
    wanted = norms[0] / (norms[1] + 1e-4)
    np.testing.assert_allclose(losses.adaptive_weight(a, b), wanted, rtol=1e-5)
    assert losses.adaptive_weight(a, 0 * b) == pytest.approx(min(1e4, norms[0] / 1e-4), rel=1e-5)
    assert losses.adaptive_weight(0 * a, b) == 0
