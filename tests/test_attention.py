"""Attention. Oracles: a mask written out by hand, and softmax in float64 numpy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsq_jax.models.attention import SelfAttention, attend, block_causal_mask, choose_implementation


@pytest.mark.smoke
def test_block_causal_mask():
    mask = block_causal_mask(frames=3, tokens_per_frame=2)
    assert mask.shape == (1, 1, 6, 6)
    assert mask.dtype == jnp.bool_
    assert mask[0, 0].astype(int).tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1],
    ]


def test_an_image_sees_all_of_itself():
    assert block_causal_mask(1, 16) is None


def reference(query, key, value, mask):
    """Softmax attention, [batch, token, head, channel], float64."""
    scores = np.einsum("bqhc,bkhc->bhqk", query, key) / np.sqrt(query.shape[-1])
    scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhqk,bkhc->bqhc", weights, value)


def inputs():
    return np.random.default_rng(0).normal(size=(3, 2, 6, 4, 8)) * 2


@pytest.mark.parametrize("implementation", ["dense", "by_head"])
@pytest.mark.parametrize("frames", [None, 1, 2, 3])
def test_attend_against_numpy(frames, implementation):
    query, key, value = inputs()
    mask = None if frames is None else block_causal_mask(frames, 6 // frames)
    rows = (jnp.asarray(x, jnp.float32) for x in (query, key, value))
    ours = jax.jit(attend, static_argnums=4)(*rows, mask, implementation)
    wanted = reference(query, key, value, True if mask is None else np.asarray(mask))
    np.testing.assert_allclose(ours, wanted, atol=2e-6)


def test_low_precision_keeps_its_type_and_takes_the_softmax_in_float32():
    query, key, value = (jnp.asarray(x, jnp.bfloat16) for x in inputs())
    ours = jax.jit(attend)(query, key, value)
    assert ours.dtype == jnp.bfloat16
    exact = reference(*(np.asarray(x, np.float64) for x in (query, key, value)), True)
    np.testing.assert_allclose(np.asarray(ours, np.float64), exact, atol=0.03)


def test_self_attention_against_numpy():
    x = np.random.default_rng(1).normal(size=(2, 6, 16))
    module = SelfAttention(heads=4)
    mask = block_causal_mask(3, 2)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((2, 6, 16)))["params"]
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) * 0.3, nn.meta.unbox(shapes))
    ours = jax.jit(module.apply)(
        {"params": jax.tree.map(np.float32, params)}, x.astype(np.float32), mask
    )
    qkv = np.einsum("btd,dnhc->btnhc", x, params["qkv"]["kernel"]) + params["qkv"]["bias"]
    out = reference(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], np.asarray(mask))
    wanted = np.einsum("bthc,hcd->btd", out, params["out"]["kernel"]) + params["out"]["bias"]
    np.testing.assert_allclose(ours, wanted, atol=1e-5)


def test_gradients_do_not_depend_on_the_implementation():
    rows = tuple(jnp.asarray(x, jnp.float32) for x in inputs())
    mask = block_causal_mask(3, 2)

    def gradient(implementation):
        def loss(q, k, v):
            return jnp.sum(jnp.sin(attend(q, k, v, mask, implementation)))

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*rows)

    for dense, by_head in zip(gradient("dense"), gradient("by_head"), strict=True):
        np.testing.assert_allclose(dense, by_head, atol=1e-6)


def test_auto_takes_one_head_at_a_time_only_for_long_sequences_on_a_cpu():
    assert choose_implementation("auto", 512) == "dense"
    assert choose_implementation("auto", 1024) == "by_head"
    assert choose_implementation("dense", 1024) == "dense"
