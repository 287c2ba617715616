"""The convolutions behind the pixel head. Oracle: scipy's correlation, in float64."""

import jax
import numpy as np
import pytest
from scipy.ndimage import correlate
from shapes import bsq_quantizer, tokenizer_shape

from bsq_jax.core.trees import leaves
from bsq_jax.models.pixel_convolutions import PixelConvolutions
from bsq_jax.models.tokenizer import TokenizerModel

SHAPE = tokenizer_shape(16, 24, 1, 8, bits=6, width=16, layers=1, heads=2, head_hidden=0)


def random_params(channels, seed=0):
    rng, network = np.random.default_rng(seed), PixelConvolutions(channels)
    made = network.init(jax.random.key(0), np.zeros((1, 1, 8, 8, 3), np.float32))["params"]
    made = jax.tree.map(
        lambda leaf: leaf.unbox(), made, is_leaf=lambda leaf: hasattr(leaf, "unbox")
    )
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), made)


def correlated(x, layer):
    """``[height, width, channel]`` by a layer, zeros around it, in float64."""
    kernel = np.float64(layer["kernel"])
    return np.stack(
        [
            sum(
                correlate(x[..., channel], kernel[..., channel, feature], mode="constant")
                for channel in range(x.shape[-1])
            )
            + layer["bias"][feature]
            for feature in range(kernel.shape[-1])
        ],
        axis=-1,
    )


def test_each_frame_against_scipy():
    params = random_params(5)
    pixels = np.random.default_rng(1).uniform(-1, 1, (2, 3, 8, 16, 3)).astype(np.float32)
    found = PixelConvolutions(5).apply({"params": params}, pixels)
    assert found.shape == pixels.shape
    assert found.dtype == np.float32
    for example in range(2):
        for frame in range(3):
            x = correlated(np.float64(pixels[example, frame]), params["hidden"])
            gelu = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
            x = correlated(gelu, params["out"])
            np.testing.assert_allclose(found[example, frame], x, rtol=1e-4, atol=1e-5)


def test_in_bfloat16_the_pixels_stay_float32():
    params = random_params(5)
    pixels = np.random.default_rng(1).uniform(-1, 1, (1, 1, 8, 8, 3)).astype(np.float32)
    exact, rough = (
        PixelConvolutions(5, dtype).apply({"params": params}, pixels)
        for dtype in (np.float32, jax.numpy.bfloat16)
    )
    assert rough.dtype == np.float32
    assert 0 < np.abs(exact - rough).max() < 0.1


@pytest.mark.smoke
def test_a_new_network_is_that_of_the_linear_head():
    """And training changes that: the gradient of the second convolution is not zero."""
    pixels = np.random.default_rng(2).uniform(-1, 1, (2, 1, 16, 24, 3)).astype(np.float32)
    plain, with_head = (
        TokenizerModel(
            tokenizer_shape(**{**vars(SHAPE), "head_channels": n}), bsq_quantizer(length=6)
        )
        for n in (0, 4)
    )
    params = with_head.init(jax.random.key(0), pixels)["params"]
    fewer = {**params, "decoder": dict(params["decoder"])}
    del fewer["decoder"]["head_convolutions"]
    np.testing.assert_array_equal(
        with_head.apply({"params": params}, pixels).pixels,
        plain.apply({"params": fewer}, pixels).pixels,
    )

    def loss(params):
        return ((with_head.apply({"params": params}, pixels).pixels - pixels) ** 2).mean()

    gradients = leaves(jax.grad(loss)(params)["decoder"]["head_convolutions"])
    moving = [name for name, leaf in gradients.items() if np.abs(jax.tree.leaves(leaf)[0]).max()]
    assert any(name.startswith("out/kernel") for name in moving), gradients.keys()
