"""Pictures of any size. Oracle: the network itself, given each picture alone and without padding.

The network takes multiples of the patch, so that the oracle fills edges up by numpy; its batch is
one picture repeated where a single one has too few tokens (see `least_batch`).
"""

import functools
import pathlib

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsq_jax.config import finalize, load_config_file
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.models.factory import make_tokenizer

TINY = str(pathlib.Path(__file__).parent / "tiny.py")
SIZES = ((65, 129), (1, 1), (16, 16), (7, 5), (1, 29), (64, 64))  # 16x16: the model's own
KINDS = {
    "window": {"spatial_window": 4, "positions": "window"},
    "sines, convolutions": {"spatial_window": 8, "positions": "sincos", "head_channels": 4},
    "rotary": {"spatial_window": 4, "positions": "rotary", "width": 32},
    "whole frames": {"positions": "learned"},
    "whole frames, rotary": {"positions": "rotary", "width": 32},
    "windows, interpolated": {"spatial_window": 4, "positions": "learned"},
}


def make(frames=1, **model):
    config = load_config_file(TINY)
    config.model.update(frames=frames, layers=2, **model)
    config = finalize(config)
    height, width = config.model.image_size
    pixels = jnp.zeros((1, frames, height, width, 3))
    shapes = jax.eval_shape(make_tokenizer(config).init, jax.random.key(0), pixels)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.float32(rng.normal(size=leaf.shape) * 0.3), nn.meta.unbox(shapes)
    )
    return Tokenizer(config, params)


shared = functools.cache(lambda kind: make(**KINDS[kind]))  # programs are compiled once


def picture(height, width, *leading, seed=0):
    rng = np.random.default_rng((seed, height, width))
    return rng.integers(0, 256, (*leading, height, width, 3), np.uint8)


@functools.cache
def network(kind):
    model = shared(kind).model
    encode = jax.jit(lambda params, x: model.apply({"params": params}, x, method="encode").bits)
    decode = jax.jit(lambda params, x: model.apply({"params": params}, x, method="decode"))
    return encode, decode


def oracle(kind, pixels, what="encode"):
    """Bits or pixels of a picture, by nothing of what is tested."""
    height, width = pixels.shape[:2]
    filled = np.pad(pixels, ((0, -height % 8), (0, -width % 8), (0, 0)), mode="edge")
    floats = np.float32(filled) / np.float32(127.5) - np.float32(1)
    tokens = filled.shape[0] * filled.shape[1] // 64
    params, (encode, decode) = shared(kind).params, network(kind)
    found = encode(params, np.stack([floats[None]] * max(64 // tokens, 1)))
    if what == "decode":
        return np.asarray(decode(params, found))[0, 0, :height, :width]
    return np.asarray(found)[0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_the_same_alone_in_a_batch_and_in_a_list(kind):
    model = shared(kind)
    pixels = [picture(*size) for size in SIZES[: 6 if kind == "window" else 3]]
    wanted = [oracle(kind, each) for each in pixels]
    in_list = model.encode(pixels)
    assert 0.1 < np.mean(np.concatenate([bits.ravel() for bits in in_list])) < 0.9
    for each, bits, expected in zip(pixels, in_list, wanted, strict=True):
        chex.assert_shape(expected, (*(-(-side // 8) for side in each.shape[:2]), 6))
        chex.assert_trees_all_equal(bits, expected, strict=True)
        chex.assert_trees_all_equal(model.encode(each), expected, strict=True)
    batch = model.encode(np.stack([picture(65, 129, seed=9), pixels[0], pixels[0]]))
    chex.assert_trees_all_equal(batch[1:], np.stack([wanted[0]] * 2), strict=True)
    sizes = [each.shape[:2] for each in pixels]
    found = model.decode(in_list, size=sizes)
    assert [array.shape[:2] for array in found] == sizes
    chex.assert_trees_all_close(found[0], oracle(kind, pixels[0], "decode"), atol=1e-5)
    chex.assert_trees_all_equal(model.reconstruct(pixels), found, strict=True)
