"""Bytes and floats. Oracle: all 256 levels, and values written out by hand."""

import chex
import jax.numpy as jnp
import numpy as np

from bsq_jax.core.pixels import to_float, to_uint8


class Levels(chex.TestCase):
    """Compiled, op by op and on a device."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_every_level_survives_the_way_to_floats_and_back(self):
        levels = np.arange(256, dtype=np.uint8)
        floats = self.variant(to_float)(levels)
        chex.assert_type(floats, jnp.float32)
        chex.assert_trees_all_close(floats, np.arange(256) / 127.5 - 1, rtol=1e-7, atol=1e-7)
        chex.assert_trees_all_equal(self.variant(to_uint8)(floats), levels, strict=True)


def test_what_lies_outside_is_clipped():
    assert to_uint8(jnp.array([-7.0, -1.0, 0.0, 1.0, 1.2])).tolist() == [0, 0, 128, 255, 255]


def test_halves_are_rounded_to_even():
    even = np.arange(0, 255, 2, dtype=np.float32)
    x = (2 * even + 1) / np.float32(255) - np.float32(1)  # halfway above an even level
    exact = (x + 1) * np.float32(127.5) == even + 0.5  # but for the rounding of x itself
    assert exact.sum() > 20
    assert to_uint8(jnp.array(x[exact])).tolist() == even[exact].tolist()


def test_low_precision_is_computed_in_float32():
    x = jnp.array([-1.0, -0.5, 0.25, 1.0], jnp.bfloat16)
    assert to_uint8(x).tolist() == [0, 64, 159, 255]
