"""Inception-v3 and its weights. Oracle: float64 numpy of two blocks, and closed forms."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsq_jax.core.errors import UserError
from bsq_jax.evaluation.networks import inception as module
from bsq_jax.evaluation.networks.inception import from_torch_state, inception, load_inception

FC = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}


def unit_shapes(unit, kernel):
    height, width, inputs, outputs = kernel
    names = ("weight", "bias", "running_mean", "running_var")
    shapes = {f"{unit}.bn.{name}": (outputs,) for name in names}
    return {f"{unit}.conv.weight": (outputs, inputs, height, width), **shapes}


@pytest.fixture(scope="module")
def blank():
    """A state dict of constants that take no memory."""
    shapes = dict(FC)
    for unit, kernel in module._kernels().items():
        shapes |= unit_shapes(unit, kernel)
    return {key: np.broadcast_to(np.float32(0.25), shape) for key, shape in shapes.items()}


def test_number_of_parameters(blank):
    """94 convolutions; 23.9 million numbers, as in the published file (with running statistics)."""
    assert len(module._kernels()) == 94
    assert sum(array.size for array in blank.values()) == 23_885_392


def test_constant_network(blank):
    """Without weights each unit is the ReLU of its offset, whatever the picture."""
    rng = np.random.default_rng(0)
    state = {key: np.zeros_like(array) if "conv" in key else array for key, array in blank.items()}
    ends = ("branch1x1", "branch3x3_2a", "branch3x3_2b")
    ends += ("branch3x3dbl_3a", "branch3x3dbl_3b", "branch_pool")
    expected = []
    for end in ends:
        key = f"Mixed_7c.{end}.bn"
        width = state[f"{key}.bias"].shape
        state[f"{key}.bias"], state[f"{key}.weight"] = rng.normal(size=(2, *width))
        mean = state[f"{key}.weight"] * 0.25 / np.sqrt(0.25 + 1e-3)
        expected.append(np.maximum(state[f"{key}.bias"] - mean, 0))
    pool = np.concatenate(expected)
    state["fc.weight"] = rng.normal(size=(1008, 2048))
    params = from_torch_state(state)
    pixels = jnp.asarray(rng.uniform(-1, 1, (1, 2, 24, 40, 3)), jnp.float32)

    @jax.jit
    def both(params, pixels):
        return inception(params, pixels), inception(params, pixels, bias=True).logits

    found, biased = both(params, pixels)
    chex.assert_shape([found.pool, found.logits], [(1, 2, 2048), (1, 2, 1008)])
    chex.assert_type([found.pool, found.logits], jnp.float32)
    np.testing.assert_allclose(found.pool[0], [pool, pool], atol=1e-5)
    logits = state["fc.weight"] @ pool
    np.testing.assert_allclose(found.logits[0], [logits, logits], atol=2e-4)
    np.testing.assert_allclose(biased[0, 1], logits + 0.25, atol=2e-4)


def conv64(net, weight):
    """Correlation with zeros around, in float64: net [h, w, in], weight [out, in, kh, kw]."""
    (height, width), (rows, columns) = net.shape[:2], weight.shape[2:]
    padded = np.pad(net, ((rows // 2, rows // 2), (columns // 2, columns // 2), (0, 0)))
    total = np.zeros((height, width, len(weight)))
    for row in range(rows):
        for column in range(columns):
            shifted = padded[row : row + height, column : column + width]
            total += shifted @ weight[:, :, row, column].T
    return total


@pytest.mark.parametrize("name", ["Mixed_5c", "Mixed_7c"])
def test_block_against_float64(name):
    """Normalisation as PyTorch defines it, and the two kinds of pool."""
    rng = np.random.default_rng(2)
    kernels = {unit: shape for unit, shape in module._kernels().items() if unit.startswith(name)}
    state, params = {}, {}
    for unit, kernel in kernels.items():
        spread = np.sqrt(np.prod(kernel[:3]))
        for key, shape in unit_shapes(unit, kernel).items():
            state[key] = rng.normal(size=shape) / (spread if "conv" in key else 1)
        state[f"{unit}.bn.running_var"] = rng.uniform(0.1, 2, kernel[3])
        weight = state[f"{unit}.conv.weight"].transpose(2, 3, 1, 0)
        numbers = ("running_mean", "running_var", "bias", "weight")
        params[unit] = module.fold(weight, *(state[f"{unit}.bn.{key}"] for key in numbers))

    def unit(branch, net):
        key = f"{name}.{branch}"
        normed = conv64(net, state[f"{key}.conv.weight"]) - state[f"{key}.bn.running_mean"]
        normed /= np.sqrt(state[f"{key}.bn.running_var"] + 1e-3)
        return np.maximum(normed * state[f"{key}.bn.weight"] + state[f"{key}.bn.bias"], 0)

    def neighbours(net, reduce):
        padded = np.pad(net, ((1, 1), (1, 1), (0, 0)), constant_values=np.nan)
        size = net.shape[0]
        parts = [padded[i : i + size, j : j + size] for i in range(3) for j in range(3)]
        return reduce(parts, axis=0)

    net = rng.normal(size=(4, 4, 256 if name == "Mixed_5c" else 2048))
    if name == "Mixed_5c":
        ends = [
            unit("branch1x1", net),
            unit("branch5x5_2", unit("branch5x5_1", net)),
            unit("branch3x3dbl_3", unit("branch3x3dbl_2", unit("branch3x3dbl_1", net))),
            unit("branch_pool", neighbours(net, np.nanmean)),
        ]
    else:
        middle = unit("branch3x3_1", net)
        double = unit("branch3x3dbl_2", unit("branch3x3dbl_1", net))
        ends = [
            unit("branch1x1", net),
            *(unit(f"branch3x3_2{end}", middle) for end in "ab"),
            *(unit(f"branch3x3dbl_3{end}", double) for end in "ab"),
            unit("branch_pool", neighbours(net, np.nanmax)),
        ]
    found = module._block(
        params, f"{name}.", module._NETWORK[f"{name}."], jnp.asarray(net, jnp.float32)[None]
    )
    np.testing.assert_allclose(found[0], np.concatenate(ends, -1), atol=1e-4)


def test_useless_keys_are_passed_over(blank):
    state = blank | {"AuxLogits.fc.weight": np.zeros(1), "Conv2d_1a_3x3.bn.num_batches_tracked": 1}
    assert set(from_torch_state(state)) == set(module._kernels()) | {"fc"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("Mixed_6b.branch7x7_2.conv.weight", None, "key Mixed_6b.branch7x7_2.conv.weight .* miss"),
        ("fc.weight", np.zeros((1000, 2048)), r"fc.weight .*\(1008, 2048\), not \(1000, 2048\)"),
        ("fc.bias", "text", r"fc.bias .*\(1008,\), not str"),
        ("Mixed_7c.branch1x1.bn.running_var", np.full(320, np.nan), "running_var .* NaN"),
        ("Mixed_7c.branch1x1.bn.running_var", np.full(320, -1.0), "running_var .* negative"),
    ],
)
def test_wrong_states(blank, key, value, message):
    state = dict(blank)
    del state[key]
    if value is not None:
        state[key] = value
    with pytest.raises(UserError, match=message) as caught:
        from_torch_state(state)
    assert "\n" not in str(caught.value)


def test_where_weights_come_from(tmp_path):
    place = "pt_inception-2015-12-05-6726825d.pth .*github.com/mseitzer/pytorch-fid"
    with pytest.raises(UserError, match=f"give the path .*{place}"):
        load_inception("")
    with pytest.raises(UserError, match=f"no file .*absent.pth.*{place}"):
        load_inception(tmp_path / "absent.pth")


def test_pixels_of_another_shape():
    with pytest.raises(UserError, match=r"shape \[2, 64, 64, 3\]: \[batch, time"):
        inception({}, jnp.zeros((2, 64, 64, 3)))
