"""Causality of the whole network, by what it does: no mask is looked at.

Oracle: the network itself on other inputs. What a frame's outputs are must not change, to the bit,
whatever comes after it.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from bsq_jax.core.sharding import batch_sharding, make_mesh, replicated
from bsq_jax.models import attention
from bsq_jax.models.tokenizer import TokenizerModel, TokenizerShape
from bsq_jax.quantizers import BinarySphericalQuantizer

FRAMES, SIDE = 3, 16
# Every implementation with every kind of position, and every rule, at least once.
CASES = {
    "dense, learned": ("dense", "learned", "block_causal", 0, "float32"),
    "dense, sincos, tokens": ("dense", "sincos", "token_causal", 0, "float32"),
    "dense, rotary, bfloat16": ("dense", "rotary", "block_causal", 0, "bfloat16"),
    "by_head, learned, window": ("by_head", "learned", "block_causal", 2, "float32"),
    "by_head, sincos": ("by_head", "sincos", "block_causal", 0, "float32"),
    "by_head, rotary": ("by_head", "rotary", "block_causal", 0, "float32"),
    "blocked, learned": ("blocked", "learned", "block_causal", 0, "float32"),
    "blocked, learned, bfloat16": ("blocked", "learned", "block_causal", 0, "bfloat16"),
    "blocked, sincos": ("blocked", "sincos", "block_causal", 0, "float32"),
    "blocked, rotary, tokens": ("blocked", "rotary", "token_causal", 0, "float32"),
    "blocked, rotary, window": ("blocked", "rotary", "block_causal", 2, "float32"),
}


@pytest.fixture(autouse=True, scope="module")
def a_block_a_frame():
    """Frames are tiny here; blocks are those of large ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_BLOCK_TOKENS", 1)
        yield


def model_of(case):
    implementation, positions, causality, window, dtype = CASES[case]
    shape = TokenizerShape(SIDE, SIDE, FRAMES, 8, 6, 24, 2, 2, 2.0, 0, positions, causality, window)
    return TokenizerModel(
        shape, BinarySphericalQuantizer(), jnp.dtype(dtype), attention=implementation
    )


def parts(model, pixels, bits):
    """Latents and pixels of a clip, and the pixels of given tokens."""
    latents = model.latents(pixels)
    quantized = model.quantizer(latents)
    return latents, quantized.bits, model.decode_quantized(quantized.quantized), model.decode(bits)


@functools.cache
def watched(case):
    """The jitted network with parameters of ordinary size, and its inputs."""
    model = model_of(case)
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-1, 1, (8, FRAMES, SIDE, SIDE, 3)).astype(np.float32)
    bits = rng.integers(0, 2, (8, FRAMES, 2, 2, 6)).astype(np.uint8)
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), pixels))["params"]
    params = jax.tree.map(lambda leaf: np.float32(0.3 * rng.normal(size=leaf.shape)), shapes)
    watch = jax.jit(lambda p, x, b: model.apply({"params": p}, x, b, method=parts))
    return model, params, pixels, bits, watch


def changed_from(frame, pixels, bits):
    pixels, bits = pixels.copy(), bits.copy()
    pixels[:, frame:] *= -0.7
    bits[:, frame:] = 1 - bits[:, frame:]
    return pixels, bits


def check_past_does_not_move(watch, params, pixels, bits):
    before = jax.device_get(watch(params, pixels, bits))
    for frame in range(1, FRAMES):
        after = jax.device_get(watch(params, *changed_from(frame, pixels, bits)))
        for a, b in zip(before, after, strict=True):
            np.testing.assert_array_equal(a[:, :frame], b[:, :frame])
            assert not np.array_equal(a[:, frame], b[:, frame])


@pytest.mark.parametrize("case", CASES)
def test_what_comes_later_changes_nothing_to_the_bit(case):
    _, params, pixels, bits, watch = watched(case)
    check_past_does_not_move(watch, params, pixels, bits)


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_sharded_likewise(axes):
    _, params, pixels, bits, watch = watched("blocked, learned")
    mesh = make_mesh(**{"data": 1, "fsdp": 1, "tensor": 1, **axes})
    place = functools.partial(jax.device_put, device=batch_sharding(mesh))

    def sharded(params, pixels, bits):
        return watch(jax.device_put(params, replicated(mesh)), place(pixels), place(bits))

    assert isinstance(sharded(params, pixels, bits)[0].sharding, NamedSharding)
    check_past_does_not_move(sharded, params, pixels, bits)


@pytest.mark.parametrize(
    "case", ["dense, learned", "by_head, rotary", "blocked, learned", "blocked, rotary, window"]
)
def test_a_beginning_is_computed_as_in_the_whole_clip(case):
    _, params, pixels, bits, watch = watched(case)
    latents, tokens, *rest = jax.device_get(watch(params, pixels, bits))
    for frames in (1, 2):
        beginning = jax.device_get(watch(params, pixels[:, :frames], bits[:, :frames]))
        np.testing.assert_array_equal(beginning[1], tokens[:, :frames])
        for found, wanted in zip((beginning[0], *beginning[2:]), (latents, *rest), strict=True):
            np.testing.assert_allclose(found, wanted[:, :frames], atol=2e-6)


@pytest.mark.parametrize("case", ["dense, learned", "by_head, rotary", "blocked, learned"])
def test_early_frames_have_no_gradient_to_later_pixels(case):
    model, params, pixels, bits, _ = watched(case)

    @jax.jit
    def gradients(pixels):
        def first_frames(pixels):
            latents, _, made, _ = model.apply({"params": params}, pixels, bits[:1], method=parts)
            return jnp.sum(jnp.sin(latents[:, :2])), jnp.sum(jnp.sin(made[:, :2]))

        return jax.jacrev(first_frames)(pixels)

    for gradient in gradients(pixels[:1]):
        assert not np.asarray(gradient)[:, 2:].any()
        assert np.asarray(gradient)[:, :2].any(axis=(0, 2, 3, 4)).all()


def test_full_attention_is_not_causal():
    """The checks above can fail."""
    CASES["full"] = ("dense", "learned", "full", 0, "float32")
    try:
        _, params, pixels, bits, watch = watched("full")
        with pytest.raises(AssertionError):
            check_past_does_not_move(watch, params, pixels, bits)
    finally:
        del CASES["full"]
