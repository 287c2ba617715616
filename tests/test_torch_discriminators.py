"""Published states of discriminators. Oracles: the golden one, and networks written in PyTorch."""

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest
from shapes import stylegan3d_discriminator, stylegan_discriminator

from bsq_jax.core.errors import UserError
from bsq_jax.core.trees import first_difference
from bsq_jax.models.discriminators.stylegan3d import WIDTHS
from bsq_jax.torch_import.discriminators import from_torch_discriminator


@pytest.fixture(scope="module")
def state(golden):
    return golden("stylegan_d_state")


def clip_state(width=2, positions=4):
    """Random arrays with the published names and shapes."""
    rng = np.random.default_rng(0)
    last = WIDTHS[-1] * width
    shapes = {"input_conv.0": (width, 3, 1, 1, 1)}
    for i in range(5):
        before, after = WIDTHS[i] * width, WIDTHS[i + 1] * width
        shapes[f"conv_blocks.{i}.function_path.0"] = (after, before, 3, 3, 3)
        shapes[f"conv_blocks.{i}.function_path.3"] = (after, after, 3, 3, 3)
        shapes[f"conv_blocks.{i}.skip_path.1"] = (after, before, 1, 1, 1)
    shapes["output_conv.0"] = (last, last + 1, 3, 3, 3)
    shapes["output_mlp.1"] = (last, positions * last)
    shapes["output_mlp.2"] = (1, last)
    made = {}
    for key, shape in shapes.items():
        made[f"{key}.weight"] = rng.normal(size=shape).astype(np.float32)
        if "skip_path" not in key:
            made[f"{key}.bias"] = rng.normal(size=shape[:1]).astype(np.float32)
    return made


def expected(model, shape):
    pixels = jax.ShapeDtypeStruct((1, *shape, 3), np.float32)
    return nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), pixels)["params"])


def test_names_shapes_and_sizes_of_the_golden_state(state):
    kind, sizes, params = from_torch_discriminator(state)
    assert kind == "stylegan"
    assert sizes == {"resolution": 32, "channel_base": 512, "channel_max": 128}
    model = stylegan_discriminator(sizes["channel_base"], sizes["channel_max"])
    assert first_difference(params, expected(model, (1, 32, 32))) is None
    wanted = state["b16.conv1.weight"]
    for out, row in ((0, 0), (63, 2)):
        ours = params["b16"]["conv1"]["kernel"][row, :, :, out]
        np.testing.assert_array_equal(ours, wanted[out, :, row].T)


def test_names_shapes_and_sizes_of_a_clip_discriminator():
    made = clip_state()
    kind, sizes, params = from_torch_discriminator(made)
    assert (kind, sizes) == ("stylegan3d", {"width": 2, "positions": 4})
    # 8 frames of 64x64 leave 1 of 2x2.
    assert first_difference(params, expected(stylegan3d_discriminator(2), (8, 64, 64))) is None
    ours = params["block3"]["conv0"]["kernel"]
    np.testing.assert_array_equal(
        ours[0, 1, 2, 5, 7], made["conv_blocks.3.function_path.0.weight"][7, 5, 0, 1, 2]
    )


def test_wrappers_are_stripped_and_buffers_left_out(state):
    assert any("resample_filter" in key for key in state)
    wrapped = {f"module.module.{key}": array for key, array in state.items()}
    chex.assert_trees_all_equal(
        from_torch_discriminator(wrapped)[2],
        from_torch_discriminator(state)[2],
    )


def test_mistakes_are_one_line_that_names_the_key(state):
    def without(name, of=state):
        return {key: array for key, array in of.items() if key != name}

    skip = "conv_blocks.2.skip_path.1.weight"
    cases = {
        "no 'b16.conv0.bias'": without("b16.conv0.bias"),
        "no 'b16.conv1.weight'": without("b16.conv1.weight"),
        "no 'bR.fromrgb.weight'": without("b32.fromrgb.weight"),
        "'b8.skip.weight' has the shape \\[3\\]": state | {"b8.skip.weight": np.zeros(3)},
        "'b8.conv1.weight' has the shape \\[\\]": state | {"b8.conv1.weight": np.zeros(())},
        "'b4.fc.weight' has the shape": state | {"b4.fc.weight": np.zeros((128, 512))},
        "'surprise', which this": state | {"surprise": np.zeros(1)},
        "'b4.out.bias' twice": state | {"module.b4.out.bias": np.zeros(1)},
        "'b24.fromrgb.weight', but": state | {"b99.fromrgb.weight": 0, "b24.fromrgb.weight": 0},
        "no known discriminator": {"conv.weight": np.zeros(1)},
        f"no '{skip}'": without(skip, clip_state()),
        "no 'output_mlp.1.weight'": without("output_mlp.1.weight", clip_state()),
        "'output_mlp.1.weight' has": clip_state() | {"output_mlp.1.weight": np.zeros((8, 30))},
        "'input_conv.0.weight' has": clip_state() | {"input_conv.0.weight": np.zeros((2, 3, 1))},
    }
    cases["'b24.fromrgb.weight', but"].pop("b99.fromrgb.weight")
    cases["'b24.fromrgb.weight', but"].pop("b32.fromrgb.weight")
    for message, wrong in cases.items():
        with pytest.raises(UserError, match=message) as error:
            from_torch_discriminator(wrong)
        assert "\n" not in str(error.value)


@pytest.mark.torch
def test_a_clip_discriminator_computes_what_pytorch_does():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    made = clip_state()
    tensors = {key: torch.from_numpy(array) for key, array in made.items()}
    pixels = np.random.default_rng(1).normal(size=(4, 9, 70, 64, 3)).astype(np.float32)

    def layer(x, key, gain=None):
        weight, bias = tensors[f"{key}.weight"], tensors.get(f"{key}.bias")
        weight = weight / np.sqrt(weight[0].numel())
        if weight.ndim == 2:
            x = functional.linear(x, weight, bias)
        else:
            x = functional.conv3d(x, weight, bias, padding="same")
        return x if gain is None else functional.leaky_relu(x, 0.2) * gain

    x = torch.from_numpy(np.moveaxis(pixels, -1, 1).copy())
    x = layer(x, "input_conv.0", 1.0)
    for i, time in enumerate((1, 1, 2, 2, 2)):
        key, pool = f"conv_blocks.{i}", torch.nn.AvgPool3d((time, 2, 2))
        path = pool(layer(x, f"{key}.function_path.0", np.sqrt(2)))
        path = layer(path, f"{key}.function_path.3", 1.0)
        x = (layer(pool(x), f"{key}.skip_path.1") + path) / np.sqrt(2)
    deviation = (x.var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
    x = torch.cat([x, deviation.expand(len(x), 1, *x.shape[2:])], dim=1)
    x = layer(x, "output_conv.0", 1.0).flatten(1)
    wanted = layer(layer(x, "output_mlp.1", np.sqrt(2)), "output_mlp.2").numpy()

    _, sizes, params = from_torch_discriminator(made)
    model = stylegan3d_discriminator(sizes["width"])
    ours = jax.jit(model.apply)({"params": params}, pixels)
    np.testing.assert_allclose(ours, wanted, atol=1e-4)
