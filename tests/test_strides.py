"""Patches of any shape. Oracles: loops in numpy, sizes counted by hand."""

import dataclasses
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shapes import bsq_quantizer, tokenizer_shape

from bsq_jax import Tokenizer
from bsq_jax.config import default_config, finalize, fingerprint_settings, from_json, to_json
from bsq_jax.config.parsing import set_value
from bsq_jax.core.errors import UserError
from bsq_jax.models.factory import make_tokenizer
from bsq_jax.models.patches import patchify, unpatchify
from bsq_jax.models.tokenizer import TokenizerModel
from bsq_jax.training.flops import count as count_flops
from bsq_jax.training.optimizer import block_matrices

SMALL = {"bits": 6, "width": 16, "layers": 1, "heads": 2, "head_hidden": 0}
TINY = {"image_height": 32, "image_width": 32, **SMALL}


def pixels_of(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (*shape, 3)).astype(np.float32)


def made(shape, seed=0):
    """A model of a shape and parameters without zeros."""
    model = TokenizerModel(shape, bsq_quantizer(length=shape.bits))
    pixels = jnp.zeros((1, shape.frames, shape.image_height, shape.image_width, 3))
    params = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), pixels))["params"]
    rng = np.random.default_rng(seed)
    return model, jax.tree.map(lambda leaf: np.float32(0.3 * rng.normal(size=leaf.shape)), params)


def count(tree):
    return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(tree))


# --- patches ---


@pytest.mark.parametrize("patch", [(2, 2), (4, 2), (1, 3), (16, 16)])
def test_patches_are_cut_as_a_loop_cuts_them(patch):
    high, wide = patch
    pixels = pixels_of(2, 2, 16, 48)
    found = np.asarray(patchify(jnp.asarray(pixels), patch))
    wanted = np.empty((2, 2, 16 // high, 48 // wide, 3 * high * wide), np.float32)
    for row, column in np.ndindex(*wanted.shape[2:4]):
        piece = pixels[:, :, row * high :, column * wide :][:, :, :high, :wide]
        wanted[:, :, row, column] = np.moveaxis(piece, -1, 2).reshape(2, 2, -1)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(unpatchify(jnp.asarray(found), patch), pixels)


def test_frames_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="frames of 16x48 pixels cannot be cut into patches of 3x"):
        patchify(jnp.zeros((1, 1, 16, 48, 3)), (3, 16))


@pytest.mark.parametrize(("patch", "grid"), [(16, (2, 2)), ((16, 8), (2, 4)), ((4, 32), (8, 1))])
def test_a_model_of_any_patches(patch, grid):
    """Tokens, parameters and whole frames; each patch decodes into its own place."""
    shape = tokenizer_shape(**TINY, patch_size=patch)
    assert (shape.grid, shape.tokens) == (grid, math.prod(grid))
    model, params = made(shape)
    numbers = 3 * math.prod(shape.patch)
    assert params["encoder"]["patch_embed"]["kernel"].shape == (numbers, 16)
    assert params["decoder"]["head_out"]["kernel"].shape == (16, numbers)
    pixels = pixels_of(2, 1, 32, 32)
    output = model.apply({"params": params}, pixels)
    assert output.quantized.bits.shape == (2, 1, *grid, 6)
    assert output.pixels.shape == pixels.shape


def test_padding_of_rectangles_is_not_seen():
    """Pictures in larger arrays, with convolutions: as each alone, to the bit with windows."""
    shape = tokenizer_shape(
        **TINY, patch_size=(8, 4), head_channels=4, positions="sincos", spatial_window=2
    )
    model, params = made(shape)
    pixels = pixels_of(2, 1, 24, 20)
    pixels[1, :, 16:], pixels[1, :, :, 12:] = 9.0, -9.0
    sizes = jnp.array([[3, 5], [2, 3]])
    both = model.apply({"params": params}, pixels, None, sizes)
    for index, (rows, columns) in enumerate(sizes.tolist()):
        own = pixels[index : index + 1, :, : 8 * rows, : 4 * columns]
        alone = model.apply({"params": params}, own)
        bits = both.quantized.bits[index : index + 1, :, :rows, :columns]
        np.testing.assert_array_equal(bits, alone.quantized.bits)
        seen = both.pixels[index : index + 1, :, : 8 * rows, : 4 * columns]
        np.testing.assert_allclose(seen, alone.pixels, atol=1e-6)


# --- the setting ---


def tiny_config(**changes):
    config = default_config()
    config.extensions = str(pathlib.Path(__file__).parents[1] / "docs/extending/examples/positions")
    config.model.update(image_size=(32, 32), dtype="float32", **SMALL)
    config.model.update(changes)
    config.data.update(resize=32, eval_resize=32)
    return config


def tokenizer_of(**changes):
    config = finalize(tiny_config(**changes))
    model = make_tokenizer(config)
    return Tokenizer(config, made(model.shape)[1])


@pytest.mark.parametrize(
    ("text", "value"),
    [("16", 16), ("16,8", (16, 8)), ("16x8", (16, 8)), ("(8, 8)", 8), ("8x8", 8)],
)
def test_a_number_or_a_pair_on_the_command_line(text, value):
    config = default_config()
    set_value(config, "model.patch_size", text)
    assert config.model.patch_size == value
    assert finalize(config).model.patch_size == value


@pytest.mark.parametrize("text", ["8,8,8", "8.5", "many", ""])
def test_what_is_no_size_of_patches(text):
    with pytest.raises(UserError, match="it must be a whole number, or 2 such as 16,8"):
        set_value(default_config(), "model.patch_size", text)


@pytest.mark.parametrize("value", [[8, 8], (8, 8), 8])
def test_a_square_is_one_number_wherever_it_is_written(value):
    config = tiny_config()
    config.model.patch_size = tuple(value) if isinstance(value, list) else value
    config = finalize(config)
    assert type(config.model.patch_size) is int
    assert "model.patch_size" not in fingerprint_settings(config)
    saved = to_json(config)
    saved["model"]["patch_size"] = value
    assert from_json(saved, "x").model.patch_size == 8


def test_rectangles_are_part_of_the_identity():
    config = finalize(tiny_config(patch_size=(16, 8)))
    assert fingerprint_settings(config)["model.patch_size"] == [16, 8]
    assert from_json(to_json(config), "x").model.patch_size == (16, 8)


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        ((16, 5), "image_size width 32 is not a multiple of model.patch_size's width 5"),
        (5, "image_size height 32 is not a multiple of model.patch_size 5"),
        ((0, 8), r"model.patch_size is \(0, 8\): it must be positive"),
        ((8, 8, 8), r"model.patch_size is \(8, 8, 8\): it must be a whole number, or 2 such as"),
    ],
)
def test_patches_that_do_not_fit(patch, words):
    with pytest.raises(UserError, match=words):
        finalize(tiny_config(patch_size=patch))


