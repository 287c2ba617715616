"""Which tiles frames are coded in. Oracle: all tiles of whole windows, tried one by one."""

import itertools

import numpy as np
import pytest
from small_codec import make_codec

from bsq_jax.coding import tile_choice
from bsq_jax.coding.header import NATIVE
from bsq_jax.coding.tiles import Tiles
from bsq_jax.core.errors import UserError
from bsq_jax.inference.grids import MOST_TOKENS
from bsq_jax.models.tokenizer_shape import TokenizerShape

pytestmark = pytest.mark.smoke


def shape_with(window=8, patch=8, **changes):
    numbers = {
        "image_height": 64, "image_width": 64, "frames": 1, "patch_size": patch, "bits": 18,
        "width": 128, "layers": 2, "heads": 4, "mlp_ratio": 4.0, "head_hidden": 0,
        "head_channels": 0, "positions": "learned", "causality": "block_causal", "window": 0,
        "min_bits": 0, "prefixes": (18,), "channels": 18, "spatial_window": window,
    }  # fmt: skip
    return TokenizerShape(**numbers | changes)


@pytest.mark.parametrize("overlap", [0, 20, 64])
@pytest.mark.parametrize(
    "size", [(3000, 4000), (4000, 3000), (1081, 1920), (30000, 100), (9, 70000)]
)
def test_as_few_tiles_as_can_be(size, overlap):
    most, patch, unit = 4096, 8, 64
    shape = shape_with()
    tile = tile_choice.chosen_tile(shape, *size, most, overlap)
    whole = [-(-side // patch) * patch for side in size]
    assert tile[0] * tile[1] <= most * patch**2
    for side, most_pixels in zip(tile, whole, strict=True):
        assert side % unit == 0 or side == most_pixels
        assert side <= most_pixels
    counts = []
    for down, across in itertools.product(range(1, most // 64 + 1), repeat=2):
        if down * across <= most // 64:
            pair = min(down * unit, whole[0]), min(across * unit, whole[1])
            if all(2 * overlap <= p or p == w for p, w in zip(pair, whole, strict=True)):
                counts.append(len(Tiles(*size, pair, overlap)))
    assert len(Tiles(*size, tile, overlap)) == min(counts)


def test_frames_up_to_so_many_tokens_are_whole():
    shape = shape_with()
    assert tile_choice.chosen_tile(shape, 1080, 1920, MOST_TOKENS, None) == NATIVE
    assert tile_choice.chosen_tile(shape, 64, 64, 64, None) == NATIVE
    assert tile_choice.chosen_tile(shape, 57, 1, 64, None) == NATIVE
    assert tile_choice.chosen_tile(shape, 64, 65, 64, None) == (64, 64)
    # A photograph of 12 megapixels: six tiles, 3 downwards and 2 across, no larger than need be.
    tile = tile_choice.chosen_tile(shape, 3000, 4000, MOST_TOKENS, None)
    assert tile == (1024, 2048)
    assert len(Tiles(3000, 4000, tile, tile_choice.usual_overlap(shape, tile))) == 6
    with pytest.raises(UserError, match="more than half a tile"):
        tile_choice.chosen_tile(shape, 3000, 4000, 4096, 300)


def test_memory_is_in_proportion_to_tokens():
    shape = shape_with()
    a_token = tile_choice.bytes_a_token(shape)
    # Twice 14 arrays of the width and 4 heads of 64 scores; four times the 192 values of a patch.
    assert a_token == 4 * (2 * (14 * 128 + 256) + 4 * 192)
    assert tile_choice.tokens_for(100, shape) == 100 * 2**20 // a_token
    with pytest.raises(UserError, match="this model needs 76 or more"):
        tile_choice.tokens_for(75, shape)
    assert tile_choice.tokens_for(76, shape) >= 4096
    for memory in (float("nan"), float("inf"), "100", None):
        with pytest.raises(UserError, match="give a number of megabytes"):
            tile_choice.tokens_for(memory, shape)
    with pytest.raises(UserError, match=r"this one has none"):
        tile_choice.tokens_for(100, shape_with(window=0))


def test_what_tiles_may_be_asked_for():
    shape = shape_with()
    for tile, wanted in (
        (None, None), ("auto", None), (0, NATIVE), ("0", NATIVE), ("native", NATIVE),
        (64, (64, 64)), ("64", (64, 64)), ((8, 24), (8, 24)), ("8x24", (8, 24)), ((0, 0), NATIVE),
        (np.int64(64), (64, 64)), ([8, 24], (8, 24)), (np.array([8, 24]), (8, 24)),
    ):  # fmt: skip
        assert tile_choice.checked_tile(tile, shape) == wanted
    for tile in (4, 12, -8, (8, 9), (0, 8), (8, 0), (8, 8, 8), 2**17):
        with pytest.raises(UserError, match="multiples of the patch of 8x8, such as 128x128"):
            tile_choice.checked_tile(tile, shape)
    for tile in ("large", "8x8x8", "-8", "8 x 8", "", 64.0, True, (64.0, 64), ((8, 8), (8, 8))):
        with pytest.raises(UserError, match="give a side in pixels"):
            tile_choice.checked_tile(tile, shape)


def test_tiles_are_no_larger_than_the_frame():
    shape = shape_with()
    for tile, size, wanted in (
        ((64, 64), (30, 200), (32, 64)), ((64, 64), (64, 64), NATIVE), ((64, 64), (1, 1), NATIVE),
        (NATIVE, (500, 500), NATIVE), ((64, 64), (65, 65), (64, 64)),
    ):  # fmt: skip
        assert tile_choice.fitted(shape, tile, *size) == wanted


def test_overlap_of_itself():
    assert tile_choice.usual_overlap(shape_with(), NATIVE) == 0
    assert tile_choice.usual_overlap(shape_with(), (64, 64)) == 8
    assert tile_choice.usual_overlap(shape_with(), (1344, 1536)) == 32  # half a window
    assert tile_choice.usual_overlap(shape_with(), (320, 6000)) == 20
    assert tile_choice.usual_overlap(shape_with(), (8, 64)) == 4
    assert tile_choice.usual_overlap(shape_with(window=0), (256, 256)) == 8  # as it ever was


def test_tiles_that_would_need_gigabytes_are_refused():
    tile_choice.check_tokens(shape_with(), (1024, 1024), 8)
    with pytest.raises(UserError, match="code with smaller tiles"):
        tile_choice.check_tokens(shape_with(), (1024, 1024), 9)
    with pytest.raises(UserError, match=r"attends to all others \(model.spatial_window=0\)"):
        tile_choice.check_tokens(shape_with(window=0), (1024, 1024), 1)
    # Of 9 frames with tokens over 4 there are 3.
    tile_choice.check_tokens(shape_with(frames=9, patch_time=4), (1024, 1024), 9)


# --- settings of a codec without windows ---


@pytest.fixture(scope="module")
def codec():
    return make_codec()


def coded(codec, size=(40, 40), clip=False, **settings):
    return codec.coding(codec.settings(**settings), *size, clip=clip)


def test_models_of_one_size_code_as_they_ever_did(codec):
    for mode in ("prior", "raw"):
        made = coded(codec, mode=mode)
        assert (made.tile, made.overlap, made.stream) == (None, 8, False)
        assert coded(codec, mode=mode, tile=16) == made
        assert coded(codec, mode=mode, overlap=3).overlap == 3


def test_other_sizes_are_for_the_raw_mode_where_the_prior_has_one_size(codec):
    made = coded(codec, mode="raw", tile=24)
    assert (made.tile, made.overlap) == ((24, 24), 8)
    made = coded(codec, mode="raw", tile=0)
    assert (made.tile, made.overlap) == (NATIVE, 0)
    assert coded(codec, mode="raw", tile=48).tile == NATIVE
    assert coded(codec, (40, 50), mode="raw", tile=48).tile == (40, 48)
    with pytest.raises(UserError, match=r"another size than 16x16.*prior\.reach"):
        coded(codec, tile=24)
    with pytest.raises(UserError, match="not both"):
        coded(codec, mode="raw", tile=24, memory_mb=100)
    with pytest.raises(UserError, match="an overlap of 13"):
        coded(codec, mode="raw", tile=24, overlap=13)
    with pytest.raises(UserError, match="code with smaller tiles"):
        coded(codec, (3000, 4000), mode="raw", tile=0)


def test_shares_add_up_to_one_whatever_the_tiles():
    """Oracle: the weights of the page in float64, of every pixel of every tile."""
    for size, tile, overlap in (
        ((50, 70), (24, 40), 8),
        ((9, 100), (9, 32), 4),
        ((65, 64), (64, 8), 3),
    ):
        tiles = Tiles(*size, tile, overlap)
        frames = np.random.default_rng(0).random((1, *size, 1))
        total, weight = np.zeros(size), np.zeros(size)
        made = tiles.cut(frames.astype(np.float32))
        for number, (y, x) in enumerate(itertools.product(*tiles.starts)):
            across = [np.minimum(np.arange(t) + 0.5, t - np.arange(t) - 0.5) for t in tile]
            down, right = (np.minimum(one, overlap / 2 + 0.5) for one in across)
            here = down[:, None] * right
            total[y : y + tile[0], x : x + tile[1]] += here * made[number, 0, ..., 0]
            weight[y : y + tile[0], x : x + tile[1]] += here
        np.testing.assert_allclose(tiles.join(made)[0, ..., 0], total / weight, rtol=1e-5)
        np.testing.assert_allclose(tiles.join(made)[0, ..., 0], frames[0, ..., 0], rtol=1e-5)
