"""Files of priors that take any size. Oracles: the tokenizer, and the prior on the whole grid."""

import io

import jax
import numpy as np
import pytest
from small_codec import TILE, make_codec, picture

from bsq_jax.coding import container
from bsq_jax.coding.container import NATIVE
from bsq_jax.models.factory import make_prior

PATCH = 8


@pytest.fixture(scope="module")
def codec():
    return make_codec(reach=(1, 2), spatial_window=2, positions="window")


def header_of(data):
    return container.read_header(io.BytesIO(data), "x")


@pytest.mark.parametrize("tile", [None, TILE, (16, 24)])
@pytest.mark.parametrize("size", [(1, 1), (7, 50), (37, 41)])
def test_pictures_come_back(codec, size, tile):
    frames = picture(*size)
    data = codec.encode(frames, tile=tile)
    header = header_of(data)
    assert (header.version, header.mode) == (4, "prior")
    decoded = codec.decode(data)
    assert decoded.problem == ""
    np.testing.assert_array_equal(decoded.frames, codec.reconstruct(frames, tile=tile))
    if tile is None:
        assert header.tile == NATIVE
        whole = codec.tokenizer.reconstruct(frames, dtype="uint8")
        np.testing.assert_array_equal(decoded.frames, whole)


def test_tiles_lie_side_by_side_in_one_grid(codec):
    """The size of a file is the cross entropy of the prior on the grid of all tiles' tokens."""
    frames = picture(64, 96)
    data = codec.encode(frames, tile=32, overlap=0)
    bits = codec.tokenizer.encode(
        np.stack([frames[0, y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32, 64)])
    )
    grid = np.concatenate(
        [np.concatenate(list(bits[row : row + 3]), axis=1) for row in (0, 3)], axis=0
    )
    signs = 2.0 * grid[None, None] - 1
    config, params = codec._prior
    network = make_prior(config)
    logits = jax.jit(lambda x: network.apply({"params": params}, x))(signs.astype(np.float32))
    cost = np.log2(1 + np.exp(-signs * np.asarray(logits, np.float64) / 64)).sum() / 8
    file = io.BytesIO(data)
    header = container.read_header(file, "x")
    (chunk,) = container.read_chunks(file, header, "x", lambda _: 10**9)
    assert cost <= len(chunk.payload) <= 1.01 * cost + 8


@pytest.mark.parametrize("order", ["raster", "grids"])
def test_clips_that_are_streams(order):
    model = {"frames": 3, "positions": "rotary", "window": 2, "spatial_window": 2}
    codec = make_codec(order, reach=(1, 1), **model)
    frames = picture(21, 35, 5)
    data = codec.encode(frames, 25)
    header = header_of(data)
    assert (header.stream, header.tile, header.mode) == (True, NATIVE, "prior")
    whole = codec.tokenizer.reconstruct(frames[None], dtype="uint8")[0]
    np.testing.assert_array_equal(codec.decode(data).frames, whole)
    cut = codec.decode(data + b"x")
    assert "behind its end" in cut.problem


def test_a_model_of_one_size_with_such_a_prior():
    """Tiles of its own size lie side by side, so an earlier reader must refuse the file."""
    codec = make_codec(reach=(1, 1))
    frames = picture(20, 33)
    data = codec.encode(frames)
    assert (data[8], header_of(data).tile) == (4, (TILE, TILE))
    np.testing.assert_array_equal(codec.decode(data).frames, codec.reconstruct(frames))
    raw = codec.encode(frames, mode="raw")
    assert (raw[8], header_of(raw).tile) == (1, None)
    tiled = codec.encode(frames, tile=24)
    np.testing.assert_array_equal(codec.decode(tiled).frames, codec.reconstruct(frames, tile=24))