def test_the_python_api_with_rectangles():
    tokenizer = tokenizer_of(patch_size=(16, 8))
    pixels = pixels_of(2, 32, 32)
    bits = tokenizer.encode(pixels)
    assert bits.shape == (2, 2, 4, 6)
    assert tokenizer.decode(bits).shape == (2, 32, 32, 3)
    assert "6 bits a patch of 16x8" in repr(tokenizer)


# --- encoder and decoder of their own sizes ---

HALVES = {"encoder_layers": 1, "decoder_layers": 3, "encoder_width": 24, "decoder_width": 48}


def numbers_of_a_half(shape, width, layers):
    """Parameters of a trunk: positions, two norms, and blocks of 12 width^2 weights."""
    block = 12 * width**2 + 13 * width  # weights; biases 3 + 1 + 4 + 1, and two norms of 2
    return (shape.tokens + (shape.frames if shape.frames > 1 else 0) + 4) * width + layers * block


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("changes", [{}, HALVES, {"decoder_layers": 2}, {"encoder_width": 40}])
def test_parameters_in_closed_form(changes, frames):
    shape = tokenizer_shape(**{**TINY, **changes}, frames=frames)
    widths = [changes.get(f"{half}_width", 16) for half in ("encoder", "decoder")]
    layers = [changes.get(f"{half}_layers", 1) for half in ("encoder", "decoder")]
    trunks = [numbers_of_a_half(shape, *sizes) for sizes in zip(widths, layers, strict=True)]
    _, params = made(shape)
    assert count(params["encoder"]) == trunks[0] + 192 * widths[0]
    assert count(params["decoder"]) == trunks[1] + (widths[1] + 1) * 192
    assert count(params["to_latent"]) == (widths[0] + 1) * 6
    assert count(params["from_latent"]) == (6 + 1) * widths[1]


