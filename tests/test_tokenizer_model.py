"""The tokenizer network. Oracles: golden vectors of the published code; the model against itself.

The golden states are compared at every stage, so a mistake shows at the first stage it touches.
"""

import dataclasses
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from shapes import bsq_quantizer, tokenizer_shape

from bsq_jax.models.patches import patchify, unpatchify
from bsq_jax.models.tokenizer import TokenizerModel
from bsq_jax.models.tokenizer_shape import TokenizerShape
from bsq_jax.quantizers import BinarySphericalQuantizer
from bsq_jax.quantizers.bits import to_group_indices
from bsq_jax.quantizers.bsq import to_sphere
from bsq_jax.torch_import.tokenizer_layout import from_torch_state

GOLDEN = tokenizer_shape(
    image_height=32, image_width=32, patch_size=8, bits=18, width=64, layers=2, heads=4
)
TINY = tokenizer_shape(16, 16, 1, 8, bits=12, width=16, layers=2, heads=2, head_hidden=32)
CLIP = dataclasses.replace(TINY, frames=3)


def random_params(shape: TokenizerShape, seed: int = 0):
    """Parameters without zeros and of ordinary size, so that nothing is hidden by the init."""
    model = TokenizerModel(shape, bsq_quantizer(length=shape.bits))
    pixels = jnp.zeros((1, shape.frames, shape.image_height, shape.image_width, 3))
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), pixels))["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.float32(0.2 * rng.normal(size=leaf.shape)), shapes)


def random_pixels(*leading: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (*leading, 16, 16, 3)).astype(np.float32)


def stages(model: TokenizerModel, pixels):
    """Every stage that the golden vectors list."""
    table = model.shape.frame_positions(pixels.shape[1])
    features = model.encoder(pixels, table)[0]
    latents = model.to_latent(features)
    quantized = model.quantizer(latents)
    embedded = model.from_latent(quantized.quantized)
    return {
        "encoder_out": features,
        "quant_embed_out": latents,
        "z": to_sphere(latents),
        "quant": quantized.quantized,
        "post_quant_embed_out": embedded,
        "decoder_out_preclamp": model.decoder(embedded, table)[0],
        "recon": model.decode(quantized.bits),
        "recon_skip_quantize": jnp.clip(model.decode_quantized(to_sphere(latents)), -1, 1),
        "bits": model.encode(pixels).bits,
        "output": model(pixels).pixels,
    }


@pytest.fixture(scope="module")
def golden_stages(golden):
    wanted = golden("vit_tiny")
    params = from_torch_state(golden("vit_tiny_state"), GOLDEN)
    model = TokenizerModel(GOLDEN, bsq_quantizer(length=GOLDEN.bits))
    pixels = rearrange(wanted["x"], "b c h w -> b 1 h w c")
    ours = jax.jit(lambda p, x: model.apply({"params": p}, x, method=stages))(params, pixels)
    return {name: np.asarray(value) for name, value in ours.items()}, wanted


@pytest.mark.smoke
def test_golden_stages(golden_stages):
    ours, wanted = golden_stages
    for name in ("encoder_out", "quant_embed_out", "z", "quant", "post_quant_embed_out"):
        tokens = rearrange(ours[name], "b 1 h w d -> b (h w) d")
        np.testing.assert_allclose(tokens, wanted[name], atol=1e-4, err_msg=name)
    for name in ("decoder_out_preclamp", "recon", "recon_skip_quantize"):
        picture = rearrange(ours[name], "b 1 h w c -> b c h w")
        np.testing.assert_allclose(picture, wanted[name], atol=1e-4, err_msg=name)
    indices = rearrange(to_group_indices(ours["bits"], 9), "b 1 h w g -> b (h w) g")
    np.testing.assert_array_equal(indices, wanted["group_indices"])
    # The call as a whole does what its stages do.
    np.testing.assert_array_equal(ours["output"], ours["decoder_out_preclamp"])


def test_golden_reconstruction_is_clamped_and_ours_in_training_is_not(golden_stages):
    ours, _ = golden_stages
    np.testing.assert_allclose(ours["recon"], np.clip(ours["output"], -1, 1), atol=1e-6)


def test_parameter_count_of_the_published_size():
    model = TokenizerModel(tokenizer_shape(), bsq_quantizer(length=36))
    pixels = jax.ShapeDtypeStruct((1, 1, 256, 256, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), pixels)["params"]

    def count(tree) -> int:
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

    assert count(params["encoder"]) == 85_991_424
    assert count(params["decoder"]) == 88_796_352
    assert count(params) == 174_843_876


def test_patches_are_channel_row_column():
    pixels = jnp.arange(1 * 2 * 4 * 4 * 3).reshape(1, 2, 4, 4, 3)
    patches = patchify(pixels, (2, 2))
    chex.assert_shape(patches, (1, 2, 2, 2, 12))
    # Row 0, column 1 of frame 0: pixels (0, 2), (0, 3), (1, 2), (1, 3); a pixel is 3 numbers.
    assert patches[0, 0, 0, 1].tolist() == [6, 9, 18, 21, 7, 10, 19, 22, 8, 11, 20, 23]
    np.testing.assert_array_equal(unpatchify(patches, (2, 2)), pixels)


@pytest.fixture(scope="module")
def plain():
    """Output and gradients of the plain model, with its parameters and pixels."""
    params, pixels = random_params(TINY), random_pixels(2, 1)
    return params, pixels, output_and_gradient(TokenizerModel(TINY, quantizer()), params, pixels)


def quantizer() -> BinarySphericalQuantizer:
    return bsq_quantizer(length=TINY.bits, commitment_weight=0.25)


def output_and_gradient(model, params, pixels):
    def loss(p):
        output = model.apply({"params": p}, pixels)
        return jnp.mean(jnp.square(output.pixels - pixels)) + output.quantized.loss, output

    (_, output), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return output, gradient


OPTIONS = [{"remat": "full"}, {"remat": "dots"}, {"attention": "by_head"}]


@pytest.mark.parametrize("options", OPTIONS)
def test_how_it_is_computed_changes_nothing(plain, options):
    params, pixels, (output, gradient) = plain
    other, other_gradient = output_and_gradient(
        TokenizerModel(TINY, quantizer(), **options), params, pixels
    )
    np.testing.assert_array_equal(other.quantized.bits, output.quantized.bits)
    np.testing.assert_allclose(other.pixels, output.pixels, atol=1e-5)
    chex.assert_trees_all_close(other_gradient, gradient, rtol=1e-7, atol=1e-5, strict=True)


def test_gradients_reach_every_parameter(plain):
    params, _, (_, gradient) = plain
    chex.assert_trees_all_equal_shapes_and_dtypes(gradient, params)
    chex.assert_tree_all_finite(gradient)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.asarray(leaf).any(), path


def test_low_precision_is_close_and_its_latents_are_float32():
    params, pixels = random_params(TINY), random_pixels(4, 1)
    bits = np.random.default_rng(0).integers(0, 2, (4, 1, 2, 2, 12), np.uint8)
    results = []
    for dtype in (jnp.float32, jnp.bfloat16):
        model = TokenizerModel(TINY, bsq_quantizer(length=TINY.bits), dtype=jnp.dtype(dtype))

        def both(p, x, model=model):
            return model.apply({"params": p}, x, method=lambda m, x: (m.latents(x), m.decode(bits)))

        results.append(jax.jit(both)(params, pixels))
    for full, low in zip(*results, strict=True):
        chex.assert_type(low, jnp.float32)
        chex.assert_equal_shape([full, low])
        assert not np.array_equal(full, low)
        spread = float(np.std(full))
        np.testing.assert_allclose(low, full, atol=0.15 * spread)
        assert np.mean(np.abs(low - full)) < 0.03 * spread


@pytest.fixture(scope="module")
def watch_clip():
    """Latents and pixels of a clip, and the pixels of some fixed tokens: both halves alone."""
    params = random_params(CLIP)
    model = TokenizerModel(CLIP, bsq_quantizer(length=CLIP.bits))

    @jax.jit
    def watch(pixels, bits):
        def parts(m, pixels, bits):
            return m.latents(pixels), m(pixels).pixels, m.decode_quantized(2.0 * bits - 1.0)

        return model.apply({"params": params}, pixels, bits, method=parts)

    return watch


@pytest.mark.smoke
def test_the_future_changes_nothing_to_the_bit(watch_clip):
    pixels = random_pixels(2, 3)
    bits = np.random.default_rng(1).integers(0, 2, (2, 3, 2, 2, 12)).astype(np.float32)
    changed, changed_bits = pixels.copy(), bits.copy()
    changed[:, 2] = random_pixels(2, seed=9)
    changed_bits[:, 2] = 1 - bits[:, 2]
    for a, b in zip(watch_clip(pixels, bits), watch_clip(changed, changed_bits), strict=True):
        np.testing.assert_array_equal(a[:, :2], b[:, :2])
        assert not np.array_equal(a[:, 2], b[:, 2])


def test_the_past_is_seen(watch_clip):
    pixels = random_pixels(2, 3)
    bits = np.random.default_rng(1).integers(0, 2, (2, 3, 2, 2, 12)).astype(np.float32)
    changed, changed_bits = pixels.copy(), bits.copy()
    changed[:, 0] = random_pixels(2, seed=9)
    changed_bits[:, 0] = 1 - bits[:, 0]
    before, after = watch_clip(pixels, bits), watch_clip(changed, changed_bits)
    for half in (0, 2):  # the encoder's latents, and the decoder's pixels
        for frame in (1, 2):
            assert not np.array_equal(before[half][:, frame], after[half][:, frame])


def test_a_shorter_clip_is_the_start_of_a_longer_one(watch_clip):
    pixels = random_pixels(2, 3)
    bits = np.random.default_rng(1).integers(0, 2, (2, 3, 2, 2, 12)).astype(np.float32)
    whole = watch_clip(pixels, bits)
    for frames in (1, 2):
        for part, all_frames in zip(
            watch_clip(pixels[:, :frames], bits[:, :frames]), whole, strict=True
        ):
            np.testing.assert_allclose(part, all_frames[:, :frames], atol=1e-5)
