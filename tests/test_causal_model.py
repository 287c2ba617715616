"""Causality of the whole network, by what it does: no mask is looked at.

Oracle: the network itself on other inputs. What a frame's outputs are must not change, to the bit,
whatever comes after it.
"""

import functools
import itertools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shapes import bsq_quantizer, tokenizer_shape

from bsq_jax.core.sharding import batch_sharding, make_mesh, parameter_shardings
from bsq_jax.models.attention import choice as attention_choice
from bsq_jax.models.attention.attend import attend
from bsq_jax.models.attention.causality import Causality
from bsq_jax.models.attention.choice import Blocking
from bsq_jax.models.tokenizer import TokenizerModel

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
    "per_frame, rotary, bfloat16": ("per_frame", "rotary", "block_causal", 0, "bfloat16"),
}


@pytest.fixture(autouse=True, scope="module")
def a_block_a_frame():
    """Frames are tiny here; blocks are those of large ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_choice, "_BLOCK_TOKENS", 1)
        yield


def how(name):
    """Implementation and blocking by a name."""
    per_frame = name == "per_frame"
    return "blocked" if per_frame else name, Blocking.PER_FRAME if per_frame else Blocking.LARGE


def model_of(case):
    name, positions, causality, window, dtype = CASES[case]
    implementation, blocking = how(name)
    shape = tokenizer_shape(
        SIDE, SIDE, FRAMES, 8, 6, 24, 2, 2, 2.0, 0, 0, positions, causality, window
    )
    return TokenizerModel(
        shape,
        bsq_quantizer(length=shape.bits),
        jnp.dtype(dtype),
        attention=implementation,
        blocking=blocking,
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


def until(frame, parts):
    return [part[:, :frame] for part in parts]


def check_past_does_not_move(watch, params, pixels, bits):
    before = jax.device_get(watch(params, pixels, bits))
    for frame in range(1, FRAMES):
        after = jax.device_get(watch(params, *changed_from(frame, pixels, bits)))
        chex.assert_trees_all_equal(until(frame, before), until(frame, after), strict=True)
        for a, b in zip(before, after, strict=True):
            assert not np.array_equal(a[:, frame], b[:, frame])


@pytest.mark.parametrize("case", CASES)
def test_what_comes_later_changes_nothing_to_the_bit(case):
    _, params, pixels, bits, watch = watched(case)
    check_past_does_not_move(watch, params, pixels, bits)


@pytest.mark.parametrize(
    ("case", "axes"),
    [
        ("blocked, learned", (8, 1, 1)),
        ("blocked, sincos", (2, 2, 2)),
        ("dense, rotary, bfloat16", (2, 2, 2)),
        ("by_head, learned, window", (2, 2, 2)),
    ],
)
@pytest.mark.usefixtures("eight_devices")
def test_sharded_likewise(case, axes):
    model, params, pixels, bits, watch = watched(case)
    mesh = make_mesh(*axes)
    boxed = jax.eval_shape(model.init, jax.random.key(0), pixels)["params"]
    params = jax.device_put(params, parameter_shardings(boxed, mesh))
    kernel = params["encoder"]["trunk"]["transformer"]["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size / (axes[1] * axes[2])
    place = functools.partial(jax.device_put, device=batch_sharding(mesh))

    def sharded(params, pixels, bits):
        return watch(params, place(pixels), place(bits))

    found = sharded(params, pixels, bits)
    assert len(found[0].sharding.device_set) == 8
    check_past_does_not_move(sharded, params, pixels, bits)


@pytest.mark.parametrize(
    "case", ["dense, learned", "by_head, rotary", "blocked, learned", "blocked, rotary, window"]
)
def test_a_beginning_is_computed_as_in_the_whole_clip(case):
    _, params, pixels, bits, watch = watched(case)
    whole = jax.device_get(watch(params, pixels, bits))
    for frames in (1, 2):
        beginning = jax.device_get(watch(params, pixels[:, :frames], bits[:, :frames]))
        wanted = until(frames, whole)
        chex.assert_trees_all_equal(beginning[1], wanted[1], strict=True)  # tokens
        chex.assert_trees_all_close(list(beginning), wanted, rtol=1e-7, atol=2e-6, strict=True)


@pytest.mark.parametrize(
    "case",
    [
        *("dense, learned", "dense, sincos, tokens", "by_head, rotary", "blocked, learned"),
        *("blocked, rotary, window", "per_frame, rotary, bfloat16"),
    ],
)
def test_early_frames_have_no_gradient_to_later_pixels(case):
    model, params, pixels, bits, _ = watched(case)

    @jax.jit
    def gradient(pixels, counts):
        def outputs(pixels):
            latents, _, made, _ = model.apply({"params": params}, pixels, bits[:1], method=parts)
            each = jnp.sum(jnp.sin(latents), (0, 2, 3, 4)) + jnp.sum(jnp.sin(made), (0, 2, 3, 4))
            return jnp.sum(each * counts)

        return jax.grad(outputs)(pixels)

    for frames in (1, 2):
        found = np.asarray(gradient(pixels[:1], np.float32(np.arange(FRAMES) < frames)))
        chex.assert_tree_all_finite(found)
        assert not found[:, frames:].any()
        assert found[:, :frames].any(axis=(0, 2, 3, 4)).all()


RULES = {
    "block": Causality("block_causal"),
    "token": Causality("token_causal"),
    "block, window": Causality("block_causal", 2),
    "token, window": Causality("token_causal", 2),
}


ALONE = [
    *itertools.product(
        ("dense", "by_head", "blocked", "per_frame"), RULES, ("float32", "bfloat16")
    ),
    ("splash", "block", "float32"),  # interpreted, it is slow
]


@pytest.mark.parametrize(("implementation", "rule", "dtype"), ALONE)
def test_attention_alone(implementation, rule, dtype):
    tokens = 128 if implementation == "splash" else 3
    frames, heads, causality = 3, 1, RULES[rule]
    implementation, blocking = how(implementation)
    shape = (3, 2 if tokens == 3 else 1, frames, tokens, heads, 8)
    rows = jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)

    def some(rows, counts):
        query, key, value = rows
        out = attend(query, key, value, causality, implementation, blocking=blocking)
        return jnp.sum(jnp.sin(out.astype(jnp.float32)) * counts), out

    both = jax.jit(jax.value_and_grad(some, has_aux=True))
    # The first token that changes: of a frame, or any one where tokens are in order.
    for first in (tokens, 2 * tokens, *([4] if causality.kind == "token_causal" else [])):
        order = np.arange(frames * tokens).reshape(frames, tokens)
        counts = np.float32(order < first)[None, :, :, None, None]
        changed = rows * jnp.asarray(np.where(counts, 1, -3), dtype)[None]
        (_, before), gradient = both(rows, counts)
        (_, after), _ = both(changed, counts)
        same = np.asarray(before == after).all(axis=(0, 3, 4))
        assert same[order < first].all()
        assert not same.all()
        gradient = np.asarray(gradient, np.float32)
        chex.assert_tree_all_finite((before, after, gradient))
        assert not gradient[:, :, order >= first].any()
        assert gradient[:, :, order < first].any()


def test_full_attention_is_not_causal():
    """The checks above can fail."""
    CASES["full"] = ("dense", "learned", "full", 0, "float32")
    try:
        _, params, pixels, bits, watch = watched("full")
        with pytest.raises(AssertionError):
            check_past_does_not_move(watch, params, pixels, bits)
    finally:
        del CASES["full"]
