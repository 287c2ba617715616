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
from user_errors import message_of

from bsq_jax.config import finalize, load_config_file
from bsq_jax.core.once import say_once
from bsq_jax.core.pixels import to_float
from bsq_jax.core.sharding import make_mesh, to_global
from bsq_jax.inference import grids
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.models.factory import make_tokenizer
from bsq_jax.models.frozen_tokenizer import FrozenTokenizer

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
    found = encode(params, np.stack([floats[None]] * -(-64 // tokens)))
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


def test_the_smallest_pictures_are_the_same_in_any_batch():
    """To the bit as pixels too: XLA sums in another order for few rows, see `least_batch`."""
    model = shared("window")
    bits = oracle("window", picture(1, 1))
    several = model.decode(np.stack([bits] * 30), size=(1, 1))
    for count in (1, 3):
        found = model.decode(np.stack([bits] * count), size=(1, 1))
        chex.assert_trees_all_equal(found, several[:count], strict=True)


def test_bits_do_not_depend_on_the_size_class(monkeypatch):
    model = shared("window")
    each = picture(7, 29)
    wanted = oracle("window", each)
    for grid in ((4, 4), (20, 8)):
        monkeypatch.setattr(model._computation.classes, "choose", lambda *_, grid=grid: grid)
        chex.assert_trees_all_equal(model.encode([each, each]), [wanted, wanted], strict=True)


@functools.cache
def clip_model():
    return make(frames=4, spatial_window=4, positions="rotary", width=32, window=2)


def test_streams_and_clips_of_any_size(monkeypatch):
    """Clips of several sizes in one batch, in parts, and frame by frame are the same."""
    model = clip_model()
    clips = [picture(*size, 1, 3) for size in ((9, 41), (16, 33))]
    together = model.encode(clips)
    monkeypatch.setattr(grids, "MOST_FRAMES", 2)
    for found, wanted in zip(model.encode(clips), together, strict=True):
        chex.assert_trees_all_equal(found, wanted, strict=True)
    decoded = model.decode(together, size=[(9, 41), (16, 33)])
    for clip, bits, pixels in zip(clips, together, decoded, strict=True):
        size = clip.shape[2:4]
        stream = model.stream()
        for time in range(3):
            streamed = stream.encode(clip[:, time])
            chex.assert_trees_all_equal(streamed, bits[:, time], strict=True)
            frame = stream.decode(streamed, size=size)
            chex.assert_shape(frame, (1, *size, 3))
            chex.assert_trees_all_close(frame, pixels[:, time], atol=1e-5)


def test_a_stream_keeps_its_size():
    model = clip_model()
    stream = model.stream()
    bits = stream.encode(picture(9, 41))
    assert message_of(stream.encode, picture(9, 42)) == (
        "a frame of 9x42 pixels in a stream of 9x41: all frames have the size of the first; "
        "reset() the stream to begin another video"
    )
    assert stream.encoded == 1
    stream.decode(bits)
    assert "a frame of 2x5 tokens in a stream of 2x6" in message_of(stream.decode, bits[:, :5])
    assert "belong to pictures of 9 to 16 by 41 to 48" in message_of(
        stream.decode, bits, size=(8, 41)
    )
    stream.reset()
    chex.assert_shape(stream.encode(picture(16, 48)), (2, 6, 6))
    sizes = [picture(9, 41), picture(16, 48)]
    assert "frames of several sizes" in message_of(model.stream(batch=2).encode, sizes)


def test_sizes_to_cut_to():
    model = shared("window")
    bits = np.zeros((2, 2, 6, 6), np.uint8)
    chex.assert_shape(model.decode(bits), (2, 16, 48, 3))
    chex.assert_shape(model.decode(bits, size=(9, 48), layout="CHW"), (2, 3, 9, 48))
    chex.assert_shape(model.decode([bits, bits], size=np.array([16, 41])), (2, 16, 41, 3))
    for given, size, words in (
        (bits, (8, 48), "size=(8, 48): tokens of 2x6 belong to pictures of 9 to 16 by 41 to 48 pi"),
        (bits, (16, 49), "tokens of 2x6 belong to pictures"),
        (bits, (16, 40), "tokens of 2x6 belong to pictures"),
        (bits[:, :1], (0, 48), "belong to pictures of 1 to 8 by 41 to 48"),
        ([bits, bits[:, :1]], (16, 48), "number 1 (from 0) of the list: size=(16, 48): tokens of "),
        (bits, 16, "size=16: give (height, width) in pixels"),
        (bits, (16.0, 48.0), "size=(16.0, 48.0): give (height, width)"),
        (bits, [(16, 48), (16, 48)], "give (height, width) in pixels"),
        ([bits], [(16, 48), (16, 48)], "give (height, width) in pixels, or a list of 1 of them"),
        ([bits], [(16, 48), (16,)], "give (height, width) in pixels, or a list of 1 of them"),
        (
            [bits],
            [(16, 48)] * 999,
            "(16, 48),...: give (height, width) in pixels, or a list of 1",
        ),
        ([bits], np.full((9, 2), 16), "[16, 16], [16, 16]"),
    ):
        said = message_of(model.decode, given, size=size)
        assert words in said
        assert "\n" not in said
        assert len(said) < 250


def test_it_is_said_that_learned_positions_are_interpolated(caplog):
    model = shared("whole frames")
    say_once.cache_clear()
    model.encode(picture(16, 16))
    assert not caplog.records
    for _ in range(2):
        model.encode(picture(7, 5))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "this model has learned positions for pictures of 16x16: for other sizes they are "
        "interpolated"
    )


class OneGrid(nn.Module):
    """Positions for one grid alone."""

    @nn.compact
    def __call__(self, frames, grid, width):
        table = self.param("table", nn.initializers.normal(), (*grid, width))
        return jnp.broadcast_to(table, (len(frames), *grid, width))


def test_positions_of_ones_own_may_refuse_a_grid():
    model = make(positions=f"{__name__}:OneGrid")
    model.encode(picture(16, 16))
    message = message_of(model.encode, picture(16, 24))
    assert message.startswith(f"model.positions={__name__}:OneGrid: ")
    assert "ScopeParamShapeError" in message


def test_a_frozen_tokenizer_takes_any_grid():
    tokenizer = shared("whole frames")
    frozen = FrozenTokenizer(tokenizer.model, tokenizer.params)
    params, pixels = frozen.load(make_mesh()), picture(24, 16, 6, 1)
    bits = frozen.tokens({"pixels": jnp.asarray(pixels)}, params)
    wanted = tokenizer.encode(pixels)
    np.testing.assert_array_equal(bits.reshape(wanted.shape), wanted)
    found = np.asarray(frozen.pixels(bits, params, (3, 2)))
    chex.assert_shape(found, (6, 1, 24, 16, 3))
    difference = found.astype(int) - tokenizer.decode(wanted, dtype="uint8")
    assert np.abs(difference).max() <= 1


def test_padded_pictures_over_eight_devices(eight_devices):
    """Oracle: the network given each picture alone."""
    model = shared("window")
    grids_ = np.random.default_rng(0).integers(1, 6, (8, 2)).astype(np.int32)
    pixels = [picture(*(8 * grid)) for grid in grids_]
    padded = np.stack(
        [np.pad(each, [(0, 40 - n) for n in each.shape[:2]] + [(0, 0)]) for each in pixels]
    )
    batch = to_global({"pixels": padded[:, None], "sizes": grids_}, make_mesh())
    assert len(batch["pixels"].addressable_shards) == 8

    @jax.jit
    def encode(params, batch):
        floats = to_float(batch["pixels"])
        return model.model.apply(
            {"params": params}, floats, None, batch["sizes"], method="encode"
        ).bits

    found = np.asarray(encode(model.params, batch))
    for bits, each, (rows, columns) in zip(found, pixels, grids_, strict=True):
        chex.assert_trees_all_equal(bits[0, :rows, :columns], model.encode(each), strict=True)
