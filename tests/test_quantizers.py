"""What all quantizers have in common.

Oracles: brute force over all codes in float64 numpy, the definition of the straight-through
estimator, one device.
"""

import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bsq_jax.config import default_config, finalize
from bsq_jax.core.sharding import batch_sharding, jit_on, make_mesh, parameter_shardings
from bsq_jax.quantizers import make_quantizer
from bsq_jax.quantizers.factory import KINDS

pytestmark = pytest.mark.smoke

# Settings of a small quantizer for each kind and its variants. A new one is a new line.
CASES: dict[str, dict[str, Any]] = {
    "bsq": {"name": "bsq", "bits": 6, "group_size": 3},
    "lfq": {"name": "lfq", "bits": 6, "group_size": 3},
    "fsq": {"name": "fsq", "levels": (8, 3, 2)},
    "vq": {"name": "vq", "codes": 300, "channels": 3},
    "vq_cosine": {"name": "vq", "codes": 12, "channels": 3, "cosine": True},
    "vq_averages": {"name": "vq", "codes": 12, "channels": 3, "learning": "ema"},
    "leech": {"name": "leech"},
    "bsq_stages": {"name": "bsq", "bits": 6, "stages": 2},
    "fsq_stages": {"name": "fsq", "levels": (4, 5), "stages": 2},
    "vq_stages": {"name": "vq", "codes": 12, "channels": 3, "stages": 2, "cosine": True},
}
SHAPE = (8, 5)  # tokens: an axis for the batch and one more
ONE_STAGE = [name for name in CASES if "stages" not in CASES[name]]
FEW_CODES = [name for name in ONE_STAGE if name != "leech"]  # of which brute force goes through all


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def made(case):
    """The quantizer, and parameters with their logical axes."""
    settings = dict(CASES[case])
    config = default_config()
    config.model.bits = settings.pop("bits", 0)
    config.quantizer.update(settings)
    quantizer = make_quantizer(finalize(config))
    latents = drawn(*SHAPE, quantizer.channels)
    return quantizer, jax.jit(quantizer.init)(jax.random.key(0), latents).get("params", {})


def everything(case):
    """A function of parameters, latents and a probe ``[..., channels]``: all there is to know."""
    quantizer, _ = made(case)

    def both(params, latents, probe):
        variables = {"params": params}
        points = quantizer.apply(variables, latents.astype(jnp.float32), method="project")

        def loss(params, latents):
            out = quantizer.apply({"params": params}, latents)
            return out.loss, out

        def probed(points):
            out = quantizer.apply(variables, points, method="encode_points")
            return jnp.sum(out.quantized * probe)

        gradients, out = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, latents)
        return {
            "out": out,
            "points": points,
            "gradients": gradients,
            "probe": jax.grad(probed)(points),
            "decoded": quantizer.apply(variables, out.bits, method="decode"),
        }

    return both


@functools.cache
def compiled(case):
    return jax.jit(everything(case))


def plain(case):
    return nn.meta.unbox(made(case)[1])


def arguments(case, latents=None):
    channels = made(case)[0].channels
    latents = drawn(*SHAPE, channels) if latents is None else latents
    return plain(case), latents, drawn(*SHAPE, channels, seed=1)


def all_codes(case):
    """The bits of all codes ``[code, L]``, the codes, and the bits nearest to these."""
    quantizer, _ = made(case)
    numbers = np.arange(quantizer.codes)[:, None]
    bits = (numbers >> np.arange(quantizer.bits)[::-1] & 1).astype(np.uint8)

    @jax.jit
    def both(params):
        codes = quantizer.apply({"params": params}, bits, method="decode")
        return codes, quantizer.apply({"params": params}, codes, method="nearest")

    return bits, *both(plain(case))


def test_every_kind_is_here():
    assert {settings["name"] for settings in CASES.values()} == set(KINDS)


