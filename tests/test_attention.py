"""Attention. Oracle: softmax in float64 numpy with an explicit mask."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bsq_jax.core.errors import UserError
from bsq_jax.core.target import described
from bsq_jax.models.attention import choice as attention_choice
from bsq_jax.models.attention.attend import attend
from bsq_jax.models.attention.causality import EVERYTHING, Causality
from bsq_jax.models.attention.choice import choose_implementation
from bsq_jax.models.attention.self_attention import SelfAttention
from bsq_jax.models.positions import Rotation

RULES = {
    "full": EVERYTHING,
    "block": Causality("block_causal"),
    "token": Causality("token_causal"),
    "block, window": Causality("block_causal", 2),
    "full, window": Causality("full", 2),
}


@pytest.fixture(autouse=True)
def a_block_a_frame(monkeypatch):
    """Frames are tiny here; blocks are those of large ones."""
    monkeypatch.setattr(attention_choice, "_BLOCK_TOKENS", 1)


def reference(query, key, value, causality):
    """Softmax attention, [batch, time, token, head, channel], float64."""
    frames, tokens = key.shape[1:3]
    mask = causality.mask((frames - query.shape[1], frames), (0, frames), tokens)
    q, k, v = (x.reshape(x.shape[0], -1, *x.shape[3:]) for x in (query, key, value))
    scores = np.einsum("bqhc,bkhc->bhqk", q, k) / np.sqrt(q.shape[-1])
    scores = scores if mask is None else np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhqk,bkhc->bqhc", weights, v).reshape(query.shape)


def inputs(frames=3, tokens=2):
    return np.random.default_rng(0).normal(size=(3, 2, frames, tokens, 4, 8)) * 2


@functools.cache
def jitted(causality, implementation):
    return jax.jit(functools.partial(attend, causality=causality, implementation=implementation))


@pytest.mark.smoke
@pytest.mark.parametrize("implementation", ["dense", "by_head", "blocked"])
@pytest.mark.parametrize("rule", RULES)
def test_attend_against_numpy(rule, implementation):
    query, key, value = inputs()
    rows = (jnp.asarray(x, jnp.float32) for x in (query, key, value))
    ours = jitted(RULES[rule], implementation)(*rows)
    np.testing.assert_allclose(ours, reference(query, key, value, RULES[rule]), atol=2e-6)


class Variants(chex.TestCase):
    """The same numbers compiled, op by op and on a device."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    @parameterized.parameters("dense", "by_head", "blocked")
    def test_attend(self, implementation):
        query, key, value = inputs()
        rule = RULES["block, window"]
        run = self.variant(functools.partial(attend, causality=rule, implementation=implementation))
        ours = run(*(jnp.asarray(x, jnp.float32) for x in (query, key, value)))
        chex.assert_type(ours, jnp.float32)
        wanted = reference(query, key, value, rule)
        chex.assert_shape(ours, wanted.shape)
        chex.assert_trees_all_close(ours, wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("implementation", ["dense", "by_head", "blocked"])
@pytest.mark.parametrize("rule", ["block", "token", "block, window"])
def test_queries_of_the_last_frames_alone(rule, implementation):
    query, key, value = inputs()
    for last in (1, 2):
        rows = (jnp.asarray(x, jnp.float32) for x in (query[:, -last:], key, value))
        ours = jitted(RULES[rule], implementation)(*rows)
        wanted = reference(query, key, value, RULES[rule])[:, -last:]
        np.testing.assert_allclose(ours, wanted, atol=2e-6)


def test_long_clips_are_cut_into_fewer_blocks_than_frames(monkeypatch):
    monkeypatch.setattr(attention_choice, "_MOST_BLOCKS", 2)
    query, key, value = inputs(frames=5)
    rows = [jnp.asarray(x, jnp.float32) for x in (query, key, value)]
    for rule in ("block", "token", "block, window"):
        blocked = jax.jit(
            functools.partial(attend, causality=RULES[rule], implementation="blocked")
        )
        wanted = reference(query, key, value, RULES[rule])
        np.testing.assert_allclose(blocked(*rows), wanted, atol=2e-6)
        assert str(jax.make_jaxpr(blocked)(*rows)).count("dot_general") == 4  # two a block


def test_small_frames_share_a_block(monkeypatch):
    monkeypatch.setattr(attention_choice, "_BLOCK_TOKENS", 4)
    query, key, value = inputs(frames=5, tokens=2)
    rows = [jnp.asarray(x, jnp.float32) for x in (query, key, value)]
    blocked = jax.jit(functools.partial(attend, causality=RULES["block"], implementation="blocked"))
    wanted = reference(query, key, value, RULES["block"])
    np.testing.assert_allclose(blocked(*rows), wanted, atol=2e-6)
    assert str(jax.make_jaxpr(blocked)(*rows)).count("dot_general") == 6  # frames 2 + 2 + 1


def test_the_masked_half_is_not_computed():
    # Closed form: n frames against growing prefixes are n (n + 1) / 2 of n^2 blocks.
    rows = [jax.ShapeDtypeStruct((1, 8, 16, 2, 8), jnp.float32)] * 3

    def flops(implementation):
        compiled = jitted(RULES["block"], implementation).lower(*rows).compile()
        return compiled.cost_analysis()["flops"]

    assert flops("blocked") / flops("dense") == pytest.approx(36 / 64, rel=0.1)


def test_low_precision_keeps_its_type_and_takes_the_softmax_in_float32():
    query, key, value = (jnp.asarray(x, jnp.bfloat16) for x in inputs())
    ours = jitted(RULES["block"], "auto")(query, key, value)
    chex.assert_type(ours, jnp.bfloat16)
    chex.assert_shape(ours, query.shape)
    rows = (np.asarray(x, np.float64) for x in (query, key, value))
    exact = reference(*rows, RULES["block"])
    np.testing.assert_allclose(np.asarray(ours, np.float64), exact, atol=0.03)


def test_splash_attention_against_numpy():
    query, key, value = np.random.default_rng(0).normal(size=(3, 1, 2, 64, 1, 8))
    rows = [jnp.asarray(x, jnp.float32) for x in (query, key, value)]
    for rule in ("full", "block"):
        ours = jitted(RULES[rule], "splash")(*rows)  # interpreted on a CPU
        np.testing.assert_allclose(ours, reference(query, key, value, RULES[rule]), atol=1e-5)


def test_blocks_for_cudnn_against_numpy(monkeypatch):
    """What goes to cuDNN and comes back; its kernel itself needs a GPU."""
    plain = jax.nn.dot_product_attention

    def instead(query, key, value, *, mask, key_value_seq_lengths, implementation):
        assert implementation == "cudnn"
        assert key_value_seq_lengths is None
        return plain(query, key, value, mask=mask, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", instead)
    query, key, value = (jnp.asarray(x, jnp.bfloat16) for x in inputs())
    rows = [np.asarray(x, np.float64) for x in (query, key, value)]
    for rule in ("block", "token", "block, window", "full"):
        for last in (1, 3):
            with described("gpu", (9, 0), 91100):
                ours = attend(query[:, -last:], key, value, RULES[rule])
            chex.assert_type(ours, jnp.bfloat16)
            chex.assert_shape(ours, (2, last, 2, 4, 8))
            exact = reference(rows[0][:, -last:], *rows[1:], RULES[rule])
            np.testing.assert_allclose(np.asarray(ours, np.float64), exact, atol=0.03)


def test_gradients_do_not_depend_on_the_implementation():
    rows = tuple(jnp.asarray(x, jnp.float32) for x in inputs())

    def gradient(implementation):
        def loss(q, k, v):
            return jnp.sum(jnp.sin(attend(q, k, v, RULES["block"], implementation)))

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*rows)

    dense = gradient("dense")
    for implementation in ("by_head", "blocked"):
        found = gradient(implementation)
        chex.assert_tree_all_finite(found)
        chex.assert_trees_all_close(dense, found, rtol=1e-7, atol=5e-6, strict=True)


def test_self_attention_with_rotation_and_past_against_numpy():
    x = np.random.default_rng(1).normal(size=(2, 3, 2, 16))
    angles = np.random.default_rng(3).normal(size=(3, 2, 2))
    rotation = Rotation(*(np.float32(f(angles)) for f in (np.cos, np.sin)))
    module = SelfAttention(heads=4, causality=RULES["block"])
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(x.shape))["params"]
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) * 0.3, nn.meta.unbox(shapes))
    apply = jax.jit(module.apply)
    variables = {"params": jax.tree.map(np.float32, params)}
    ours, present = apply(variables, np.float32(x), rotation)
    qkv = np.einsum("btnd,dshc->btnshc", x, params["qkv"]["kernel"]) + params["qkv"]["bias"]
    turn = np.exp(1j * angles)[None, :, :, None]

    def turned(y):
        z = (y[..., :2] + 1j * y[..., 2:]) * turn
        return np.concatenate([z.real, z.imag], axis=-1)

    query, key, value = turned(qkv[..., 0, :, :]), turned(qkv[..., 1, :, :]), qkv[..., 2, :, :]
    out = reference(query, key, value, RULES["block"])
    wanted = np.einsum("btnhc,hcd->btnd", out, params["out"]["kernel"]) + params["out"]["bias"]
    np.testing.assert_allclose(ours, wanted, atol=1e-5)
    chex.assert_trees_all_close(tuple(present), (key, value), rtol=1e-7, atol=1e-5)

    past = tuple(part[:, :2] for part in present)
    last = Rotation(*(part[2:] for part in rotation))
    next_, _ = apply(variables, np.float32(x[:, 2:]), last, past)
    np.testing.assert_allclose(next_, wanted[:, 2:], atol=1e-5)


