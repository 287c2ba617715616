"""Losses. Oracle: values computed by hand, and float64 numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from bsq_jax import losses


def test_l1_and_l2_are_means_over_everything():
    rng = np.random.default_rng(0)
    target, prediction = rng.uniform(-1, 1, (2, 3, 2, 4, 4, 3))
    ours = [f(jnp.asarray(target), jnp.asarray(prediction)) for f in (losses.l1, losses.l2)]
    assert [loss.shape for loss in ours] == [(), ()]
    np.testing.assert_allclose(ours[0], np.abs(target - prediction).mean(), rtol=1e-6)
    np.testing.assert_allclose(ours[1], ((target - prediction) ** 2).mean(), rtol=1e-6)


def test_black_for_white():
    black, white = jnp.full((1, 1, 2, 2, 3), -1.0), jnp.ones((1, 1, 2, 2, 3))
    assert losses.l1(black, white) == 2
    assert losses.l2(black, white) == 4


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 3), (500, 2.5), (1000, 2), (1999, 1.001), (2000, 1), (10**6, 1)]
)
def test_ramp(step, factor):
    np.testing.assert_allclose(losses.ramp(jnp.int32(step), 3.0, 2000), factor, rtol=1e-6)


def test_a_ramp_of_no_steps_is_one():
    assert losses.ramp(jnp.int32(0), 3.0, 0) == 1
    assert losses.ramp(jnp.int32(7), 3.0, 0) == 1
