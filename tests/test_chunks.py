"""Functions over rows, chunk by chunk. Oracle: the same function over all rows in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsq_jax.core.chunks import map_chunks
from bsq_jax.core.sharding import batch_sharding, make_mesh, replicate, to_global

DEVICES = 8


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
@pytest.mark.parametrize("most", [1, 2, 5])
def test_rows_come_back_in_order(sizes, most):
    mesh = make_mesh(*sizes)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(24, 3, 2)).astype(np.float32), np.arange(24.0, dtype=np.float32)
    seen = []

    def function(a, b):
        seen.append(a.shape[0])
        return {"sum": jnp.sum(a, axis=(1, 2)) + b, "twice": 2 * a}

    run = jax.jit(lambda a, b: map_chunks(function, a, b, mesh=mesh, most=most))
    # One argument split over the devices, the other whole on each.
    found = run(to_global({"a": a}, mesh)["a"], replicate(b, mesh))
    np.testing.assert_allclose(found["sum"], a.sum(axis=(1, 2)) + b, rtol=1e-5)
    np.testing.assert_array_equal(found["twice"], 2 * a)
    each = 24 // (sizes[0] * sizes[1])
    few = max(n for n in range(1, most + 1) if each % n == 0)
    assert set(seen) == {few * sizes[0] * sizes[1]}
    assert found["twice"].sharding.is_equivalent_to(batch_sharding(mesh), 3)
