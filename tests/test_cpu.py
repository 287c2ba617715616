"""What CPUs compute in another way. Oracles: the way of GPUs and TPUs, and float64 numpy."""

import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsq_jax.core import cpu
from bsq_jax.core.target import described
from bsq_jax.models.transformer import Compute, Transformer
from bsq_jax.training.compiled import memory


def random(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def both(function, *arguments):
    """Values and gradients as a CPU and as a GPU traces them, and the two programs.

    The function returns an array, of which the gradient is that of a sum of sines.
    """
    results, programs = [], []
    for platform in ("cpu", "gpu"):

        def run(*arguments):
            def loss(*arguments):
                out = function(*arguments)
                return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

            return jax.value_and_grad(loss, range(len(arguments)), has_aux=True)(*arguments)

        with described(platform):
            traced = jax.jit(run).trace(*arguments)
        results.append(traced.lower().compile()(*arguments))
        programs.append(str(traced.jaxpr))
    return results, programs


DIMENSIONS = (((2,), (0,)), ((), ()))


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.03)])
def test_dot_general(dtype, tolerance):
    x, weight = (jnp.asarray(random(shape), dtype) for shape in ((2, 3, 8), (8, 2, 4)))
    results, programs = both(lambda x, w: cpu.dot_general(x, w, DIMENSIONS), x, weight)
    chex.assert_trees_all_close(*results, atol=3 * tolerance)
    (_, out), gradients = results[0]
    chex.assert_type([out, *gradients], dtype)
    exact = np.einsum("abk,kcd->abcd", np.float64(x), np.float64(weight))
    np.testing.assert_allclose(np.float64(out), exact, atol=tolerance)
    assert ("custom_vjp" in programs[0]) == (dtype == jnp.bfloat16)
    assert "custom_vjp" not in programs[1]


@pytest.mark.parametrize("axes", [(((2,), (0,)), ((), ())), (((1, 2), (0, 1)), ((), ()))])
def test_gradients_of_products_against_float64(axes):
    x, weight = random((3, 4, 5)), random((5, 2, 6) if len(axes[0][0]) == 1 else (4, 5, 6), 1)
    gradient = random((3, 4, 2, 6) if len(axes[0][0]) == 1 else (3, 6), 2)
    with described("cpu"):
        _, pull = jax.vjp(lambda x, w: cpu.dot_general(x, w, axes), x, weight)
        of_x, of_weight = pull(jnp.asarray(gradient))
    one = len(axes[0][0]) == 1
    forms = ("abcd,kcd->abk", "abk,abcd->kcd") if one else ("ac,kmc->akm", "akm,ac->kmc")
    wanted = np.einsum(forms[0], np.float64(gradient), np.float64(weight))
    np.testing.assert_allclose(of_x, wanted, atol=1e-5)
    wanted = np.einsum(forms[1], np.float64(x), np.float64(gradient))
    np.testing.assert_allclose(of_weight, wanted, atol=1e-5)


def test_products_of_other_axes_are_plain():
    x, weight = random((2, 3, 8)), random((4, 8), 1)
    results, programs = both(
        lambda x, w: cpu.dot_general(x, w, (((2,), (1,)), ((), ()))), x, weight
    )
    chex.assert_trees_all_close(*results, atol=1e-5)
    assert programs[0] == programs[1]


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 6e-7), (jnp.bfloat16, 0.04)])
def test_gelu_against_float64(dtype, tolerance):
    x = jnp.asarray(np.linspace(-9, 9, 4001), dtype)
    exact = np.float64(x)
    below = 0.5 * np.vectorize(math.erfc)(-exact / 2**0.5)
    slope = below + exact * np.exp(-0.5 * exact**2) / (2 * np.pi) ** 0.5
    with described("cpu"):
        out, pull = jax.vjp(cpu.gelu, x)
        (found,) = pull(jnp.ones_like(x))
    chex.assert_type([out, found], dtype)
    np.testing.assert_allclose(np.float64(out), exact * below, atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose(np.float64(found), slope, atol=tolerance, rtol=tolerance)
    with described("gpu"):
        chex.assert_trees_all_equal(cpu.gelu(x), nn.gelu(x, approximate=False))


def test_layers_are_a_loop_on_accelerators():
    counts = {}
    for platform in ("cpu", "gpu", "tpu"):
        with described(platform):
            counts[platform] = [cpu.unrolled_layers(layers) for layers in (1, 12, 30)]
    assert counts == {"cpu": [1, 12, 12], "gpu": [1, 1, 1], "tpu": [1, 1, 1]}
    with described("cpu"), cpu.layers_in_a_loop():
        assert cpu.unrolled_layers(12) == 1


def test_recomputing_saves_memory():
    """XLA finds what is computed twice and keeps it, unless it is in a loop."""
    bytes_of = {}
    x = jnp.ones((4, 1, 128, 32))
    for remat in ("none", "dots", "full"):
        model = Transformer(4, 2, compute=Compute(remat=remat))
        params = jax.eval_shape(model.init, jax.random.key(0), x)
        step = jax.jit(jax.grad(lambda p, model=model: jnp.sum(model.apply(p, x)[0] ** 2)))
        bytes_of[remat] = memory(step.lower(params).compile()).temporary
    assert bytes_of["full"] < 0.8 * bytes_of["dots"] < 0.8 * 0.8 * bytes_of["none"], bytes_of


def layer_norm(dtype=jnp.float32):
    return cpu.LayerNorm(epsilon=1e-5, dtype=dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-5), (jnp.bfloat16, 0.05)])
