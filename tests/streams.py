"""Batches of all hosts, joined to the global ones."""

import numpy as np

from bsq_jax.data.eval_pipeline import eval_batches
from bsq_jax.data.train_pipeline import train_batches


def take(config, steps, *, global_batch=8, shards=1, start=0, earlier=None):
    """``steps`` global batches: what all hosts get, joined in host order."""
    iterators = [
        train_batches(
            config,
            global_batch=global_batch,
            shard_index=shard,
            shard_count=shards,
            start_step=start,
            earlier=earlier,
        )
        for shard in range(shards)
    ]
    batches = []
    for _ in range(steps):
        parts = [next(iterator) for iterator in iterators]
        batches.append({key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
    for iterator in iterators:
        iterator.close()
    return batches


def take_eval(config, *, global_batch, shards=1):
    """All evaluation batches, joined over hosts, which must be equally many."""
    hosts = []
    for shard in range(shards):
        iterator = eval_batches(
            config, global_batch=global_batch, shard_index=shard, shard_count=shards
        )
        hosts.append(list(iterator))
        assert len(hosts[-1]) == len(iterator)
        iterator.close()
    assert len({len(host) for host in hosts}) == 1
    rows = [part for step in zip(*hosts, strict=True) for part in step]
    return {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}


def assert_same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
