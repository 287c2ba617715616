"""A small codec with random weights, the same on every machine, for tests."""

import jax
import numpy as np
import tiny

from bsq_jax.coding.codec import Codec
from bsq_jax.config import finalize
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.models.factory import make_prior, make_tokenizer

TILE = 16


def _drawn(tree, scale, seed):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: random.normal(0, scale, leaf.shape).astype(np.float32), tree)


def make_codec(
    order="raster", *, frames=1, min_bits=0, stages=1, prior=True, reach=(0, 0), seed=0, **model
):
    """A codec of tiles of 16x16 pixels, 2x2 tokens of 6 bits.

    What is in `model` are other settings of the tokenizer's model.
    """
    config = tiny.get_config()
    config.model.update(frames=frames, min_bits=min_bits, **model)
    config.quantizer.stages = stages
    config = finalize(config)
    tokenizer_model = make_tokenizer(config)
    pixels = jax.ShapeDtypeStruct((1, 1, TILE, TILE, 3), np.float32)
    boxed = jax.eval_shape(tokenizer_model.init, jax.random.key(0), pixels)["params"]
    params = _drawn(_unboxed(boxed), 0.3, seed)
    tokenizer = Tokenizer(config, params, {"step": 0})
    if not prior:
        return Codec(tokenizer)
    settings = tiny.get_prior("nowhere", order=order, reach=reach)
    settings.model.update(frames=frames, min_bits=min_bits, **model)
    settings.quantizer.stages = stages
    settings = finalize(settings)
    network = make_prior(settings)
    signs = np.zeros((1, 1, 2, 2, 6), np.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), signs)["params"]
    return Codec(tokenizer, (settings, _drawn(shapes, 0.4, seed + 1)))


def _unboxed(tree):
    import flax.linen as nn

    return nn.meta.unbox(tree)


def picture(height, width, time=1, seed=0):
    """Smooth colours and some noise, uint8 ``[time, height, width, 3]``."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 9.0
    frames = []
    for t in range(time):
        waves = np.stack([np.sin(x + y + t / 3), np.cos(x - t / 5), np.sin(y * 2)], -1)
        frames.append(127 + 90 * waves + random.normal(0, 12, waves.shape))
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8)