class Variants(chex.TestCase):
    """The same with and without jit."""

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.named_parameters(*((case, case) for case in ONE_STAGE))
    def test_tokens_and_codes(self, case):
        quantizer, _ = made(case)
        found = self.variant(everything(case))(*arguments(case))
        out = found["out"]
        chex.assert_shape([out.quantized, found["points"]], (*SHAPE, quantizer.channels))
        chex.assert_shape(out.bits, (*SHAPE, quantizer.bits))
        chex.assert_type([out.quantized, out.bits, out.loss], [jnp.float32, jnp.uint8, jnp.float32])
        assert len(out.points) == quantizer.learned
        assert np.asarray(out.bits).max() == 1
        assert np.asarray(quantizer.names_code(out.bits)).all()
        # To the bit, but for codes that are normalized in another program.
        chex.assert_trees_all_close(found["decoded"], out.quantized, rtol=0, atol=1e-6)
        wanted = compiled(case)(*arguments(case))
        np.testing.assert_array_equal(out.bits, wanted["out"].bits)
        chex.assert_trees_all_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_decoded_bits_are_what_the_decoder_was_given(case):
    found = compiled(case)(*arguments(case))
    np.testing.assert_array_equal(found["decoded"], found["out"].quantized)


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_passes_straight_through(case):
    quantizer, _ = made(case)
    params, latents, probe = arguments(case)
    found = compiled(case)(params, latents, probe)
    np.testing.assert_allclose(found["probe"], probe / quantizer.slope, rtol=1e-6)


@pytest.mark.parametrize("case", FEW_CODES)
def test_codes_are_the_nearest_and_have_their_own_bits(case):
    bits, codes, nearest = all_codes(case)
    np.testing.assert_array_equal(nearest, bits)
    found = compiled(case)(*arguments(case))
    points, codes = np.asarray(found["points"], np.float64), np.asarray(codes, np.float64)
    squares = np.sum((points[..., None, :] - codes) ** 2, axis=-1)
    chosen = np.sum((points - np.asarray(found["decoded"], np.float64)) ** 2, axis=-1)
    np.testing.assert_allclose(chosen, squares.min(axis=-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_a_number_is_noticed_and_stays_where_it_is(case):
    quantizer, _ = made(case)
    params, latents, probe = arguments(case)
    usual = compiled(case)(params, latents, probe)
    broken = latents.copy()
    broken[3, 2, 1] = np.nan
    found = compiled(case)(params, broken, probe)
    place = np.zeros(SHAPE, bool)
    place[3, 2] = True
    lost = np.isnan(found["out"].quantized).any(axis=-1)
    np.testing.assert_array_equal(lost, place)
    for name in ("quantized", "bits"):
        left, right = (np.asarray(getattr(each["out"], name)) for each in (found, usual))
        np.testing.assert_array_equal(left[~place], right[~place])
    assert np.asarray(quantizer.names_code(found["out"].bits)).all()
    assert np.isnan(found["out"].loss) or not usual["out"].losses


@pytest.mark.parametrize("case", CASES)
def test_latents_of_any_size_have_codes_and_finite_gradients(case):
    quantizer, _ = made(case)
    latents = drawn(*SHAPE, quantizer.channels)
    latents[0] = 0
    latents[1] = 1e6
    latents[2] *= 1e-30
    found = compiled(case)(*arguments(case, latents))
    chex.assert_tree_all_finite(found)
    assert np.asarray(quantizer.names_code(found["out"].bits)).all()


@pytest.mark.parametrize("case", CASES)
def test_low_precision_latents_are_computed_in_float32(case):
    quantizer, _ = made(case)
    low = jnp.asarray(drawn(*SHAPE, quantizer.channels), jnp.bfloat16)
    found = compiled(case)(*arguments(case, low))
    wanted = compiled(case)(*arguments(case, low.astype(jnp.float32)))
    assert found["gradients"][1].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found["out"].bits, wanted["out"].bits)
    chex.assert_trees_all_close(found["out"], wanted["out"], rtol=1e-6)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("case", ONE_STAGE)
@pytest.mark.usefixtures("eight_devices")
def test_all_meshes_give_the_same(case, sizes):
    _, boxed = made(case)
    params, latents, probe = arguments(case)
    wanted = compiled(case)(params, latents, probe)
    mesh = make_mesh(*sizes)
    placed = jax.device_put(params, parameter_shardings(boxed, mesh))
    split = jax.device_put((latents, probe), batch_sharding(mesh))
    found = jit_on(mesh, everything(case))(placed, *split)
    np.testing.assert_array_equal(found["out"].bits, wanted["out"].bits)
    chex.assert_trees_all_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert not found["out"].quantized.sharding.is_fully_replicated
