"""Streams of frames. Oracle: the same tokenizer given the whole clip at once."""

import functools
import logging
import types

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from user_errors import message_of

from bsq_jax.config import default_config, finalize
from bsq_jax.core.once import say_once
from bsq_jax.core.target import described
from bsq_jax.inference import grids, streaming
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.models.factory import make_tokenizer

SIZES = {
    "even": {"image_size": (16, 16), "width": 32, "heads": 2},
    "odd": {"image_size": (24, 40), "width": 40, "heads": 5},  # 15 tokens, heads of 8
}


def build(size="even", frames=3, **model):
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


shared = functools.cache(build)  # programs are compiled once for all tests of a model


def clip(tokenizer, frames, batch=1, seed=0):
    shape = (batch, frames, *tokenizer.config.model.image_size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def streamed(tokenizer, pixels):
    """Bits and pixels of a clip, frame by frame."""
    stream = tokenizer.stream(batch=len(pixels))
    bits, decoded = [], []
    for time in range(pixels.shape[1]):
        bits.append(stream.encode(pixels[:, time]))
        decoded.append(stream.decode(bits[-1]))
        assert (stream.encoded, stream.decoded) == (time + 1, time + 1)
    return np.stack(bits, 1), np.stack(decoded, 1)


def check_stream(tokenizer, pixels):
    bits, decoded = streamed(tokenizer, pixels)
    chex.assert_type([bits, decoded], [np.uint8, np.float32])
    chex.assert_equal_shape([decoded, pixels])
    whole = tokenizer.encode(pixels)
    assert 0.1 < bits.mean() < 0.9
    chex.assert_trees_all_equal(bits, whole, strict=True)
    wanted = tokenizer.decode(whole)
    chex.assert_trees_all_close(decoded, wanted, rtol=1e-7, atol=1e-5, strict=True)


@pytest.mark.smoke
def test_a_stream_is_its_clip_and_all_beginnings_of_it():
    model = shared()
    pixels = clip(model, 3, batch=2)
    bits, decoded = streamed(model, pixels)
    for frames in (1, 2, 3):
        whole = model.encode(pixels[:, :frames])
        np.testing.assert_array_equal(bits[:, :frames], whole)
        np.testing.assert_allclose(decoded[:, :frames], model.decode(whole), atol=1e-5)
    np.testing.assert_array_equal(model.encode(pixels[:, 0], layout="NHWC"), bits[:, 0])


KINDS = {
    "no past": {"size": "odd", "window": 1, "attention": "by_head"},
    "sines, window": {"size": "odd", "positions": "sincos", "window": 2},
    "rotary, token by token": {"positions": "rotary", "causality": "token_causal"},
    "rotary, window, all scores": {"positions": "rotary", "window": 2, "attention": "dense"},
    "convolutions after the head": {"head_channels": 4},
    "16 bits": {"size": "odd", "positions": "rotary", "window": 2, "dtype": "bfloat16"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_models(kind):
    model = build(**KINDS[kind])
    check_stream(model, clip(model, 3, batch=2))


def test_a_stream_is_its_clip_optimised(monkeypatch):
    # The compiler may order sums by the shape of an array, and does so more when it optimises. On
    # x86 nothing is left of that: 15 tokens a frame, 5 heads, and the pixels too equal to the bit.
    options = {"xla_backend_optimization_level": 3}
    monkeypatch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=options))
    model = build("odd", positions="rotary", head_channels=4)
    pixels = clip(model, 3)
    check_stream(model, pixels)
    bits, decoded = streamed(model, pixels)
    np.testing.assert_array_equal(decoded, model.decode(bits))


def test_windowed_streams_never_end_and_compile_no_more():
    model = build(frames=3, positions="rotary", window=3)
    pixels = clip(model, 10)
    stream = model.stream()
    bits = np.stack([stream.encode(pixels[:, time]) for time in range(3)], 1)
    kept = stream._encoder.cache.past
    compiled = model.programs.compiled
    assert compiled == 3
    bits = np.stack([bits[:, 0], bits[:, 1], bits[:, 2]], 1)
    more = [stream.encode(pixels[:, time]) for time in range(3, 10)]
    assert model.programs.compiled == compiled
    chex.assert_trees_all_equal_shapes_and_dtypes(stream._encoder.cache.past, kept)
    assert kept[0].shape[2] == 2  # frames
    assert stream.encoded == 10
    bits = np.concatenate([bits, np.stack(more, 1)], 1)
    # The clip is longer than `frames`.
    np.testing.assert_array_equal(bits, model.encode(pixels))
    compiled = model.programs.compiled
    # Another stream of the tokenizer shares the programs.
    again = model.stream()
    np.testing.assert_array_equal(again.encode(pixels[:, 0]), bits[:, 0])
    assert model.programs.compiled == compiled


def test_long_clips_of_windowed_models_are_coded_in_pieces(monkeypatch):
    model = build(frames=3, positions="rotary", window=2)
    pixels = clip(model, 7, batch=2)
    whole = model.encode(pixels), model.decode(model.encode(pixels))
    assert model.programs.compiled == 2
    monkeypatch.setattr(grids, "MOST_FRAMES", 4)
    bits = model.encode(pixels)  # 4 + 2 + 1 frames
    assert model.programs.compiled == 2 + 3
    np.testing.assert_array_equal(bits, whole[0])
    np.testing.assert_allclose(model.decode(bits), whole[1], atol=1e-5)
    np.testing.assert_array_equal(model.encode(pixels[:0]), whole[0][:0])


def test_encoder_and_decoder_go_their_own_ways():
    model = shared()
    pixels = clip(model, 3, batch=2)
    bits = model.encode(pixels)
    decoder, encoder = model.stream(batch=2), model.stream(batch=2)
    for time in range(3):
        np.testing.assert_array_equal(encoder.encode(pixels[:, time]), bits[:, time])
    decoded = np.stack([decoder.decode(bits[:, time]) for time in range(3)], 1)
    np.testing.assert_allclose(decoded, model.decode(bits), atol=1e-5)
    assert (encoder.encoded, encoder.decoded) == (3, 0)
    assert (decoder.encoded, decoder.decoded) == (0, 3)
    encoder.reset()
    assert encoder.encoded == 0
    np.testing.assert_array_equal(encoder.encode(pixels[:, 0]), bits[:, 0])
    as_bytes = model.stream(batch=2).decode(bits[:, 0], dtype="uint8")
    chex.assert_type(as_bytes, np.uint8)
    np.testing.assert_allclose(as_bytes / 127.5 - 1, decoded[:, 0], atol=0.5 / 127.5 + 1e-5)


def test_a_stream_of_pictures():
    model = build(frames=1)
    stream = model.stream()
    picture = clip(model, 1)[:, 0]
    bits = stream.encode(picture)
    np.testing.assert_array_equal(bits, model.encode(picture))
    stream.decode(bits)
    message = "frame 2 of a stream: this is an image model, reset() the stream before each picture"
    assert message_of(stream.encode, picture) == message
    assert message_of(stream.decode, bits) == message
    stream.reset()
    np.testing.assert_array_equal(stream.encode(picture), bits)


def test_mistakes():
    model = shared()
    pixels = clip(model, 3, batch=2)
    stream = model.stream(batch=2)
    for time in range(3):
        bits = stream.encode(pixels[:, time])
    message = message_of(stream.encode, pixels[:, 0])
    assert message.startswith("frame 4 of a stream: this model has learned positions for 3: reset")
    assert "model.positions=rotary" in message
    assert stream.encoded == 3
    stream.reset()
    for wrong, words in (
        (pixels, "a clip in a stream: give it frame by frame"),
        (pixels[0, 0], "a batch of 1 in a stream of 2: make the stream with stream(batch=1)"),
        (pixels[:1, 0], "a batch of 1 in a stream of 2: make the stream with stream(batch=1)"),
        (pixels[:, 0] * 1.0, "float pixels must lie in [-1, 1]"),
    ):
        assert words in message_of(stream.encode, wrong)
    for wrong, words in (
        (bits[0], "a batch of 1 in a stream of 2"),
        (
            bits[0, 0],
            "bits have shape (2, 6): this model takes [row, column, 6], [batch, row, column, 6] in",
        ),
        (bits * 2, "all 0 or 1"),
        (bits[:1], "a batch of 1 in a stream of 2"),
    ):
        assert words in message_of(stream.decode, wrong)
    assert "decode gives float32 or uint8" in message_of(stream.decode, bits, dtype="int8")
    assert (stream.encoded, stream.decoded) == (0, 0)
    assert "a stream of 0 videos" in message_of(model.stream, batch=0)
    for window in (0, 2):
        sees_all = build(positions="rotary", causality="full", window=window)
        message = message_of(sees_all.stream)
        assert message.startswith("model.causality=full: a token sees later frames, so this model")


def test_a_stream_on_another_device_says_what_it_does_not_promise(caplog):
    say_once.cache_clear()
    programs = types.SimpleNamespace(shape=None)
    with caplog.at_level(logging.WARNING):
        streaming.Stream(programs)
        assert not caplog.records  # on a CPU it is the same to the bit
        for _ in range(2):
            with described("gpu"):
                streaming.Stream(programs)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("stream: on a gpu ")
    assert "single bits may differ from those of the whole clip" in line
