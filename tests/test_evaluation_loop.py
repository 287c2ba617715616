"""The loop over a validation split. Oracle: the arrays of all examples, summed up at once."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import jit_on, make_mesh, replicated
from bsq_jax.evaluation.loop import EvaluationLoop, Validation

COUNT, TIME = 11, 3
FRAMES = np.array([3, 1, 2, 3, 3, 2, 1, 3, 3, 2, 3], np.int32)
BROKEN = 4
VALUES = np.random.default_rng(0).normal(size=(COUNT, TIME)).astype(np.float32)


class Batches:
    """Padded batches as the data pipeline gives them, of one host."""

    def __init__(self, count, *, global_batch, shard_index, shard_count):
        assert (shard_index, shard_count) == (0, 1)
        self._count, self._size, self.closed = count, global_batch, False

    def __iter__(self):
        for start in range(0, self._count, self._size):
            index = np.arange(start, start + self._size)
            there = index < self._count
            clipped = np.where(there, index, 0)
            yield {
                "value": np.where(there[:, None], VALUES[clipped], np.nan),
                "frames": FRAMES[clipped],
                "mask": (there & (index != BROKEN)).astype(np.float32),
                "index": np.where(there, index, -1).astype(np.int32),
            }

    def stats(self):
        return {"broken_ids": [f"example {BROKEN}"]}

    def close(self):
        self.closed = True


class Kept:
    """Keeps the values of frames that count, by example."""

    def __init__(self):
        self.rows = {}

    def update(self, batch):
        for row, index in enumerate(batch.index):
            if batch.counted[row]:
                assert index not in self.rows
                self.rows[int(index)] = batch.values["doubled"][row][batch.real[row]]

    def result(self):
        return {"sum": float(sum(row.astype(np.float64).sum() for row in self.rows.values()))}


def loop_of(mesh, batch_size, count=COUNT):
    validation = Validation(functools.partial(Batches, count), TIME, count)
    return EvaluationLoop(validation, mesh, batch_size)


def doubled(mesh):
    run = jit_on(mesh, lambda value: {"doubled": 2 * value}, out_shardings=replicated(mesh))
    return lambda batch: run(batch["value"])


@pytest.mark.parametrize(
    ("devices", "asked", "rounded"), [(1, 4, 4), (1, 11, 11), (8, 5, 8), (8, 16, 16)]
)
def test_every_example_counts_once(devices, asked, rounded):
    mesh = make_mesh(devices=jax.devices()[:devices])
    loop, kept = loop_of(mesh, asked), Kept()
    assert loop.batch_size == rounded
    result = loop(doubled(mesh), [kept])
    wanted = {i: 2 * VALUES[i, : FRAMES[i]] for i in range(COUNT) if i != BROKEN}
    chex.assert_trees_all_equal(kept.rows, wanted)
    assert result["count"] == COUNT - 1
    np.testing.assert_allclose(result["sum"], sum(map(np.sum, wanted.values())), rtol=1e-5)
    assert loop.unreadable == [f"example {BROKEN}"]
    assert loop.shorter == sum(FRAMES[i] < TIME for i in wanted)
    assert loop(doubled(mesh), [Kept()]) == result


def test_the_step_is_compiled_once():
    mesh = make_mesh(devices=jax.devices()[:2])
    traced = chex.assert_max_traces(lambda value: {"doubled": jnp.add(value, value)}, n=1)
    run = jit_on(mesh, traced, out_shardings=replicated(mesh))
    loop_of(mesh, 4)(lambda batch: run(batch["value"]), [Kept()])


def test_a_split_without_examples_is_one_line():
    mesh = make_mesh(devices=jax.devices()[:1])
    with pytest.raises(UserError, match="split is not empty") as caught:
        loop_of(mesh, 4, count=0)(doubled(mesh), [Kept()])
    assert "\n" not in str(caught.value)