@pytest.mark.parametrize(
    ("backend", "dtype", "rule", "frames", "tokens", "chosen"),
    [
        ("cpu", "float32", "full", 1, 512, "dense"),
        ("cpu", "float32", "full", 1, 1024, "by_head"),
        ("cpu", "float32", "block", 1, 1024, "by_head"),
        ("cpu", "bfloat16", "block", 2, 64, "blocked"),
        ("cpu", "float32", "full, window", 4, 64, "blocked"),
        ("cpu", "float32", "full", 16, 256, "by_head"),
        ("gpu", "bfloat16", "block", 16, 256, "cudnn"),
        ("gpu", "float32", "block", 16, 256, "blocked"),
        ("gpu", "float32", "full", 1, 1024, "dense"),
        ("tpu", "bfloat16", "block", 16, 256, "blocked"),
    ],
)
def test_what_auto_takes(backend, dtype, rule, frames, tokens, chosen):
    arguments = RULES[rule], frames, tokens, jnp.dtype(dtype)
    with described(backend, (9, 0) if backend == "gpu" else None, 91100):
        assert choose_implementation("auto", *arguments) == (chosen, "")
        for implementation in ("dense", "by_head", "blocked"):
            assert choose_implementation(implementation, *arguments).name == implementation


def test_what_cannot_run_says_so():
    with pytest.raises(UserError, match=r"model\.attention=cudnn: it runs on NVIDIA GPUs"):
        choose_implementation("cudnn", EVERYTHING, 1, 64, jnp.bfloat16)
    with pytest.raises(UserError, match=r"model\.attention=by_frame: .*dense"):
        choose_implementation("by_frame", EVERYTHING, 1, 64)
    with pytest.raises(UserError, match="multiples of 128 tokens, not 2 x 60"):
        choose_implementation("splash", EVERYTHING, 2, 60)
    why = "its kernel is interpreted on a cpu, which is slow"
    assert choose_implementation("splash", EVERYTHING, 2, 64) == ("splash", why)
    with described("tpu"):
        assert choose_implementation("splash", EVERYTHING, 2, 64) == ("splash", "")
