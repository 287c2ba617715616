"""Vector quantization.

Oracles: golden vectors of the published code, brute force in float64 numpy, closed forms.
"""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from bsq_jax.core.sharding import batch_sharding, jit_on, make_mesh, parameter_shardings
from bsq_jax.quantizers import ResidualQuantizer, VectorQuantizer
from bsq_jax.quantizers.bits import to_index
from bsq_jax.quantizers.search import BLOCK, nearest_code

pytestmark = pytest.mark.smoke


def vq(size=64, width=8, cosine=False, averaged=False, commitment_weight=0.25):
    return VectorQuantizer(size, width, cosine, averaged, commitment_weight)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("case", ["vq_plain", "vq_l2"])
def test_golden_values_and_both_gradients(golden, case):
    arrays = {key.split("/")[1]: x for key, x in golden("vq").items() if key.startswith(case)}
    quantizer = vq(cosine=case == "vq_l2")

    @jax.jit
    def everything(codebook, z):
        def loss(codebook, z):
            out = quantizer.apply({"params": {"codebook": codebook}}, z)
            return out.loss + jnp.sum(out.quantized * arrays["w"]), out

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(codebook, z)

    (dcodebook, dz), out = everything(arrays["codebook"], arrays["z"])
    np.testing.assert_array_equal(to_index(out.bits), arrays["indices"])
    np.testing.assert_allclose(out.quantized, arrays["quant"], atol=1e-6)
    np.testing.assert_allclose(out.loss, arrays["loss"], rtol=1e-6)
    np.testing.assert_allclose(dz, arrays["dz"], atol=1e-5)
    np.testing.assert_allclose(dcodebook, arrays["dcodebook"], atol=1e-5)


def brute_force(points, codebook):
    """The lowest of the nearest codes, and how much farther the second one is."""
    squares = np.sum((points[..., None, :].astype(np.float64) - codebook) ** 2, axis=-1)
    nearest = np.sort(squares, axis=-1)[..., :2]
    return squares.argmin(axis=-1), nearest[..., 1] - nearest[..., 0]


@pytest.mark.parametrize("codes", [1, BLOCK, 2 * BLOCK + 3])
def test_the_search_is_brute_force(codes):
    points, codebook = drawn(7, 30, 4), drawn(codes, 4, seed=1)
    found = np.asarray(jax.jit(nearest_code)(points, codebook))
    if codes == 1:
        assert not found.any()
        return
    wanted, margin = brute_force(points, codebook)
    clear = margin > 1e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found[clear], wanted[clear])


