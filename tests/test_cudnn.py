"""Which shapes go to cuDNN. Oracle: JAX itself, which lowers the program for CUDA or refuses it.

What JAX asks the machine for, the version of cuDNN and the compute capability, is stood in for.
"""

import functools
import itertools
import logging
import types

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from bsq_jax.core import target
from bsq_jax.core.errors import UserError
from bsq_jax.core.once import say_once
from bsq_jax.core.target import described
from bsq_jax.models.attention import choice as attention_choice
from bsq_jax.models.attention.attend import attend
from bsq_jax.models.attention.causality import EVERYTHING, Causality
from bsq_jax.models.attention.choice import choose_implementation
from bsq_jax.models.attention.cudnn import refusal

RULES = {
    "full": EVERYTHING,
    "block": Causality("block_causal"),
    "token": Causality("token_causal"),
    "block, window": Causality("block_causal", 2),
    "full, window": Causality("full", 2),
}
VERSION = 91100


@pytest.fixture
def on_card(monkeypatch):
    """A context in which JAX and the package see a GPU of a compute capability."""

    def enter(capability, version=VERSION):
        of_jax = {
            "check_cudnn_version": lambda: version,
            "check_compute_capability": lambda asked: (
                capability >= tuple(map(int, asked.split(".")))
            ),
            "is_cuda_compute_capability_equal": lambda asked: (
                ".".join(map(str, capability)) == asked
            ),
        }
        for name, function in of_jax.items():
            monkeypatch.setattr(fused_attention_stablehlo, name, function)
        return described("gpu", capability, version)

    monkeypatch.setattr(attention_choice, "_BLOCK_TOKENS", 1)
    return enter


def arrays(frames, tokens, channels, queries=None):
    def shape(time):
        return jax.ShapeDtypeStruct((2, time, tokens, 2, channels), jnp.bfloat16)

    return shape(queries or frames), shape(frames), shape(frames)


def lowered(function, *shapes):
    """The StableHLO of a function and its gradients for CUDA."""

    def loss(*rows):
        return jnp.sum(function(*rows).astype(jnp.float32))

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    return gradient.trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()


def of_jax(capability, version, tokens, channels, masked):
    """Whether JAX takes one call, forwards and backwards."""
    mask = jnp.ones((1, 1, tokens, tokens), bool) if masked else None
    call = functools.partial(jax.nn.dot_product_attention, mask=mask, implementation="cudnn")
    try:
        lowered(call, *[jax.ShapeDtypeStruct((2, tokens, 2, channels), jnp.bfloat16)] * 3)
    except NotImplementedError:
        return False
    return True


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 3), (12, 0)])
def test_the_rule_is_that_of_jax(on_card, capability):
    grid = itertools.product((64, 81, 625), (4, 8, 64, 100, 128, 136, 256, 264), (False, True))
    with on_card(capability):
        taken = 0
        for tokens, channels, masked in grid:
            ours = refusal(jnp.bfloat16, channels, [(tokens, tokens)])
            assert (not ours) == of_jax(capability, VERSION, tokens, channels, masked), ours
            taken += not ours
    assert taken == (10 if capability >= (9, 0) else 6)  # of 48
    with on_card((10, 3), 91000):
        assert "9.11" in refusal(jnp.bfloat16, 64, [(64, 64)])
        assert not of_jax((10, 3), 91000, 64, 64, False)


@pytest.mark.parametrize("rule", RULES)
def test_auto_lowers_for_cuda_whatever_the_shape(on_card, rule):
    """cuDNN's kernel is in the program just where nothing was said against it."""
    used = set()
    with on_card((9, 0)):
        for frames, tokens, channels in (
            (1, 64, 64),
            (1, 81, 64),
            (3, 4, 8),
            (2, 9, 8),
            (3, 5, 12),
        ):
            for queries in {1, frames}:
                if queries < frames and not RULES[rule].streams:
                    continue
                text = lowered(
                    functools.partial(attend, causality=RULES[rule]),
                    *arrays(frames, tokens, channels, queries),
                )
                choice = choose_implementation(
                    "auto",
                    RULES[rule],
                    frames,
                    tokens,
                    jnp.bfloat16,
                    channels=channels,
                    queries=queries,
                )
                assert (choice.name == "cudnn") == (not choice.why) == ("fmha" in text)
                used.add(choice.name)
    assert used >= {"cudnn", "dense"}


def test_each_block_must_be_even(on_card):
    """Two frames of 9 tokens: 18 tokens at once are even, blocks of a frame are not."""
    with on_card((9, 0)):
        arguments = 2, 9, jnp.bfloat16
        assert choose_implementation("auto", EVERYTHING, *arguments).name == "cudnn"
        choice = choose_implementation("auto", Causality(), *arguments)
        assert choice == ("blocked", "cudnn is not used: it takes even numbers of tokens, not "
                          "9 queries with 9 keys")  # fmt: skip


@pytest.mark.parametrize("rule", ["full", "full, window"])
def test_padding_is_left_out_by_cudnn_or_elsewhere(on_card, rule):
    with on_card((9, 0)):

        def function(q, k, v):
            return attend(q, k, v, RULES[rule], real=jnp.array([1, 3]))

        text = lowered(function, *arrays(3, 4, 8))
        assert ("PADDING" in text) == ("fmha" in text) == (rule == "full")


@pytest.mark.parametrize(
    ("card", "version", "dtype", "channels", "words"),
    [
        ((7, 5), VERSION, "bfloat16", 64, "needs compute capability 8.0"),
        (None, VERSION, "bfloat16", 64, "NVIDIA GPUs, and this is another one"),
        ((9, 0), 0, "bfloat16", 64, "cuDNN is not installed"),
        ((9, 0), VERSION, "float32", 64, "in bfloat16, not in float32"),
        ((8, 9), VERSION, "bfloat16", 192, "192 channels.*multiples of 8 up to 128"),
        ((9, 0), VERSION, "bfloat16", 60, "60 channels.*multiples of 8 up to 256"),
    ],
)
def test_what_is_refused_falls_back_or_says_so(card, version, dtype, channels, words):
    with described("gpu", card, version):
        arguments = EVERYTHING, 1, 64, jnp.dtype(dtype)
        choice = choose_implementation("auto", *arguments, channels=channels)
        assert choice.name == "dense"
        with pytest.raises(UserError, match=rf"^model\.attention=cudnn: .*{words}.*; take auto$"):
            choose_implementation("cudnn", *arguments, channels=channels)


def test_a_fallback_is_told_once(on_card, caplog):
    say_once.cache_clear()
    with on_card((9, 0)), caplog.at_level(logging.WARNING):
        for _ in range(2):
            jax.eval_shape(functools.partial(attend), *arrays(1, 81, 64))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "attention: dense; cudnn is not used: it takes even numbers of tokens, not 81 queries "
        "with 81 keys"
    )


def test_the_lowest_capability_of_all_devices_counts(monkeypatch):
    def gpus(*capabilities):
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        devices = [types.SimpleNamespace(compute_capability=c) for c in capabilities]
        monkeypatch.setattr(jax, "devices", lambda: devices)
        return target.cuda_capability()

    assert gpus("9.0", "8.6") == (8, 6)
    assert gpus("gfx942") is None
    monkeypatch.undo()
    assert target.cuda_capability() is None  # a CPU
