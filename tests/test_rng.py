"""Derived keys. Oracle: what the numbers must and must not depend on."""

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
def test_traced_step_and_seed_give_the_same_key():
    traced = jax.jit(lambda seed, step: jax.random.key_data(stream_key(seed, "x", step)))
    assert tuple(np.asarray(traced(4, 1000)).tolist()) == numbers(4, "x", 1000)


def test_the_key_is_the_same_in_every_process():
    # The CRC-32 of "init", written out: a hash that Python salts per process would not give it.
    key = jax.random.fold_in(jax.random.key(0), 0xC674E474)
    wanted = jax.random.key_data(jax.random.fold_in(key, 7))
    assert numbers(0, "init", 7) == tuple(np.asarray(wanted).tolist())
