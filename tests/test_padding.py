"""Padding of short clips in a batch. Oracle: the same clip alone, without padding."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from shapes import bsq_quantizer, tokenizer_shape
from small_task import tokenizer_task
from video_files import LOSSLESS, write_video

from bsq_jax.config import default_config, finalize
from bsq_jax.core.sharding import make_mesh, to_global
from bsq_jax.data.eval_pipeline import eval_batches
from bsq_jax.data.factory import make_data_config
from bsq_jax.data.tokens import token_batches
from bsq_jax.evaluation.metrics import psnr
from bsq_jax.inference.token_sets import tokenize
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.models.attention import choice as attention_choice
from bsq_jax.models.attention.attend import attend
from bsq_jax.models.attention.causality import Causality
from bsq_jax.models.attention.choice import Blocking
from bsq_jax.models.frozen_tokenizer import FrozenTokenizer
from bsq_jax.models.tokenizer import TokenizerModel

FRAMES, SIDE = 5, 16
LENGTHS = np.array([3, 5], np.int32)
# Where no frame sees later ones, padding at the end cannot matter: checked all the same.
CASES = [
    *(
        ("full", 0, "dense"),
        ("full", 0, "by_head"),
        ("full", 2, "blocked"),
        ("full", 2, "per_frame"),
    ),
    *(("block_causal", 2, "blocked"), ("token_causal", 0, "dense")),
]


@pytest.fixture(autouse=True)
def a_block_a_frame(monkeypatch):
    """Frames are tiny here; blocks are those of large ones."""
    monkeypatch.setattr(attention_choice, "_BLOCK_TOKENS", 1)


def model_of(causality, window, implementation="auto"):
    shape = tokenizer_shape(
        SIDE, SIDE, FRAMES, 8, 6, 24, 1, 2, 2.0, 0, 0, "rotary", causality, window
    )  # fmt: skip
    blocking = Blocking.LARGE
    if implementation == "per_frame":
        implementation, blocking = "blocked", Blocking.PER_FRAME
    return TokenizerModel(
        shape, bsq_quantizer(length=shape.bits), attention=implementation, blocking=blocking
    )


@functools.cache
def params_of():
    model, rng = model_of("full", 0), np.random.default_rng(0)
    pixels = np.zeros((1, FRAMES, SIDE, SIDE, 3), np.float32)
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), pixels))["params"]
    return jax.tree.map(lambda leaf: np.float32(0.3 * rng.normal(size=leaf.shape)), shapes)


def clips():
    """Bytes whose padding is anything but like the clip."""
    return np.random.default_rng(1).integers(0, 256, (2, FRAMES, SIDE, SIDE, 3)).astype(np.uint8)


def floats(pixels):
    return pixels.astype(np.float32) / 127.5 - 1


@pytest.mark.parametrize(("causality", "window", "implementation"), CASES)
def test_a_short_clip_in_a_batch_is_what_it_is_alone(causality, window, implementation):
    model, pixels = model_of(causality, window, implementation), floats(clips())
    variables = {"params": params_of()}

    def run(pixels, real):
        output = model.apply(variables, pixels, real)
        bits = output.quantized.bits
        return bits, output.pixels, model.apply(variables, bits, real, method="decode")

    run = jax.jit(run)
    padded = run(pixels, LENGTHS)
    alone = run(pixels[:1, :3], None)
    np.testing.assert_array_equal(padded[0][0, :3], alone[0][0])
    for ours, wanted in zip(padded[1:], alone[1:], strict=True):
        np.testing.assert_allclose(ours[0, :3], wanted[0], atol=2e-5)
    chex.assert_tree_all_finite(padded)


@pytest.mark.parametrize("implementation", ["dense", "by_head", "blocked", "splash"])
@pytest.mark.parametrize("window", [0, 2])
def test_padding_gets_no_gradient(implementation, window):
    tokens = 128 if implementation == "splash" else 4
    rows = np.random.default_rng(2).normal(size=(3, 2, 3, tokens, 1, 8)).astype(np.float32)
    lengths, rule = np.array([2, 3], np.int32), Causality("full", window)
    there = (np.arange(3) < lengths[:, None]).reshape(2, 3, 1, 1, 1)

    def loss(*rows):
        out = attend(*rows, rule, implementation, jnp.asarray(lengths))
        return jnp.sum(jnp.where(there, jnp.sin(out), 0.0))

    found = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*rows)

    def alone(*rows):
        return jnp.sum(jnp.sin(attend(*rows, rule, "dense")))

    wanted = jax.jit(jax.grad(alone, argnums=(0, 1, 2)))(*rows[:, :1, :2])
    chex.assert_tree_all_finite(found)
    for ours in found:
        np.testing.assert_array_equal(ours[0, 2], 0)
    short = tuple(ours[:1, :2] for ours in found)
    chex.assert_trees_all_close(short, wanted, rtol=1e-7, atol=1e-5, strict=True)


def task_of(causality, window):
    return tokenizer_task(
        model_of(causality, window), entropy_weight=optax.linear_schedule(0.3, 0.1, 2000)
    )


@pytest.mark.parametrize(("causality", "window"), [("full", 0), ("block_causal", 2)])
def test_training_does_not_depend_on_what_padding_holds_nor_on_how_much_there_is(causality, window):
    task, pixels = task_of(causality, window), clips()[:1]
    other = pixels.copy()
    other[:, 3:] = 255 - other[:, 3:]

    @jax.jit
    def run(pixels, frames):
        first, *_, watched = task.gradients(params_of(), None, pixels, frames, jnp.int32(9), {})
        return first, watched

    length = np.array([3], np.int32)
    wanted = run(floats(pixels[:, :3]), length)
    for padded in (pixels, other):
        found = run(floats(padded), length)
        chex.assert_trees_all_close(found, wanted, rtol=2e-4, atol=2e-5, strict=True)


def test_evaluation_and_models_of_tokens_leave_padding_out():
    model, pixels = model_of("full", 0), clips()
    task, mesh = task_of("full", 0), make_mesh(devices=jax.devices()[:1])
    frozen = FrozenTokenizer(model, params_of())
    step = jax.jit(task.evaluate_step)
    batch = to_global({"pixels": pixels, "frames": LENGTHS}, mesh)
    evaluated = step(params_of(), batch)
    tokens = jax.jit(frozen.tokens)(batch, frozen.load(mesh))
    alone = step(params_of(), {"pixels": pixels[:1, :3]})
    np.testing.assert_array_equal(evaluated["bits"][0, :3], alone["bits"][0])
    np.testing.assert_array_equal(tokens[0, :3], alone["bits"][0].reshape(3, 4, 6))
    both = [psnr(pixels[:1, :3], out["reconstruction"][:1, :3]) for out in (evaluated, alone)]
    np.testing.assert_allclose(*both, atol=1e-2)


def test_a_rule_without_sight_ahead_costs_nothing():
    """The very program that is made without lengths."""
    shapes = [jax.ShapeDtypeStruct((2, 3, 4, 2, 8), jnp.float32)] * 3

    def jaxpr(rule, real):
        return str(jax.make_jaxpr(functools.partial(attend, causality=rule, real=real))(*shapes))

    lengths = np.array([1, 3], np.int32)
    for rule in (Causality(), Causality("token_causal"), Causality("block_causal", 2)):
        assert jaxpr(rule, lengths) == jaxpr(rule, None)
    assert jaxpr(Causality("full"), lengths) != jaxpr(Causality("full"), None)


def test_token_sets_hold_short_clips_as_they_are_alone(tmp_path):
    def noise(number, size):
        return np.random.default_rng(number).integers(0, 256, (*size, 3)).astype(np.uint8)

    for name, count in (("long", 7), ("short", 3)):
        for folder in ("train", "val"):
            write_video(tmp_path / folder / f"{name}.mp4", count, picture=noise, **LOSSLESS)
    config = default_config()
    config.model.update(image_size=(16, 16), frames=5, layers=1, width=24, heads=2, bits=6)
    config.model.update(causality="full", positions="rotary", head_hidden=0, dtype="float32")
    config.model.mlp_ratio = 2.0
    config.data.update(source=f"clips:{tmp_path}", eval_resize=16, threads=1)
    # Without biases, which would settle most bits whatever the frames show.
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * (0 if path[-1].key == "bias" else 3), params_of()
    )
    tokenizer = Tokenizer(finalize(config), params)
    made = tokenize(tmp_path / "tokens", tokenizer, finalize(config), examples=1, quiet=True)
    data = make_data_config(finalize(config))
    alone = {"shard_index": 0, "shard_count": 1}
    named = tokenizer.model.quantizer.layout.names_code
    (kept,) = token_batches(made, "val", data, names_code=named, global_batch=2, **alone)
    (shown,) = eval_batches(data, global_batch=2, **alone)
    row = int(np.argmin(shown["frames"]))
    assert shown["frames"][row] == kept["frames"][row] == 3
    bits = tokenizer.encode(shown["pixels"][row : row + 1, :3])[0]
    np.testing.assert_array_equal(kept["bits"][row, :3], bits)
    padded = tokenizer.encode(shown["pixels"][row : row + 1])[0, :3]
    assert (bits != padded).any()  # what it would be with the padding
