"""Derived keys. Oracle: what the numbers must and must not depend on."""

import chex
import jax
import numpy as np
import pytest

from bsq_jax.core.rng import stream_key


def numbers(*args) -> tuple[int, ...]:
    return tuple(np.asarray(jax.random.key_data(stream_key(*args))).tolist())


def test_same_arguments_same_key_and_all_others_differ():
    assert numbers(3, "init", 5) == numbers(3, "init", 5)
    assert numbers(3, "init") == numbers(3, "init", 0)
    cases = [(s, n, t) for s in (0, 1, 2) for n in ("init", "dropout", "noise") for t in (0, 1, 2)]
    assert len({numbers(*case) for case in cases}) == len(cases)


@pytest.mark.smoke
class Traced(chex.TestCase):
    """The same key whether seed and step are Python's integers or traced."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_seed_and_step(self):
        found = self.variant(lambda seed, step: stream_key(seed, "x", step))(4, 1000)
        chex.assert_trees_all_equal(found, stream_key(4, "x", 1000))

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_the_key_is_the_same_in_every_process(self):
        # The CRC-32 of "init", written out: a hash that Python salts per process would not give it.
        key = jax.random.fold_in(jax.random.key(0), 0xC674E474)
        found = self.variant(lambda step: stream_key(0, "init", step))(7)
        chex.assert_trees_all_equal(found, jax.random.fold_in(key, 7))
