"""Tokens as bytes and as group indices. Oracle: Python's integers, of any number of bits."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bsq_jax.core.errors import UserError
from bsq_jax.quantizers.bits import (
    from_group_indices,
    group_sizes,
    pack_bytes,
    to_group_indices,
)


def tokens(length: int) -> np.ndarray:
    """Some random tokens, and those of all zeros and all ones."""
    drawn = np.random.default_rng(length).integers(0, 2, (5, length), np.uint8)
    return np.concatenate([drawn, np.zeros((1, length)), np.ones((1, length))]).astype(np.uint8)


def integer(bits) -> int:
    """The first bit is the most significant one."""
    return int("".join(str(int(bit)) for bit in bits), 2)


@pytest.mark.smoke
@pytest.mark.parametrize("length", range(1, 65))
def test_bytes_round_trip_and_start_with_the_most_significant_bit(length):
    bits = tokens(length)
    packed = pack_bytes(bits)
    size = -(-length // 8)
    chex.assert_type(packed, np.uint8)
    chex.assert_shape(packed, (7, size))
    for token, row in zip(bits, packed, strict=True):
        assert int.from_bytes(row.tobytes(), "big") == integer(token) << (8 * size - length)
    back = np.unpackbits(packed, axis=-1, count=length)
    np.testing.assert_array_equal(back, bits)


def test_packing_keeps_leading_axes_and_takes_booleans():
    bits = np.random.default_rng(0).integers(0, 2, (2, 3, 4, 18)).astype(bool)
    chex.assert_shape(pack_bytes(bits), (2, 3, 4, 3))
    np.testing.assert_array_equal(np.unpackbits(pack_bytes(bits), axis=-1, count=18), bits)


class GroupIndices(chex.TestCase):
    """Compiled, op by op and on a device."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    @parameterized.parameters(
        *((1, 1), (16, 16), (18, 1), (18, 9), (18, 16), (36, 9), (36, 16), (36, 7), (64, 16)),
        (61, 5),
    )
    def test_exact_and_back(self, length, size):
        bits = tokens(length)
        wanted = [[integer(t[i : i + size]) for i in range(0, length, size)] for t in bits]
        indices = self.variant(lambda bits: to_group_indices(bits, size))(jnp.asarray(bits))
        chex.assert_trees_all_equal(indices, np.array(wanted, np.int32), strict=True)
        back = self.variant(lambda indices: from_group_indices(indices, length, size))(indices)
        chex.assert_trees_all_equal(back, bits, strict=True)


def test_group_indices_of_the_published_code(golden):
    arrays = golden("bsq")
    bits = jnp.asarray(arrays["L18/z"] > 0)
    for size in (9, 1):
        case = f"L18_g{size}_group_t1_b0"
        wanted = arrays[f"{case}/group_indices_exact"]
        np.testing.assert_array_equal(to_group_indices(bits, size), wanted)
    whole = np.vectorize(integer, signature="(l)->()")(np.asarray(bits))
    np.testing.assert_array_equal(whole, arrays["L18_g9_group_t1_b0/indices_exact"])


def test_group_sizes():
    assert group_sizes(18, 9) == (9, 9)
    assert group_sizes(18, 16) == (16, 2)
    assert group_sizes(36, 16) == (16, 16, 4)
    assert group_sizes(3, 1) == (1, 1, 1)
    for bits, size in [(18, 0), (18, 17), (8, 9)]:
        with pytest.raises(UserError, match=f"group size {size} for {bits} bits"):
            group_sizes(bits, size)
