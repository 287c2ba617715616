"""Building blocks of the frozen networks. Oracle: float64 numpy and numbers worked out by hand."""

import functools

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bsq_jax.evaluation.networks.layers import (
    average_unpadded,
    conv,
    conv_video,
    fold,
    max_pool,
    resize,
)


def test_folded_normalisation():
    """Convolution, then normalisation, both written out in float64."""
    rng = np.random.default_rng(0)
    net = rng.normal(size=(2, 5, 6, 3))
    kernel = rng.normal(size=(1, 1, 3, 4))
    mean, bias, scale = rng.normal(size=(3, 4))
    variance = rng.uniform(0.01, 3, 4)
    expected = (net @ kernel[0, 0] - mean) / np.sqrt(variance + 1e-3) * scale + bias
    params = fold(kernel, mean, variance, bias, scale)
    assert params["kernel"].dtype == params["bias"].dtype == np.float32
    np.testing.assert_allclose(conv(params, jnp.asarray(net, jnp.float32)), expected, atol=2e-5)
    unscaled = conv(fold(kernel, mean, variance, bias), jnp.asarray(net, jnp.float32))
    np.testing.assert_allclose(unscaled, (expected - bias) / scale + bias, atol=1e-4)


@pytest.mark.parametrize(("frames", "side", "stride"), [(5, 3, 1), (6, 7, 2), (9, 3, 2), (4, 1, 1)])
def test_conv_video_against_three_dimensional_convolution(frames, side, stride):
    """Oracle: XLA's own three-dimensional convolution."""
    rng = np.random.default_rng(3)
    net = jnp.asarray(rng.normal(size=(2, frames, 6, 5, 3)), jnp.float32)
    kernel = rng.normal(size=(side, side, side, 3, 4)).astype(np.float32)
    bias = rng.normal(size=4).astype(np.float32)
    numbers = ("NDHWC", "DHWIO", "NDHWC")
    whole = lax.conv_general_dilated(
        net, jnp.asarray(kernel), (stride,) * 3, "SAME", dimension_numbers=numbers
    )
    found = conv_video({"kernel": kernel, "bias": bias}, net, stride)
    assert found.shape == whole.shape
    np.testing.assert_allclose(found, whole + bias.reshape(1, 1, 1, 1, 4), atol=1e-4)


def test_max_pool_of_negative_numbers():
    net = -jnp.arange(1.0, 10.0).reshape(1, 3, 3, 1)
    same = max_pool(net, (3, 3), (1, 1), "SAME")[0, :, :, 0]
    np.testing.assert_array_equal(same, [[-1, -1, -2], [-1, -1, -2], [-4, -4, -5]])
    assert max_pool(net, (3, 3), (2, 2), "VALID").shape == (1, 1, 1, 1)
    clip = net.reshape(1, 3, 3, 1, 1)  # time has windows 1 2 and 3 alone, height 1 2 3
    halved = max_pool(clip, (2, 3, 1), (2, 3, 1), "SAME")
    np.testing.assert_array_equal(halved.ravel(), [-1, -7])


@pytest.mark.parametrize("shape", [(3, 5), (16, 9), (7, 7), (1, 1), (1, 30)])
def test_resize_against_bilinear_by_hand(shape):
    """Half-pixel centres, clamped at the edge, no antialiasing when it shrinks."""
    rng = np.random.default_rng(1)
    side, picture = 7, rng.normal(size=shape)

    def places(size):
        at = np.clip((np.arange(side) + 0.5) * size / side - 0.5, 0, size - 1)
        low = np.floor(at).astype(int)
        return low, np.minimum(low + 1, size - 1), at - low

    (y, below, dy), (x, right, dx) = places(shape[0]), places(shape[1])
    rows = picture[y] * (1 - dy)[:, None] + picture[below] * dy[:, None]
    expected = rows[:, x] * (1 - dx) + rows[:, right] * dx
    found = resize(jnp.asarray(picture, jnp.float32)[None, :, :, None], side)[0, :, :, 0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


class Layers(chex.TestCase):
    """Compiled, op by op and on a device: numbers worked out by hand."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_conv_stride_and_padding(self):
        """TensorFlow's SAME puts the odd zero after the data: by hand on one axis of interest."""
        net = jnp.arange(1.0, 5.0).reshape(1, 1, 4, 1)
        params = {"kernel": np.array([1.0, 10.0, 100.0], np.float32).reshape(1, 3, 1, 1)}
        params["bias"] = np.array([0.5], np.float32)
        same = self.variant(functools.partial(conv, stride=2))(params, net)  # 1 2 3 and 3 4 0
        chex.assert_trees_all_equal(same.ravel(), np.float32([321.5, 43.5]))
        valid = self.variant(functools.partial(conv, stride=1, padding="VALID"))(params, net)
        chex.assert_trees_all_equal(valid.ravel(), np.float32([321.5, 432.5]))

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_average_leaves_padding_out(self):
        average = self.variant(average_unpadded)
        net = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])[None, :, :, None]
        expected = np.float32([[3.0, 3.5, 4.0], [3.0, 3.5, 4.0]])  # each window holds both rows
        chex.assert_trees_all_close(average(net)[0, :, :, 0], expected)
        corner = average(jnp.arange(9.0).reshape(1, 3, 3, 1))[0, :, :, 0]
        expected = np.float32([[2, 2.5, 3], [3.5, 4, 4.5], [5, 5.5, 6]])
        chex.assert_trees_all_close(corner, expected)
        single = jnp.full((1, 1, 2, 1), 7.0)
        chex.assert_trees_all_close(average(single), single)
