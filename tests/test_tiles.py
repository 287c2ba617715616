"""Cutting and joining. Oracles: the frames themselves, and the shares added up by hand."""

import itertools

import numpy as np
import pytest

from bsq_jax.coding.tiles import Tiles
from bsq_jax.core.errors import UserError

pytestmark = pytest.mark.smoke
SIZES = [(1, 1), (1, 40), (15, 16), (16, 16), (17, 31), (32, 48), (53, 37), (100, 16)]


@pytest.mark.parametrize("overlap", [0, 1, 4, 8])
@pytest.mark.parametrize("size", SIZES)
def test_tiles_cover_all_and_come_back(size, overlap):
    tiles = Tiles(*size, (16, 16), overlap)
    frames = np.random.default_rng(0).random((2, *size, 3), np.float32)
    cut = tiles.cut(frames)
    assert cut.shape == (len(tiles), 2, 16, 16, 3)
    np.testing.assert_allclose(tiles.join(cut), frames, rtol=1e-6)
    for starts, length in zip(tiles.starts, size, strict=True):
        assert starts[0] == 0
        assert starts[-1] + 16 == max(length, 16)
        shared = [a + 16 - b for a, b in itertools.pairwise(starts)]
        assert min(shared, default=overlap) >= overlap
        # One tile fewer would not do.
        assert length <= 16 or (len(starts) - 1) * (16 - overlap) + overlap < length


def test_a_tile_alone_keeps_its_values_to_the_bit():
    frames = np.random.default_rng(0).random((1, 16, 16, 3), np.float32)
    np.testing.assert_array_equal(Tiles(16, 16, (16, 16), 8).join(frames[None]), frames)
    small = Tiles(5, 9, (16, 16), 8)
    np.testing.assert_array_equal(small.join(small.cut(frames[:, :5, :9])), frames[:, :5, :9])


def test_small_frames_are_filled_up_with_their_edge():
    frames = np.arange(6, dtype=np.uint8).reshape(1, 2, 3, 1)
    (tile,) = Tiles(2, 3, (4, 4)).cut(frames)
    wanted = [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]
    np.testing.assert_array_equal(tile[0, ..., 0], wanted)


def test_one_tile_fades_into_the_other():
    """Black beside white: steps of equal size across what they share, and no jump at its ends."""
    tiles = Tiles(16, 24, (16, 16), 8)
    assert tiles.starts == ([0], [0, 8])
    black_white = np.stack([np.zeros((1, 16, 16, 1)), np.ones((1, 16, 16, 1))]).astype(np.float32)
    line = tiles.join(black_white)[0, 3, :, 0]
    np.testing.assert_array_equal(line[:8], 0)
    np.testing.assert_array_equal(line[16:], 1)
    steps = np.diff(line[7:17])
    assert (steps > 0).all()
    assert steps.max() < 0.25
    np.testing.assert_allclose(line[8:16] + line[15:7:-1], 1, rtol=1e-6)
    sharp = Tiles(16, 32, (16, 16), 0).join(black_white)[0, 3, :, 0]
    np.testing.assert_array_equal(sharp, [0] * 16 + [1] * 16)


@pytest.mark.parametrize(("size", "overlap"), [((0, 4), 0), ((4, 4), -1), ((4, 40), 9)])
def test_mistakes(size, overlap):
    with pytest.raises(UserError):
        Tiles(*size, (16, 16), overlap)
