"""Tokens as bytes and as group indices. Oracle: Python's integers, of any number of bits."""

import jax.numpy as jnp
import numpy as np
import pytest

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
    assert packed.dtype == np.uint8
    assert packed.shape == (7, size)
    for token, row in zip(bits, packed, strict=True):
        assert int.from_bytes(row.tobytes(), "big") == integer(token) << (8 * size - length)
    back = np.unpackbits(packed, axis=-1, count=length)
    np.testing.assert_array_equal(back, bits)


def test_packing_keeps_leading_axes_and_takes_booleans():
    bits = np.random.default_rng(0).integers(0, 2, (2, 3, 4, 18)).astype(bool)
    assert pack_bytes(bits).shape == (2, 3, 4, 3)
    np.testing.assert_array_equal(np.unpackbits(pack_bytes(bits), axis=-1, count=18), bits)


@pytest.mark.parametrize(
    ("length", "size"),
    [(1, 1), (16, 16), (18, 1), (18, 9), (18, 16), (36, 9), (36, 16), (36, 7), (64, 16), (61, 5)],
)
def test_group_indices_are_exact(length, size):
    bits = tokens(length)
    indices = to_group_indices(jnp.asarray(bits), size)
    wanted = [[integer(t[i : i + size]) for i in range(0, length, size)] for t in bits]
    assert indices.dtype == jnp.int32
    assert indices.tolist() == wanted
    np.testing.assert_array_equal(from_group_indices(indices, length, size), bits)


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
