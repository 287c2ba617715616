"""Which patterns name codes. Oracle: all patterns of short tokens, as Python's integers."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from bsq_jax.quantizers.layout import TokenLayout

pytestmark = pytest.mark.smoke

LAYOUTS = [TokenLayout(1, 4, 11), TokenLayout(2, 3, 5), TokenLayout(2, 2, 4), TokenLayout(1, 1, 2)]


def patterns(layout):
    return np.array(list(itertools.product((0, 1), repeat=layout.length)), np.uint8)


def numbers(layout, bits):
    """The number of each stage, ``[pattern, stage]``."""
    return [
        [
            int("".join(map(str, row[i : i + layout.bits])), 2)
            for i in range(0, len(row), layout.bits)
        ]
        for row in bits.tolist()
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_patterns_that_name_codes(layout):
    bits = patterns(layout)
    wanted = [all(n < layout.codes for n in row) for row in numbers(layout, bits)]
    found = layout.names_code(bits)
    assert isinstance(found, np.ndarray)
    assert found.tolist() == wanted
    assert layout.names_code(jnp.asarray(bits)).tolist() == wanted
    first = bits[:, : layout.bits]
    assert layout.names_code(first).tolist() == [
        r[0] < layout.codes for r in numbers(layout, first)
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bits_that_have_no_choice(layout):
    bits = patterns(layout)
    named = {tuple(row) for row in bits[layout.names_code(bits)].tolist()}
    begins = [{row[:n] for row in named} for n in range(layout.length + 1)]
    for place in range(layout.length):
        forced = [
            (*row[:place], 1) not in begins[place + 1] and tuple(row[:place]) in begins[place]
            for row in bits.tolist()
        ]
        if place in layout.limited:
            found = layout.must_be_zero(bits, place) & [
                tuple(row[:place]) in begins[place] for row in bits.tolist()
            ]
            assert found.tolist() == forced
            assert any(forced)
        else:
            assert not any(forced)
