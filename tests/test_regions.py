"""Pictures of several sizes in one array. Oracle: loops over the real places of each picture."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bsq_jax.core.clips import weighted_mean
from bsq_jax.core.regions import real_pixels, real_tokens
from bsq_jax.core.sharding import make_mesh, to_global

SIZES = np.array([[1, 1], [3, 5], [4, 2], [2, 5], [4, 5], [1, 5], [4, 1], [0, 0]], np.int32)
ROWS, COLUMNS = 4, 5


def real_by_loop(high, wide):
    wanted = np.zeros((len(SIZES), ROWS * high, COLUMNS * wide), bool)
    for k, (rows, columns) in enumerate(SIZES):
        for i in range(rows * high):
            for j in range(columns * wide):
                wanted[k, i, j] = True
    return wanted


@pytest.mark.smoke
@pytest.mark.parametrize("patch", [(1, 1), (2, 2), (2, 3)])
def test_real_places_on_the_host(patch):
    found = real_pixels(SIZES, ROWS * patch[0], COLUMNS * patch[1], patch)
    chex.assert_trees_all_equal(found, real_by_loop(*patch), strict=True)


class Variants(chex.TestCase):
    """Compiled, op by op and on a device."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    @parameterized.parameters(((1, 1),), ((3, 2),))
    def test_real_places(self, patch):
        size = ROWS * patch[0], COLUMNS * patch[1]
        found = self.variant(lambda sizes: real_pixels(sizes, *size, patch))(SIZES)
        chex.assert_trees_all_equal(np.asarray(found), real_by_loop(*patch), strict=True)

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_rows_and_columns_in_another_order(self):
        row, column = np.array([3, 0, 2]), np.array([4, 1])
        found = self.variant(lambda sizes: real_tokens(sizes, row, column))(SIZES)
        chex.assert_trees_all_equal(np.asarray(found), real_by_loop(1, 1)[:, row][:, :, column])

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_means_over_real_places(self):
        values = np.random.default_rng(0).normal(3, 1, (8, ROWS, COLUMNS, 6)).astype(np.float32)
        each = zip(values, SIZES, strict=True)
        kept = [picture[:rows, :columns].reshape(-1) for picture, (rows, columns) in each]

        def mean(values, sizes):
            real = real_tokens(sizes, np.arange(ROWS), np.arange(COLUMNS))
            return weighted_mean(values, real.astype(jnp.float32))

        found = self.variant(mean)(values, jnp.asarray(SIZES))
        wanted = np.concatenate(kept).astype(np.float64).mean()
        chex.assert_trees_all_close(found, np.float32(wanted), rtol=1e-6)


@pytest.mark.usefixtures("eight_devices")
def test_real_places_on_many_devices():
    batch = to_global({"sizes": SIZES}, make_mesh())
    found = jax.jit(lambda sizes: real_pixels(sizes, ROWS * 2, COLUMNS * 3, (2, 3)))(**batch)
    np.testing.assert_array_equal(found, real_by_loop(2, 3))
