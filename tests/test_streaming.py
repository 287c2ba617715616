"""Streams of frames. Oracle: the same tokenizer given the whole clip."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsq_jax.api import Tokenizer
from bsq_jax.config import default_config, finalize
from bsq_jax.core.errors import UserError
from bsq_jax.models.factory import make_tokenizer

SIZES = {
    "even": {"image_size": (16, 16), "width": 32, "heads": 2},
    "odd": {"image_size": (24, 40), "width": 40, "heads": 5},  # 15 tokens, heads of 8
}
FRAMES = 4


@functools.cache
def tokenizer(size="even", frames=FRAMES, **model):
    config = default_config()
    config.model.update(frames=frames, layers=2, bits=6, head_hidden=0, dtype="float32")
    config.model.update(**SIZES[size], **model)
    config.optimizer.ema = 0.0
    config = finalize(config)
    height, width = config.model.image_size
    shapes = jax.eval_shape(
        make_tokenizer(config).init, jax.random.key(0), jnp.zeros((1, frames, height, width, 3))
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.float32(rng.normal(size=leaf.shape) * 0.3), nn.meta.unbox(shapes)["params"]
    )
    return Tokenizer(config, params)


def clip(tokenizer, frames, batch=1, seed=0):
    shape = (batch, frames, *tokenizer.config.model.image_size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def message_of(function, *arguments, **options):
    with pytest.raises(UserError) as raised:
        function(*arguments, **options)
    message = str(raised.value)
    assert "\n" not in message
    return message


def check_stream(tokenizer, pixels):
    """Every prefix of a clip, as a stream and as a clip."""
    stream = tokenizer.stream(batch=len(pixels))
    bits, decoded = [], []
    for time in range(pixels.shape[1]):
        bits.append(stream.encode(pixels[:, time]))
        decoded.append(stream.decode(bits[-1]))
        assert (stream.encoded, stream.decoded) == (time + 1, time + 1)
    bits, decoded = np.stack(bits, 1), np.stack(decoded, 1)
    assert (bits.dtype, decoded.dtype) == (np.uint8, np.float32)
    whole = tokenizer.encode(pixels)
    np.testing.assert_array_equal(bits, whole)
    np.testing.assert_allclose(decoded, tokenizer.decode(whole), atol=1e-5)


@pytest.mark.smoke
@pytest.mark.parametrize("size", SIZES)
def test_a_stream_is_its_clip(size):
    model = tokenizer(size)
    check_stream(model, clip(model, FRAMES))


@pytest.mark.parametrize(
    "model",
    [
        {"positions": "sincos", "window": 2},
        {"positions": "rotary", "causality": "token_causal"},
        {"positions": "rotary", "window": 3, "attention": "dense"},
        {"positions": "learned", "window": 1, "attention": "by_head"},
    ],
    ids=str,
)
def test_kinds_of_models(model):
    model = tokenizer("odd", **model)
    check_stream(model, clip(model, FRAMES))


def test_errors():
    image = tokenizer(frames=1).stream()
    picture = clip(tokenizer(), 1)[:, 0]
    image.encode(picture)
    assert "this is an image model, reset() the stream" in message_of(image.encode, picture)