def test_the_lowest_of_codes_that_are_as_near_wins():
    codes = drawn(40, 4, seed=1)
    codebook = np.tile(codes, (2 * BLOCK // len(codes), 1))  # each in several places and blocks
    wanted, _ = brute_force(drawn(50, 4), codes)
    np.testing.assert_array_equal(jax.jit(nearest_code)(drawn(50, 4), codebook), wanted)
    # Midway, and at the same distance on all sides.
    corners = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)
    np.testing.assert_array_equal(nearest_code(np.zeros((3, 2), np.float32), corners), 0)
    np.testing.assert_array_equal(nearest_code(np.array([[-5, 0]], np.float32), corners), 2)


def test_midway_between_codes_the_gradient_passes_too():
    codebook = np.array([[1, 0], [-1, 0], [0, 9]], np.float32)
    quantizer = vq(3, 2, commitment_weight=0.5)

    @jax.jit
    @jax.grad
    def gradient(z):
        out = quantizer.apply({"params": {"codebook": codebook}}, z)
        return jnp.sum(out.quantized * np.array([[2.0, 3.0]], np.float32)) + out.loss

    # 2 beta (z - code) of the commitment, code 0.
    np.testing.assert_allclose(gradient(np.zeros((1, 2), np.float32)), [[2 - 1, 3]])


def test_searching_many_codes_needs_the_memory_of_a_block():
    tokens, codes = 8192, 2**18
    shapes = (
        jax.ShapeDtypeStruct((tokens, 8), jnp.float32),
        jax.ShapeDtypeStruct((codes, 8), jnp.float32),
    )
    memory = jax.jit(nearest_code).lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    assert memory < 4 * tokens * BLOCK * 4 + 4 * codes * 8 * 4 < tokens * codes * 4 / 100


def test_codes_as_averages_have_no_gradient_and_no_loss():
    quantizer, z = vq(averaged=True), drawn(20, 8)

    @jax.jit
    def both(codebook):
        def loss(codebook):
            out = quantizer.apply({"params": {"codebook": codebook}}, z)
            return out.loss + jnp.sum(out.quantized), out

        return jax.grad(loss, has_aux=True)(codebook)

    gradient, out = both(drawn(64, 8, seed=1))
    assert not np.asarray(gradient).any()
    assert set(out.losses) == {"commitment"}
    np.testing.assert_array_equal(out.points[0], z)


def test_padding_has_no_share_in_the_losses():
    z, weights = (
        drawn(4, 3, 5, 8),
        np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]], np.float32),
    )
    params = {"params": {"codebook": drawn(64, 8, seed=1)}}
    call = jax.jit(lambda z, weights: vq().apply(params, z, weights))
    real = call(z[weights > 0][None], None)
    np.testing.assert_allclose(call(z, weights).loss, real.loss, rtol=1e-5)


def test_stages_have_codebooks_of_their_own_that_start_at_the_size_of_what_is_left():
    stages = ResidualQuantizer(vq(256, 4), 3)
    z = drawn(400, 4) / 2
    variables = nn.meta.unbox(stages.init(jax.random.key(0), z[:1]))
    books = [variables["params"][f"stage{k}"]["codebook"] for k in range(3)]
    assert not np.allclose(books[0], books[1])
    out = jax.jit(stages.apply)(variables, z)
    left, errors = z.astype(np.float64), [np.mean(z**2)]
    for k, book in enumerate(books):
        code = np.asarray(book, np.float64)[np.asarray(to_index(out.bits[:, 8 * k : 8 * k + 8]))]
        left = left - code / 4**k  # 256^(-1/4)
        errors.append(np.mean(left**2))
    np.testing.assert_allclose(z - out.quantized, left, atol=1e-5)
    assert all(after < before / 2 for before, after in itertools.pairwise(errors)), errors


@pytest.mark.parametrize("cosine", [False, True])
def test_a_new_codebook_is_as_long_as_the_codes_of_bsq(cosine):
    quantizer = vq(512, cosine=cosine)
    boxed = quantizer.init(jax.random.key(0), drawn(1, 8))["params"]["codebook"]
    assert boxed.names == ("codes", None)
    squares = np.sum(np.square(boxed.value), axis=-1)
    np.testing.assert_allclose(
        squares if cosine else squares.mean(), 1, rtol=1e-5 if cosine else 0.1
    )


@pytest.mark.usefixtures("eight_devices")
def test_codes_are_split_over_fsdp_and_the_search_takes_them_whole():
    mesh, quantizer = make_mesh(2, 2, 2), vq(64, 8)
    boxed = jax.eval_shape(quantizer.init, jax.random.key(0), drawn(1, 8))["params"]
    shardings = parameter_shardings(boxed, mesh)
    assert shardings["codebook"].spec == PartitionSpec("fsdp", None)
    params = jax.device_put({"codebook": drawn(64, 8, seed=1)}, shardings)
    z = jax.device_put(drawn(4, 6, 8), batch_sharding(mesh))
    run = jit_on(mesh, lambda params, z: quantizer.apply({"params": params}, z).bits)
    text = run.lower(params, z).compile().as_text()
    assert "all-gather" in text
    assert "f32[64,8]" in text
    assert "all-reduce" not in text  # of partial searches