def test_layer_norm(dtype, tolerance):
    # A mean that is large against the deviation, which a fast variance would not survive.
    x = np.random.default_rng(0).normal(30, 2, (4, 75, 40)).astype(np.float32)
    params = {"scale": random(40, 1), "bias": random(40, 2)}
    module = layer_norm(dtype)
    results, programs = both(
        lambda x, p: module.apply({"params": p}, x), jnp.asarray(x, dtype), params
    )
    chex.assert_trees_all_close(*results, atol=10 * tolerance, rtol=tolerance)
    out = results[0][0][1]
    chex.assert_type(out, dtype)
    given = np.float64(jnp.asarray(x, dtype))
    wanted = (given - given.mean(-1, keepdims=True)) / np.sqrt(given.var(-1, keepdims=True) + 1e-5)
    wanted = wanted * params["scale"] + params["bias"]
    np.testing.assert_allclose(np.float64(out), wanted, atol=tolerance)
    assert "dot_general" in programs[0]
    assert "dot_general" not in programs[1]


def test_layer_norm_has_the_parameters_of_flax():
    made = []
    for module in (layer_norm(), nn.LayerNorm()):
        for platform in ("cpu", "gpu"):
            with described(platform):
                made.append(module.init(jax.random.key(0), jnp.zeros((3, 5))))
    for other in made[1:]:
        chex.assert_trees_all_equal(made[0], other)


def test_layer_norm_of_a_frame_does_not_depend_on_what_follows():
    x = random((4, 75, 40))
    apply = jax.jit(layer_norm().apply)
    params = {"params": {"scale": random(40, 1), "bias": random(40, 2)}}
    whole = apply(params, x)
    for rows in (1, 2):  # an odd number of tokens
        np.testing.assert_array_equal(apply(params, x[:rows]), whole[:rows])


@pytest.mark.parametrize(
    ("space", "window", "stride", "padding"),
    [
        ((6, 5), (3, 3), 1, 1),
        ((7, 9), (3, 3), 2, 0),
        ((8, 6), (4, 4), 2, 1),
        ((6, 5), (4, 4), 1, 1),
        ((3, 4, 5), (3, 3, 3), 1, 1),
        ((5, 4), (1, 1), 1, 0),
    ],
)
def test_convolutions_and_their_first_and_second_derivatives(space, window, stride, padding):
    x, kernel = random((2, *space, 3)), 0.2 * random((*window, 3, 4), 1)
    tangent_x, tangent_kernel = 0.1 * random(x.shape, 2), 0.1 * random(kernel.shape, 3)

    def first(x, kernel):
        out = cpu.convolve(x, kernel, stride, padding)
        return jnp.sum(jnp.sin(out)), out

    def everything(x, kernel):
        (_, out), (gx, gk) = jax.value_and_grad(first, (0, 1), has_aux=True)(x, kernel)
        change = jnp.sum(gx * tangent_x) + jnp.sum(gk * tangent_kernel)
        return jnp.concatenate([out.ravel(), gx.ravel(), gk.ravel(), change[None]])

    results, programs = both(everything, x, kernel)
    chex.assert_trees_all_close(*results, atol=1e-3, rtol=1e-3)
    pointwise = len(window) == sum(window)
    assert ("conv_general_dilated" in programs[1]) == (not pointwise)
    if stride > 1:
        assert "window_strides=(2, 2)" in programs[1]
        assert "window_strides=(2, 2)" not in programs[0]


def test_convolution_against_numpy():
    x, kernel = random((2, 7, 9, 3)), random((3, 3, 3, 4), 1)
    wanted = np.zeros((2, 3, 4, 4))
    for i, j in np.ndindex(3, 3):
        wanted += np.float64(x)[:, i : i + 5 : 2, j : j + 7 : 2] @ np.float64(kernel[i, j])
    np.testing.assert_allclose(cpu.convolve(x, kernel, 2), wanted, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 6, 8, 3), (1, 5, 7, 2)])
def test_max_pool(shape):
    results, programs = both(cpu.max_pool_2x2, random(shape))
    chex.assert_trees_all_close(*results)
    out = results[0][0][1]
    chex.assert_shape(out, (shape[0], shape[1] // 2, shape[2] // 2, shape[3]))
    rows, columns = (side // 2 * 2 for side in shape[1:3])
    blocks = random(shape)[:, :rows, :columns].reshape(shape[0], rows // 2, 2, columns // 2, 2, -1)
    np.testing.assert_array_equal(out, blocks.max(axis=(2, 4)))
    assert "reduce_window" in programs[1]
    assert "reduce_window" not in programs[0]


def test_heads_one_at_a_time():
    def products(query, key):
        return jnp.tanh(query @ jnp.swapaxes(key, -1, -2))

    rows = random((2, 3, 4, 5)), random((2, 3, 6, 5), 1)
    mapped = jax.jit(lambda *rows: cpu.map_heads(products, *rows))
    chex.assert_trees_all_close(mapped(*rows), products(*rows), atol=1e-6)
    gradients = [
        jax.jit(jax.grad(lambda *rows, f=f: jnp.sum(jnp.sin(f(*rows))), (0, 1)))(*rows)
        for f in (mapped, products)
    ]
    chex.assert_trees_all_close(*gradients, atol=1e-5)


def test_where_heads_go_one_at_a_time():
    assert [cpu.scores_exceed_cache(keys) for keys in (1023, 1024)] == [False, True]
    with described("tpu"):
        assert not cpu.scores_exceed_cache(10**6)
