"""A video model in the authors' layout. Oracles: the whole network in float64 numpy, written from
the names in their state dict with a correct mask, and their golden vectors for single frames.
"""

import dataclasses

import jax
import numpy as np
import pytest
from einops import rearrange
from scipy.special import erf
from shapes import bsq_quantizer, tokenizer_shape

from bsq_jax.models.tokenizer import TokenizerModel
from bsq_jax.torch_import.tokenizer_layout import from_torch_state

SHAPE = tokenizer_shape(32, 32, 3, 8, 18, 64, 2, 4)


def norm(state, name, x):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(state, name, x, joint="."):
    return x @ state[f"{name}{joint}weight"].T + state.get(f"{name}{joint}bias", 0)


def trunk(state, half, x, mask):
    """``[batch, time, token, width]`` to ``[batch, time * token, width]``."""
    x = x + state[f"{half}.positional_embedding"]
    x = x + state[f"{half}.temporal_positional_embedding"][: x.shape[1], None]
    x = norm(state, f"{half}.ln_pre", rearrange(x, "b t n d -> b (t n) d"))
    for layer in range(2):
        block = f"{half}.transformer.resblocks.{layer}"
        qkv = linear(state, f"{block}.attn.in_proj", norm(state, f"{block}.ln_1", x), "_")
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=4)
        scores = np.where(mask, q @ np.swapaxes(k, -1, -2) / 4, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out = weights / weights.sum(-1, keepdims=True) @ v
        x = x + linear(state, f"{block}.attn.out_proj", rearrange(out, "b h n d -> b n (h d)"))
        hidden = linear(state, f"{block}.mlp.c_fc", norm(state, f"{block}.ln_2", x))
        hidden = hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))
        x = x + linear(state, f"{block}.mlp.c_proj", hidden)
    return norm(state, f"{half}.ln_post", x)


def reference(state, pixels):
    """Points on the sphere and reconstruction, float64."""
    frames = pixels.shape[1]
    frame = np.arange(frames * 16) // 16
    mask = frame[:, None] >= frame[None]
    x = rearrange(pixels, "b t (h p) (w q) c -> b t (h w) (c p q)", p=8, q=8)
    x = trunk(state, "encoder", linear(state, "encoder.conv1", x), mask)
    z = linear(state, "quant_embed", x)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    x = linear(state, "post_quant_embed", np.where(z > 0, 1, -1) / np.sqrt(18))
    x = trunk(state, "decoder", rearrange(x, "b (t n) d -> b t n d", t=frames), mask)
    x = linear(state, "decoder.conv_out", np.tanh(linear(state, "decoder.ffn.0", x)))
    x = rearrange(x, "b (t h w) (c p q) -> b t (h p) (w q) c", t=frames, h=4, w=4, p=8, q=8)
    return rearrange(z, "b (t h w) l -> b t h w l", t=frames, h=4), np.clip(x, -1, 1)


@pytest.fixture(scope="module")
def state(golden):
    """The golden image model with temporal embeddings."""
    rng = np.random.default_rng(0)
    temporal = {
        f"{half}.temporal_positional_embedding": 0.5 * rng.normal(size=(3, 64))
        for half in ("encoder", "decoder")
    }
    floats = {key: np.asarray(value, np.float64) for key, value in golden("vit_tiny_state").items()}
    return {key.removeprefix("module."): value for key, value in floats.items()} | temporal


def run(state, shape, pixels, attention="auto"):
    model = TokenizerModel(shape, bsq_quantizer(length=shape.bits), attention=attention)
    params = from_torch_state({k: np.float32(v) for k, v in state.items()}, shape)

    def parts(model, pixels):
        bits = model.encode(pixels).bits
        return bits, model.latents(pixels), model.decode(bits)

    return jax.jit(lambda p, x: model.apply({"params": p}, x, method=parts))(params, pixels)


@pytest.mark.smoke
@pytest.mark.parametrize("attention", ["dense", "blocked"])
def test_a_clip_against_numpy(state, attention):
    pixels = np.random.default_rng(1).uniform(-1, 1, (2, 3, 32, 32, 3)).astype(np.float32)
    unit, wanted = reference(state, pixels.astype(np.float64))
    bits, latents, made = run(state, SHAPE, pixels, attention)
    latents = latents / np.linalg.norm(latents, axis=-1, keepdims=True)
    np.testing.assert_allclose(latents, unit, atol=1e-4)
    assert np.abs(unit).min() > 1e-5  # no bit hangs on rounding
    np.testing.assert_array_equal(bits, unit > 0)
    np.testing.assert_allclose(made, wanted, atol=1e-4)


def test_frames_that_see_themselves_alone_are_the_golden_images(state, golden):
    wanted = golden("vit_tiny")
    still = state | {key: 0 * value for key, value in state.items() if "temporal" in key}
    images = rearrange(wanted["x"], "b c h w -> b h w c")
    clip = np.stack([images, images[::-1], images], axis=1)
    _, _, made = run(still, dataclasses.replace(SHAPE, window=1), clip)
    recon = rearrange(wanted["recon"], "b c h w -> b h w c")
    for frame, images in enumerate((recon, recon[::-1], recon)):
        np.testing.assert_allclose(made[:, frame], images, atol=1e-4)
