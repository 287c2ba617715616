"""Micro-batches. Oracle: the mean over the whole batch in float64 numpy."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bsq_jax.core.clips import real_frames, weighted_mean
from bsq_jax.core.rng import stream_key
from bsq_jax.training.accumulate import over_micro_batches


@pytest.mark.smoke
class MeanTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    @parameterized.parameters(1, 2, 4)
    def test_micro_batches_count_by_their_real_frames(self, count):
        """With lengths that differ from one micro-batch to the next."""
        values = np.random.default_rng(0).normal(size=(8, 4, 3))
        frames = np.array([1, 4, 2, 3, 1, 4, 2, 4], np.int32)

        def means(x, n):
            weights = None if n is None else real_frames(n, 4)
            return {"mean": weighted_mean(x, weights), "square": weighted_mean(x**2, weights)}

        mean = self.variant(lambda x, n: over_micro_batches(means, x, n, count))
        real = np.arange(4)[None, :] < frames[:, None]
        for lengths, counted in ((frames, values[real]), (None, values)):
            found = mean(np.float32(values), lengths)
            wanted = {"mean": counted.mean(), "square": np.square(counted).mean()}
            chex.assert_trees_all_close(found, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.smoke
def test_a_micro_batch_with_a_key_of_its_own_is_an_error():
    """Such a key would be the same for all micro-batches; one that comes with the rows is not."""
    x = jnp.zeros((4, 2))

    def noisy(key):
        return lambda rows, _: jnp.mean(rows + jax.random.normal(key(), rows.shape))

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def run(step, count, where):
        outside = stream_key(0, "noise", step)
        key = {"inside": lambda: stream_key(0, "noise", step), "outside": lambda: outside}[where]
        return over_micro_batches(noisy(key), x, None, count)

    for where in ("inside", "outside"):
        run(3, 1, where)  # one micro-batch shares it with nobody
        with pytest.raises(ValueError, match="has a random key of its own"):
            run(3, 2, where)

    def given(rows, _):
        return jnp.mean(jax.vmap(jax.random.normal)(rows[1]))

    keys = jax.random.split(jax.random.key(0), 4)
    both = over_micro_batches(given, (x, keys), None, 2)
    np.testing.assert_allclose(both, np.mean(jax.vmap(jax.random.normal)(keys)), rtol=1e-6)