def test_heads_are_equally_wide():
    shape = tokenizer_shape(**{**TINY, **HALVES})
    assert [
        (shape.half(half).width, shape.half(half).heads) for half in ("encoder", "decoder")
    ] == [
        (24, 3),
        (48, 6),
    ]
    assert tokenizer_shape(**TINY).half("decoder") == tokenizer_shape(**TINY)


@pytest.mark.parametrize("positions", ["learned", "sincos", "rotary"])
def test_halves_given_their_common_size_are_the_same_model(positions):
    """To the bit: the settings of a half change nothing but its size."""
    plain = tokenizer_shape(**TINY, frames=3, positions=positions)
    given = dataclasses.replace(
        plain, encoder_layers=1, decoder_layers=1, encoder_width=16, decoder_width=16
    )
    (one, params), (other, _) = made(plain), made(given)
    pixels = pixels_of(1, 3, 32, 32)
    jax.tree.map(
        np.testing.assert_array_equal,
        one.apply({"params": params}, pixels),
        other.apply({"params": params}, pixels),
    )


@pytest.mark.parametrize("positions", ["learned", "sincos", "rotary", "my_positions:fourier"])
def test_streams_of_unequal_halves_are_their_clips(positions):
    tokenizer = tokenizer_of(**HALVES, frames=3, positions=positions)
    pixels = pixels_of(1, 3, 32, 32)
    stream = tokenizer.stream()
    bits = np.stack([stream.encode(pixels[:, time]) for time in range(3)], 1)
    decoded = np.stack([stream.decode(bits[:, time]) for time in range(3)], 1)
    np.testing.assert_array_equal(bits, tokenizer.encode(pixels))
    np.testing.assert_allclose(decoded, tokenizer.decode(bits), atol=1e-5)


def test_floating_point_operations_of_unequal_halves():
    shape = tokenizer_shape(**{**TINY, **HALVES})
    model = TokenizerModel(shape, bsq_quantizer(length=6))
    params = jax.eval_shape(lambda: made(shape)[1])
    pixels = jax.ShapeDtypeStruct((1, 1, 32, 32, 3), jnp.float32)
    found = count_flops(lambda p, x: model.apply({"params": p}, x).pixels, params, pixels)
    tokens, wanted = shape.tokens, 0
    for width, layers in ((24, 1), (48, 3)):
        wanted += layers * (2 * tokens * 12 * width**2 + 4 * tokens**2 * width)
        wanted += 2 * tokens * width * (192 + 6)
    assert found == pytest.approx(wanted, rel=0.01)  # layer norms have small products of their own


def test_the_optimizer_and_meshes_take_unequal_halves():
    """Muon has the matrices of both halves; every parameter has its axes."""
    config = finalize(tiny_config(**HALVES))
    model = make_tokenizer(config)
    pixels = jnp.zeros((1, 1, 32, 32, 3))
    boxed = jax.eval_shape(model.init, jax.random.key(0), pixels)["params"]
    matrices = block_matrices(nn.meta.unbox(boxed))
    chosen = jax.tree.leaves(matrices, is_leaf=lambda x: hasattr(x, "_fields"))
    assert len(chosen) == 2 * 4  # qkv, out, up and down of each stack
    for leaf in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned)):
        assert len(leaf.names) == len(leaf.value.shape)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"decoder_width": 12}, "model.decoder_width 12 does not divide into heads of model.width"),
        ({"encoder_layers": -1}, "model.encoder_layers is -1: it must be 0 or more"),
        ({"positions": "sincos", "heads": 8, "encoder_width": 18}, "needs a width that 4 divides"),
    ],
)
def test_halves_that_do_not_fit(changes, words):
    with pytest.raises(UserError, match=words):
        make_tokenizer(finalize(tiny_config(**changes)))


def test_halves_are_part_of_the_identity():
    plain, given = finalize(tiny_config()), finalize(tiny_config(**HALVES))
    assert {f"model.{key}" for key in HALVES}.isdisjoint(fingerprint_settings(plain))
    assert {f"model.{key}" for key in HALVES} <= fingerprint_settings(given).keys()
    old = to_json(plain)
    for key in HALVES:
        del old["model"][key]
    assert to_json(from_json(old, "x")) == to_json(plain)
