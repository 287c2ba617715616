"""Which parameters decay. Oracle: a list of all models' parameters, leaf by leaf."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from bsq_jax.config import default_config, finalize
from bsq_jax.core.sharding import make_mesh
from bsq_jax.core.trees import leaves
from bsq_jax.models import discriminators
from bsq_jax.training.optimizer import decays, make_optimizer
from bsq_jax.training.step_cost import make_task

# By name, with # for a number: what decays, and what does not.
BLOCKS = (
    "attention/qkv/kernel attention/out/kernel mlp/up/kernel mlp/down/kernel",
    "attention/qkv/bias attention/out/bias mlp/up/bias mlp/down/bias "
    "norm#/scale norm#/bias",
)  # fmt: skip
NORMS = "norm_pre/scale norm_pre/bias norm_post/scale norm_post/bias"


def below(path, names):
    return " ".join(f"{path}/{name}" for name in names.split())


TRUNK = (
    below("transformer/blocks", BLOCKS[0]),
    f"{below('transformer/blocks', BLOCKS[1])} {NORMS} positions/spatial positions/temporal",
)
LISTS = {
    "tokenizer": (
        "encoder/patch_embed/kernel to_latent/kernel from_latent/kernel "
        "decoder/head_hidden/kernel decoder/head_out/kernel "
        "decoder/head_convolutions/hidden/kernel decoder/head_convolutions/out/kernel "
        + " ".join(below(f"{half}/trunk", TRUNK[0]) for half in ("encoder", "decoder")),
        "to_latent/bias from_latent/bias decoder/head_hidden/bias decoder/head_out/bias "
        "decoder/head_convolutions/hidden/bias decoder/head_convolutions/out/bias "
        + " ".join(below(f"{half}/trunk", TRUNK[1]) for half in ("encoder", "decoder")),
    ),
    "prior": (
        "block_#/qkv block_#/out block_#/up block_#/down embed before context earlier later",
        "block_#/up_bias block_#/near block_#/null place unknown context_bias logit_bias",
    ),
    "masked_lm": (
        f"{TRUNK[0]} head_hidden/kernel head_out/kernel",
        f"{TRUNK[1]} head_hidden/bias head_out/bias head_norm/scale head_norm/bias "
        "classes/embedding words#/embedding",
    ),
    "stylegan": (
        "fromrgb/kernel conv/kernel fc/kernel out/kernel b#/conv#/kernel b#/skip/kernel",
        "fromrgb/bias conv/bias fc/bias out/bias b#/conv#/bias",
    ),
    "stylegan3d": (
        "input/kernel conv/kernel fc/kernel out/kernel block#/conv#/kernel block#/skip/kernel",
        "input/bias conv/bias fc/bias out/bias block#/conv#/bias",
    ),
    "patchgan": ("conv#/kernel out/kernel", "conv#/bias out/bias norm#/scale norm#/bias"),
}


def assert_decay(params, kind, absent=()):
    """That the parameters are those of a list, and that each decays if the list says so.

    `absent` are parts of the names of parameters that this variant does not have.
    """
    yes, no = (set(names.split()) for names in LISTS[kind])
    assert not yes & no
    found = {}
    for name, decay in leaves(decays(params)).items():
        found.setdefault(re.sub(r"\d+", "#", name), set()).add(bool(decay))
    for name, kinds in found.items():
        assert name in yes | no, f"{name} is not in the list"
        assert kinds == {name in yes}, name
    left = (yes | no) - found.keys()
    assert all(any(part in name for part in absent) for name in left), left
    assert not any(part in name for part in absent for name in found)


def params_of(config, second=False):
    """Shapes of the parameters that a config describes, of the network or its discriminator."""
    mesh = make_mesh(devices=jax.devices()[:1])
    state = make_task(finalize(config)).abstract_state(mesh)
    return state.adversary.params if second else state.params


@pytest.mark.smoke
@pytest.mark.parametrize("positions", ["learned", "sincos", "rotary"])
@pytest.mark.parametrize("frames", [1, 4])
@pytest.mark.parametrize("hidden", [0, 8])
def test_tokenizers(positions, frames, hidden):
    config = tiny.get_config("clips" if frames > 1 else "")
    config.model.update(positions=positions, frames=frames, layers=2, width=24)
    config.model.update(head_hidden=hidden, head_channels=hidden)
    absent = [] if hidden else ["head_hidden", "head_convolutions"]
    absent += ["positions/"] if positions != "learned" else ["temporal"] if frames == 1 else []
    assert_decay(params_of(config), "tokenizer", absent)


@pytest.mark.smoke
@pytest.mark.parametrize("order", ["raster", "grids"])
@pytest.mark.parametrize("window", [1, 3])
def test_priors(order, window):
    config = tiny.get_prior("tokenizer", order=order)
    config.prior.update(window=window, layers=2)
    assert_decay(params_of(config), "prior")


@pytest.mark.smoke
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("classes", [0, 10])
def test_masked_language_models(frames, classes):
    config = tiny.get_masked_lm("tokenizer", frames=frames, classes=classes)
    absent = ([] if classes else ["classes"]) + (["temporal"] if frames == 1 else [])
    assert_decay(params_of(config), "masked_lm", absent)


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["stylegan", "stylegan3d", "patchgan"])
def test_discriminators(name):
    config = tiny.get_config("clips" if name == "stylegan3d" else "")
    config.loss.adversarial = 0.1
    config.discriminator.update(name=name, channel_base=64, width=8, layers=1)
    assert_decay(params_of(config, second=True), name)


def test_the_lists_know_every_model():
    found = {
        name.removesuffix("Discriminator").lower()
        for name in discriminators.__all__
        if name.endswith("Discriminator")
    }
    assert found == LISTS.keys() - {"tokenizer", "prior", "masked_lm"}


@pytest.mark.smoke
def test_a_parameter_that_nobody_declared_is_an_error():
    params = {"block_0": {"gate": jnp.zeros((2, 3)), "kernel": jnp.zeros((2, 3))}}
    with pytest.raises(ValueError, match=r"parameter \['block_0'\]\['gate'\] is not declared"):
        make_optimizer(finalize(default_config())).init(params)


@pytest.mark.smoke
@pytest.mark.parametrize("kind", ["tokenizer", "prior", "masked_lm"])
def test_a_step_of_decay_alone(kind):
    """Of ones, without a gradient, matrices lose rate x decay."""
    config = tiny.get_config()
    if kind != "tokenizer":
        config = getattr(tiny, f"get_{kind}")("tokenizer")
    config.optimizer.update(learning_rate=0.01, warmup_steps=0, weight_decay=0.1)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), params_of(config))
    optimizer = make_optimizer(finalize(config))
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = jax.jit(optimizer.update)(zeros, jax.jit(optimizer.init)(params), params)
    chex.assert_tree_all_finite(updates)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    for name, update in leaves(updates).items():
        matrix = re.sub(r"\d+", "#", name) in LISTS[kind][0].split()
        np.testing.assert_allclose(update, -0.001 if matrix else 0.0, rtol=1e-5, err_msg=name)
