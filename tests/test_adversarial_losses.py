"""Losses of generator and discriminator. Oracles: closed forms and numpy in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bsq_jax import losses
from bsq_jax.core.errors import UserError

KINDS = tuple((kind, kind) for kind in losses.KINDS)
REAL = np.arange(3)[None, :] < np.array([[1], [3], [2], [3]])  # samples that are not padding


def softplus(x):
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)


# What the generator minimises of the logits of a reconstruction, and the discriminator of those of
# an original and of a reconstruction.
OF_GENERATOR = {"non_saturating": lambda d: softplus(-d), "hinge": lambda d: -d}
OF_DISCRIMINATOR = {
    "non_saturating": lambda real, fake: (softplus(-real) + softplus(fake)) / 2,
    "hinge": lambda real, fake: (np.maximum(0, 1 - real) + np.maximum(0, 1 + fake)) / 2,
}


def two_logits(*patches, seed=0):
    """Logits of originals and of reconstructions, float64 [4, 3, *patches]."""
    return 3 * np.random.default_rng(seed).normal(size=(2, 4, 3, *patches))


def single(*arrays):
    return [np.float32(x) for x in arrays]


class LogitLossesTest(chex.TestCase):
    """Jitted, op by op and on a device that is named; with padding and without."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    @parameterized.named_parameters(*KINDS)
    def test_means_over_samples_that_are_no_padding(self, kind):
        for patches in ((), (3, 2)):
            real, fake = two_logits(*patches)
            found = self.variant(
                lambda real, fake, weights: (
                    losses.generator_loss(kind, fake),
                    losses.generator_loss(kind, fake, weights),
                    losses.discriminator_loss(kind, real, fake),
                    losses.discriminator_loss(kind, real, fake, weights),
                )
            )(*single(real, fake, REAL))
            first, second = OF_GENERATOR[kind](fake), OF_DISCRIMINATOR[kind](real, fake)
            wanted = (first.mean(), first[REAL].mean(), second.mean(), second[REAL].mean())
            chex.assert_shape(found, ())
            chex.assert_trees_all_close(found, wanted, rtol=2e-6)

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_lecam(self):
        real, fake = two_logits()
        anchors = np.array([0.5, -0.25])
        found = self.variant(
            lambda real, fake, anchors, weights: (
                losses.lecam(real, fake, anchors),
                losses.lecam(real, fake, anchors, weights),
            )
        )(*single(real, fake, anchors, REAL))
        each = np.maximum(real - anchors[1], 0) ** 2 + np.maximum(anchors[0] - fake, 0) ** 2
        chex.assert_trees_all_close(found, (each.mean(), each[REAL].mean()), rtol=1e-5)

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.named_parameters(*KINDS)
    def test_generator_and_discriminator_want_the_opposite(self, kind):
        """The generator raises the logits of reconstructions, the discriminator lowers them."""
        zero = np.zeros((4, 1), np.float32)
        of_generator = self.variant(jax.grad(lambda x: losses.generator_loss(kind, x)))(zero)
        real, fake = self.variant(
            jax.grad(lambda r, f: losses.discriminator_loss(kind, r, f), argnums=(0, 1))
        )(zero, zero)
        assert np.all(of_generator < 0)
        assert np.all(np.asarray(real) < 0)
        assert np.all(np.asarray(fake) > 0)

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.named_parameters(*KINDS)
    def test_large_logits_stay_finite(self, kind):
        huge = np.float32([[1e4, -1e4]])
        run = self.variant(
            lambda x: (
                jax.value_and_grad(lambda x: losses.generator_loss(kind, x))(x),
                jax.value_and_grad(lambda x: losses.discriminator_loss(kind, x, -x))(x),
            )
        )
        chex.assert_tree_all_finite(run(huge))


def test_an_unknown_kind_is_named():
    for loss in (losses.generator_loss, lambda k, x: losses.discriminator_loss(k, x, x)):
        with pytest.raises(UserError, match=r"'hing'.* non_saturating, hinge"):
            loss("hing", jnp.zeros((2, 1)))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda r, f, w: (r, f[:, :-1], w),
        lambda r, f, w: (r[:, 0], f[:, 0], None),
        lambda r, f, w: (r, f, w[:, :-1]),
        lambda r, f, w: (r, f, w > 0),
        lambda r, f, w: (r > 0, f > 0, w),
    ],
    ids=["shapes", "rank", "weights", "weights_dtype", "dtype"],
)
def test_wrong_shapes_and_dtypes_are_errors_of_the_trace(wrong):
    right = single(*two_logits(), REAL)
    anchors = np.zeros(2, np.float32)
    for loss in (
        lambda *x: losses.discriminator_loss("hinge", *x),
        lambda real, fake, weights: losses.lecam(real, fake, anchors, weights),
    ):
        jax.eval_shape(loss, *right)
        with pytest.raises(AssertionError):
            jax.eval_shape(loss, *wrong(*right))


