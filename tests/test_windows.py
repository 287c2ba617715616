"""Attention within shifted windows of frames of any size, against loops in numpy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsq_jax.config import default_config, finalize
from bsq_jax.core.errors import UserError
from bsq_jax.models.attention.attend import attend
from bsq_jax.models.attention.windows import PADDING, Windows
from bsq_jax.models.factory import make_tokenizer
from bsq_jax.models.position_tables import fitted

GRIDS = [(4, 4), (8, 4), (7, 9), (1, 1), (1, 13), (12, 5)]
SIDE = 4


def small_model(**changes):
    config = default_config()
    config.model.update(
        image_size=(32, 32),
        patch_size=4,
        bits=6,
        width=16,
        layers=3,
        heads=2,
        head_hidden=0,
        head_channels=4,
        dtype="float32",
        spatial_window=SIDE,
        positions="window",
    )
    config.model.update(changes)
    config.data.update(resize=32, eval_resize=32)
    return make_tokenizer(finalize(config))


def random_params(model, seed=0):
    """Parameters none of which is zero, so that every part counts."""
    rng = np.random.default_rng(seed)
    pixels = jnp.zeros((1, model.shape.frames, 32, 32, 3))
    params = jax.eval_shape(model.init, jax.random.key(0), pixels)["params"]
    params = jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape), params)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


def visible_in_windows(rows, columns, shifted, real=None):
    """``[token, token]`` of a grid that windows fill, by the coordinates of the tokens alone."""
    real = (rows, columns) if real is None else real
    shift = SIDE // 2 if shifted else 0
    places = [(r, c) for r in range(rows) for c in range(columns)]
    mask = np.zeros((len(places), len(places)), bool)
    for i, (row, column) in enumerate(places):
        for j, (other_row, other_column) in enumerate(places):
            same = (row + shift) // SIDE == (other_row + shift) // SIDE
            same &= (column + shift) // SIDE == (other_column + shift) // SIDE
            inside = [r < real[0] and c < real[1] for r, c in (places[i], places[j])]
            mask[i, j] = same and inside[0] == inside[1]
    return mask, np.array([r < real[0] and c < real[1] for r, c in places])


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_cutting_and_joining_are_inverses(grid, shifted):
    windows = Windows(*grid, SIDE)
    x = np.random.default_rng(0).standard_normal((2, 3, *grid, 5)).astype(np.float32)
    filled = windows.fill(jnp.asarray(x)).reshape(2, 3, -1, 5)
    cut = windows.cut(filled, jnp.asarray(shifted))
    chex.assert_shape(cut, (2 * windows.count, 3, SIDE**2, 5))
    chex.assert_trees_all_equal(windows.join(cut, jnp.asarray(shifted)), filled)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    ("grid", "real"), [((8, 8), None), ((8, 12), (7, 9)), ((7, 9), None), ((12, 4), (1, 2))]
)
def test_attention_in_windows_is_that_of_a_loop_over_tokens(grid, real, shifted):
    windows = Windows(*grid, SIDE)
    rows, columns = windows.padded
    rng = np.random.default_rng(1)
    query, key, value = rng.standard_normal((3, 1, 1, rows * columns, 6))
    sizes = None if real is None else jnp.asarray([real], jnp.int32)
    regions = windows.regions(sizes)[int(shifted)]
    made = attend(
        *(
            windows.cut(jnp.asarray(x, jnp.float32), jnp.asarray(shifted))[..., None, :]
            for x in (query, key, value)
        ),
        implementation="dense",
        regions=regions.reshape(windows.count, -1),
    )
    made = windows.join(made[..., 0, :], jnp.asarray(shifted))[0, 0]

    mask, inside = visible_in_windows(rows, columns, shifted, real or grid)
    for place in np.flatnonzero(inside):
        scores = key[0, 0][mask[place]] @ query[0, 0, place] / np.sqrt(6)
        weights = np.exp(scores - scores.max())
        wanted = weights @ value[0, 0][mask[place]] / weights.sum()
        np.testing.assert_allclose(made[place], wanted, atol=2e-6)


def test_regions_of_padding_are_never_those_of_the_picture():
    windows = Windows(8, 8, SIDE)
    sizes = np.array([[8, 8], [5, 3], [1, 8]], np.int32)
    regions = np.asarray(windows.regions(jnp.asarray(sizes)))
    assert regions.shape == (2, 3, 4, 16)
    for example, (rows, columns) in enumerate(sizes):
        for phase in (0, 1):
            assert np.sum(regions[phase, example] != PADDING) == rows * columns


@pytest.mark.parametrize("positions", ["window", "sincos", "rotary"])
def test_padding_and_company_change_no_bit(positions):
    """A picture alone, in a batch, and in larger arrays: latents are the same to the bit."""
    model = small_model(positions=positions, width=24)
    params = random_params(model)
    rng = np.random.default_rng(2)
    grids = [(8, 8), (17, 11), (9, 20), (1, 1), (3, 30)]
    pictures = [rng.uniform(-1, 1, (1, 4 * r, 4 * c, 3)).astype(np.float32) for r, c in grids]

    def arrays(members, rows, columns):
        """Pictures in arrays of one size, with noise around them, and their sizes."""
        padded = rng.uniform(-1, 1, (len(members), 1, 4 * rows, 4 * columns, 3))
        for row, index in zip(padded, members, strict=True):
            height, width = pictures[index].shape[1:3]
            row[:, :height, :width] = pictures[index]
        sizes = np.array([grids[index] for index in members], np.int32)
        return padded.astype(np.float32), sizes

    @jax.jit
    def run(pixels, sizes):
        latents = model.apply({"params": params}, pixels, None, sizes, method="latents")
        output = model.apply({"params": params}, pixels, None, sizes)
        return latents, output.quantized.bits, output.pixels

    together = run(*arrays(range(len(grids)), 24, 32))
    for index, (rows, columns) in enumerate(grids):
        # At least 256 tokens: products of fewer rows are computed in another order.
        alone = run(*arrays([index], max(-(-rows // 4) * 4, 16), max(-(-columns // 4) * 4, 16)))
        for one, all_ in zip(alone[:2], together[:2], strict=True):
            np.testing.assert_array_equal(
                one[0, :, :rows, :columns], all_[index, :, :rows, :columns]
            )
        # A convolution over whole frames may sum in another order.
        region = np.s_[:, : 4 * rows, : 4 * columns]
        np.testing.assert_allclose(alone[2][0][region], together[2][index][region], atol=2e-5)


@pytest.mark.parametrize("positions", ["window", "rotary"])
def test_no_pictures_give_no_tokens(positions):
    model = small_model(positions=positions, width=24)
    pixels = jnp.zeros((0, 1, 12, 20, 3))
    output = jax.eval_shape(
        lambda params: model.apply(params, pixels), {"params": random_params(model)}
    )
    assert output.pixels.shape == pixels.shape
    assert output.quantized.bits.shape[:4] == (0, 1, 3, 5)


def test_whole_frames_leave_padding_out_too():
    model = small_model(spatial_window=0, positions="learned")
    params = random_params(model)
    rng = np.random.default_rng(3)
    picture = rng.uniform(-1, 1, (1, 1, 36, 20, 3)).astype(np.float32)
    padded = rng.uniform(-1, 1, (1, 1, 48, 48, 3)).astype(np.float32)
    padded[:, :, :36, :20] = picture
    alone = model.apply({"params": params}, picture)
    other = model.apply({"params": params}, padded, None, np.array([[9, 5]], np.int32))
    np.testing.assert_allclose(other.pixels[:, :, :36, :20], alone.pixels, atol=2e-5)
    np.testing.assert_array_equal(other.quantized.bits[:, :, :9, :5], alone.quantized.bits)


def test_frames_of_a_stream_are_those_of_the_clip():
    model = small_model(frames=4, positions="sincos", window=2, attention="blocked")
    params, rng = random_params(model), np.random.default_rng(4)
    clip = rng.uniform(-1, 1, (1, 4, 20, 44, 3)).astype(np.float32)
    whole = model.apply({"params": params}, clip, method="encode").bits
    past, found = None, []
    for frame in range(4):
        positions = model.shape.frame_positions(1, frame, (5, 11))
        bits, present = model.apply(
            {"params": params}, clip[:, frame : frame + 1], positions, past, method="encode_next"
        )
        past = jax.tree.map(lambda x: x[:, :, -1:], present)
        found.append(bits)
    np.testing.assert_array_equal(np.concatenate(found, axis=1), whole)


def test_a_window_model_does_not_see_far():
    """A pixel changes tokens only as far as windows of its layers reach."""
    model = small_model(layers=2)
    params = random_params(model)
    pixels = np.random.default_rng(5).uniform(-1, 1, (1, 1, 32, 96, 3)).astype(np.float32)
    changed = pixels.copy()
    changed[..., 0, :] *= -1  # the first column of pixels, of the first column of tokens
    latents = [
        np.asarray(model.apply({"params": params}, x, method="latents"))[0, 0]
        for x in (pixels, changed)
    ]
    moved = np.flatnonzero(np.abs(latents[0] - latents[1]).max(axis=(0, 2)) > 0)
    assert moved.min() == 0
    assert moved.max() == SIDE + SIDE // 2 - 1  # its window, and the shifted ones that meet it


def test_learned_positions_fit_other_grids_like_an_image_is_resized():
    table = np.random.default_rng(6).standard_normal((4, 4, 3)).astype(np.float32)
    wanted = jax.image.resize(table, (10, 6, 3), "cubic", antialias=True)
    np.testing.assert_allclose(fitted(table, (10, 6))[0], wanted, atol=1e-6)
    padded = fitted(table, (16, 12), jnp.asarray([[10, 6], [4, 4]], jnp.int32))
    np.testing.assert_allclose(padded[0, :10, :6], wanted, atol=1e-5)
    np.testing.assert_allclose(padded[1, :4, :4], table, atol=1e-5)
    np.testing.assert_array_equal(fitted(table, (4, 4))[0], table)


def test_settings_that_do_not_fit():
    with pytest.raises(UserError, match=r"model\.spatial_window is 3: windows have an even side"):
        small_model(spatial_window=3)
    with pytest.raises(UserError, match=r"positions=window needs model\.spatial_window"):
        small_model(spatial_window=0)
