"""Sizes of an integer prior. Oracle: the worst case in Python's integers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from shapes import prior_shape
from test_prior_model import Reference, host_logits, random_params, shape_of, signs_of

from bsq_jax.config import finalize, load_config_file
from bsq_jax.core.errors import UserError
from bsq_jax.models.factory import make_prior
from bsq_jax.models.prior.bounds import largest_residual, logit_shift
from bsq_jax.models.prior.integer_arithmetic import normalize
from bsq_jax.models.prior.tile_prior import TilePrior
from bsq_jax.models.prior.token_bits import TokenBits


def normalized(x):
    total = max(sum(abs(v) for v in x), len(x))
    return [max(-127, min(127, (v * 32 * len(x) + total // 2) // total)) for v in x]


class Normalize(chex.TestCase):
    """Compiled, op by op and on a device: the same integers."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    @parameterized.parameters(16, 512, 1024, 2048)
    def test_the_worst_case(self, width):
        largest, drawn = largest_residual(width), np.random.default_rng(0)
        rows = [
            np.full(width, largest),
            np.where(np.arange(width) % 2, largest, -largest),
            np.where(np.arange(width) == 3, largest, 0),
            np.where(np.arange(width) == 3, -largest, drawn.integers(-40, 40, width)),
            drawn.integers(-largest, largest, width),
            (largest * drawn.normal(0, 0.2, width)).round().clip(-largest, largest).astype(int),
        ]
        found = self.variant(normalize)(jnp.asarray(np.stack(rows), jnp.float32))
        wanted = np.array([normalized([int(v) for v in row]) for row in rows], np.float32)
        chex.assert_trees_all_equal(found, wanted, strict=True)


def agrees(model, params, time):
    signs = signs_of(model.shape, 1, time)
    ours = np.asarray(jax.jit(lambda p, s: model.apply({"params": p}, s))(params, signs))
    np.testing.assert_array_equal(ours[0], Reference(model.shape, params).logits(signs[0]))
    assert np.unique(ours).size > 5


def test_a_wide_network_against_integers():
    """Attention adds as much as it can to half of the residual, before the MLP reads all of it."""
    model = TilePrior(shape_of("raster", width=640, layers=1, window=1))
    params = random_params(model)
    block = params["block_0"]
    block["out"][:, :320] = block["null"][...] = 2
    agrees(model, params, 1)


def test_many_hidden_channels_against_integers():
    """Each bit's sum is about as large as can be, and most of it cancels."""
    model = TilePrior(shape_of("raster", hidden=3000))
    params = random_params(model)
    params["context_bias"] = np.full_like(params["context_bias"], 2)
    params["later"] = np.where(np.arange(3000) < 1500, 2, -2) + params["later"] / 4
    params["later"] = params["later"].astype(np.float32)
    agrees(model, params, 2)


def test_the_sum_over_hidden_channels_on_the_device_and_on_the_host():
    """Partial sums beyond 2^24, and totals about the halves that decide how is rounded."""
    hidden, tail = 20_000, 200
    shape = shape_of("raster", hidden=hidden)
    model = TilePrior(shape)
    params = jax.tree.map(np.zeros_like, random_params(model))
    later = np.where(np.arange(hidden) < (hidden - tail) // 2, 127, -127)
    later[-tail:] = -1
    params["later"] = np.broadcast_to(later / 64, (5, hidden)).astype(np.float32)
    drop = logit_shift(hidden)
    contexts = np.full((64, hidden), 200, np.int32)
    for row, context in enumerate(contexts):
        left = (1 << drop) * (row % 6) + (1 << (drop - 1)) + row % 3 - 1
        context[-tail:] = np.diff(np.minimum(np.arange(tail + 1) * 127, left))
    sums = [int(np.clip(row, 0, 127).astype(int) @ later) for row in contexts]
    wanted = [((2 * total + (1 << drop)) >> (drop + 1)) for total in sums]
    signs = jnp.zeros((64, shape.bits))

    numbers = model.apply({"params": params}, method="numbers")

    def bits(contexts, signs):
        return numbers.bits(contexts, signs, shape.layout)

    on_device = np.asarray(jax.jit(bits)(jnp.asarray(contexts, jnp.float32), signs))
    on_host, _ = host_logits(TokenBits(shape, params), contexts, np.zeros((64, 5), int))
    np.testing.assert_array_equal(on_device, on_host)
    np.testing.assert_array_equal(on_host[:, 0], np.clip(wanted, -704, 704))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 7000, "heads": 8}, r"prior\.width is 7000: .* exact up to 6727 there"),
        ({"width": 1041, "heads": 1}, r"prior\.width / prior\.heads is 1041: .* up to 1040"),
        ({"hidden": 70_000}, r"prior\.hidden is 70000: .* up to \d+"),
        ({"window": 30_000}, r"prior\.window x 6 tokens \+ 1 is 180001: .* up to 132096"),
    ],
)
def test_sizes_that_are_not_exact_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        shape_of("raster", **changes)
    with pytest.raises(UserError, match=r"model\.bits is 20000: .* up to \d+"):
        prior_shape(2, 3, 20_000)
    assert prior_shape(0, 0, 5, reach=(100, 100)).keys == 2 * 201**2 + 1
    with pytest.raises(UserError, match=r"window x 401x401 tokens \+ 1 is 321603: .* 132096"):
        prior_shape(0, 0, 5, reach=(200, 200))


@pytest.mark.parametrize("variant", ["pictures", "clips", "published"])
def test_own_configs_are_exact(variant):
    config = load_config_file(f"configs/prior.py:{variant}")
    config.prior.tokenizer = "described"
    make_prior(finalize(config))