class R1Test(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_r1_of_a_linear_discriminator(self):
        """For logits w.x the penalty is |w|^2."""
        rng = np.random.default_rng(1)
        x, w = rng.normal(size=(3, 2, 4, 4, 3)), rng.normal(size=(4, 4, 3))

        def penalty(w, x):
            return losses.r1_penalty(lambda p: jnp.einsum("bthwc,hwc->bt", p, w), x)

        value, gradient = self.variant(jax.value_and_grad(penalty))(*single(w, x))
        np.testing.assert_allclose(value, np.sum(w**2), rtol=1e-5)
        # The second-order gradient, which a penalty that is only logged would not have.
        chex.assert_trees_all_close(gradient, 2 * w, rtol=1e-5)

    @chex.variants(with_jit=True, without_jit=True)
    def test_r1_of_a_quadratic_discriminator(self):
        """For logits a |x|^2 / 2 of clips it is the mean of a^2 |x|^2."""
        x = np.random.default_rng(1).normal(size=(3, 2, 4, 4, 3))

        def penalty(a, x):
            def logits(clips):  # one sample a clip
                return 0.5 * a * jnp.sum(jnp.square(clips), axis=(2, 3, 4)).sum(1, keepdims=True)

            return losses.r1_penalty(logits, x)

        norm = np.mean(np.sum(x**2, axis=(1, 2, 3, 4)))
        value, gradient = self.variant(jax.value_and_grad(penalty))(*single(0.7, x))
        np.testing.assert_allclose(value, 0.49 * norm, rtol=1e-5)
        np.testing.assert_allclose(gradient, 1.4 * norm, rtol=1e-5)

    @chex.variants(with_jit=True, without_jit=True)
    def test_r1_counts_real_frames_alone(self):
        x = np.random.default_rng(4).normal(size=(4, 3, 4, 4, 3)).astype(np.float32)

        def logits(pixels):  # two a frame
            powers = jnp.stack([jnp.square(pixels), pixels**3], axis=-1)
            return jnp.sum(powers, axis=(2, 3, 4))

        run = self.variant(lambda x, w: losses.r1_penalty(logits, x, w))
        kept = np.float64(x[REAL])
        wanted = np.mean(np.sum((2 * kept + 3 * kept**2) ** 2, axis=(1, 2, 3)))
        np.testing.assert_allclose(run(x, np.float32(REAL)), wanted, rtol=1e-5)
        every = losses.r1_penalty(logits, jnp.asarray(x[REAL][:, None]))
        np.testing.assert_allclose(every, wanted, rtol=1e-5)

    @chex.variants(with_jit=True, without_jit=True)
    def test_r1_leaves_out_gradients_at_padding(self):
        """Those of a statistic over all frames: each logit is the sum of all pixels."""
        x = np.zeros((2, 3, 2, 2, 3), np.float32)
        weights = np.float32([[1, 0, 0], [1, 1, 0]])

        def logits(pixels):
            return jnp.broadcast_to(jnp.sum(pixels), (2, 3))

        # Three logits count, each with a gradient of 1 at every pixel; so do 3 frames of 12 values.
        run = self.variant(lambda x, w: losses.r1_penalty(logits, x, w))
        assert run(x, weights) == 3 * 12 * 3**2 / 3
        assert losses.r1_penalty(logits, jnp.asarray(x)) == 6 * 12 * 6**2 / 6


class AdaptiveWeightTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_the_ratio_of_the_norms(self):
        a, b = np.full((2, 3), 2.0, np.float32), np.full((2, 3), 0.5, np.float32)
        weight = self.variant(losses.adaptive_weight)
        np.testing.assert_allclose(weight(a, b), np.sqrt(24) / (np.sqrt(1.5) + 1e-4), rtol=1e-6)
        assert weight(a, 0 * b) == 1e4

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(1e-30, 1e-3, 1.0, 1e25, 1e37)
    def test_gradients_whose_squares_leave_float32(self, size):
        a, b = (np.float32(x * size) for x in np.random.default_rng(0).normal(size=(2, 4, 5)))
        norms = [np.linalg.norm(np.float64(x)) for x in (a, b)]
        weight = self.variant(losses.adaptive_weight)
        np.testing.assert_allclose(weight(a, b), norms[0] / (norms[1] + 1e-4), rtol=1e-5)
        alone = min(1e4, norms[0] / 1e-4)
        np.testing.assert_allclose(weight(a, 0 * b), alone, rtol=1e-5)
        assert weight(0 * a, b) == 0
