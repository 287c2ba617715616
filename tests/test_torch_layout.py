"""State dicts of the published code. Oracle: the golden one, and its arrays read by hand."""

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest
from shapes import bsq_quantizer, tokenizer_shape

from bsq_jax.core.errors import UserError
from bsq_jax.core.trees import first_difference
from bsq_jax.models.tokenizer import TokenizerModel
from bsq_jax.torch_import.tokenizer_layout import from_torch_state

SHAPE = tokenizer_shape(
    image_height=32, image_width=32, patch_size=8, bits=18, width=64, layers=2, heads=4
)
VIDEO = tokenizer_shape(
    image_height=32, image_width=32, frames=3, patch_size=8, bits=18, width=64, layers=2, heads=4
)


@pytest.fixture(scope="module")
def state(golden):
    return golden("vit_tiny_state")


def with_time(state):
    temporal = np.arange(3 * 64, dtype=np.float32).reshape(3, 64)
    return state | {
        "encoder.temporal_positional_embedding": temporal,
        "decoder.temporal_positional_embedding": -temporal,
    }


def expected(shape):
    model = TokenizerModel(shape, bsq_quantizer(length=shape.bits))
    pixels = jax.ShapeDtypeStruct((1, shape.frames, 32, 32, 3), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), pixels)["params"]


@pytest.mark.parametrize("shape", [SHAPE, VIDEO])
def test_names_and_shapes_are_the_models(state, shape):
    params = from_torch_state(with_time(state) if shape is VIDEO else state, shape)
    assert first_difference(params, nn.meta.unbox(expected(shape))) is None


def test_every_head_and_layer_lands_in_its_place(state):
    blocks = from_torch_state(state, SHAPE)["decoder"]["trunk"]["transformer"]["blocks"]
    for layer in range(2):
        attention = f"decoder.transformer.resblocks.{layer}.attn."
        fused, bias = state[attention + "in_proj_weight"], state[attention + "in_proj_bias"]
        for which in range(3):
            for head in range(4):
                rows = slice(which * 64 + head * 16, which * 64 + (head + 1) * 16)
                kernel = blocks["attention"]["qkv"]["kernel"][layer, :, which, head]
                np.testing.assert_array_equal(kernel, fused[rows].T)
                ours = blocks["attention"]["qkv"]["bias"][layer, which, head]
                np.testing.assert_array_equal(ours, bias[rows])
        out = state[attention + "out_proj.weight"]
        for head in range(4):
            np.testing.assert_array_equal(
                blocks["attention"]["out"]["kernel"][layer, head],
                out[:, head * 16 : (head + 1) * 16].T,
            )


def test_a_video_model_has_an_embedding_per_frame(state):
    params = from_torch_state(with_time(state), VIDEO)
    temporal = np.arange(3 * 64, dtype=np.float32).reshape(3, 64)
    np.testing.assert_array_equal(params["encoder"]["trunk"]["positions"]["temporal"], temporal)
    np.testing.assert_array_equal(params["decoder"]["trunk"]["positions"]["temporal"], -temporal)


@pytest.mark.parametrize("prefix", ["module.", "module.module."])
def test_wrappers_are_stripped(state, prefix):
    wrapped = {prefix + key: array for key, array in state.items()}
    chex.assert_trees_all_equal(
        from_torch_state(wrapped, SHAPE),
        from_torch_state(state, SHAPE),
    )


def test_mistakes_are_one_line_that_names_the_key(state):
    key = "encoder.transformer.resblocks.1.mlp.c_fc.bias"
    missing = {name: array for name, array in state.items() if name != key}
    cases = {
        f"no '{key}'": (missing, SHAPE),
        f"'{key}' has the shape \\[3\\]": (state | {key: np.zeros(3)}, SHAPE),
        "'surprise', which this model does not": (state | {"surprise": np.zeros(1)}, SHAPE),
        "'encoder.ln_pre.bias' twice": (state | {"module.encoder.ln_pre.bias": 0}, SHAPE),
        "'decoder.temporal_positional_embedding', which": (with_time(state), SHAPE),
        "no 'encoder.temporal_positional_embedding'": (state, VIDEO),
        "64 does not divide into 5 heads": (state, tokenizer_shape(width=64, heads=5)),
    }
    for message, (wrong, shape) in cases.items():
        with pytest.raises(UserError, match=message) as error:
            from_torch_state(wrong, shape)
        assert "\n" not in str(error.value)
