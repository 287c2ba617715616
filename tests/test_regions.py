"""Pictures of several sizes in one batch. Oracle: loops over the real places in float64 numpy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bsq_jax.core.clips import real_frames, weighted_mean
from bsq_jax.core.regions import picture_means, place_weights, real_pixels, real_tokens
from bsq_jax.core.sharding import make_mesh, to_global

SIZES = np.array([[1, 1], [3, 5], [4, 2], [2, 5], [4, 5], [1, 5], [4, 1], [3, 3]], np.int32)
ROWS, COLUMNS = 4, 5
FRAMES = np.array([1, 3, 2, 3, 3, 2, 1, 3], np.int32)


def cut(values, scale=(1, 1)):
    """The real part of each picture in float64."""
    return [
        picture[:, : rows * scale[0], : columns * scale[1]].astype(np.float64)
        for picture, (rows, columns) in zip(values, SIZES, strict=True)
    ]


@pytest.mark.smoke
@pytest.mark.parametrize("patch", [1, 2, (2, 3)])
def test_real_places_on_host_and_device(patch):
    high, wide = patch if isinstance(patch, tuple) else (patch, patch)
    wanted = np.zeros((8, ROWS * high, COLUMNS * wide), bool)
    for k, (rows, columns) in enumerate(SIZES):
        for i in range(rows * high):
            for j in range(columns * wide):
                wanted[k, i, j] = True
    found = real_pixels(SIZES, ROWS * high, COLUMNS * wide, patch)
    assert isinstance(found, np.ndarray)
    chex.assert_trees_all_equal(found, wanted, strict=True)
    on_device = real_pixels(jnp.asarray(SIZES), ROWS * high, COLUMNS * wide, patch)
    chex.assert_trees_all_equal(np.asarray(on_device), wanted, strict=True)
    if patch == 1:
        chex.assert_trees_all_equal(real_tokens(SIZES, ROWS, COLUMNS), wanted, strict=True)


class Variants(chex.TestCase):
    """Compiled, op by op and on a device."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    @parameterized.parameters(True, False)
    def test_means_over_real_places_and_frames(self, clips):
        shape = (8, 3 if clips else 1, ROWS, COLUMNS, 6)
        values = np.random.default_rng(0).normal(3, 1, shape).astype(np.float32)
        kept = cut(values)
        if clips:
            kept = [part[:count] for part, count in zip(kept, FRAMES, strict=True)]

        def mean(values, sizes, frames):
            weights = real_frames(frames, 3).astype(jnp.float32) if clips else None
            return weighted_mean(values, place_weights(real_tokens(sizes, ROWS, COLUMNS), weights))

        found = self.variant(mean)(values, SIZES, FRAMES)
        chex.assert_shape(found, ())
        chex.assert_type(found, jnp.float32)
        wanted = np.concatenate([part.reshape(-1) for part in kept]).mean()
        chex.assert_trees_all_close(found, wanted, rtol=1e-6)

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    @parameterized.parameters((np.nan,), (1e30,))
    def test_means_of_pictures_whatever_padding_holds(self, padding):
        shape = (8, 2, ROWS * 2, COLUMNS * 3, 3)
        values = np.random.default_rng(1).normal(3, 1, shape).astype(np.float32)
        real = real_pixels(SIZES, ROWS * 2, COLUMNS * 3, (2, 3))
        values = np.where(real[:, None, :, :, None], values, np.float32(padding))
        found = self.variant(picture_means)(values, real)
        chex.assert_shape(found, (8, 2))
        wanted = np.stack([part.mean(axis=(1, 2, 3)) for part in cut(values, (2, 3))])
        chex.assert_trees_all_close(found, wanted.astype(np.float32), rtol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    def test_padding_has_no_gradient(self):
        values = np.random.default_rng(2).normal(size=(8, 1, ROWS, COLUMNS, 2)).astype(np.float32)
        real = real_tokens(SIZES, ROWS, COLUMNS)

        def total(values):
            return jnp.sum(picture_means(values, real)[:, 0] * jnp.arange(1.0, 9.0))

        gradient = self.variant(jax.grad(total))(values)
        wanted = np.zeros(values.shape)
        for k, (rows, columns) in enumerate(SIZES):
            wanted[k, :, :rows, :columns] = (k + 1) / (rows * columns * 2)
        chex.assert_trees_all_close(gradient, wanted.astype(np.float32), rtol=1e-6)


@pytest.mark.usefixtures("eight_devices")
def test_means_over_all_devices():
    values = np.random.default_rng(3).normal(3, 1, (8, 1, ROWS, COLUMNS, 4)).astype(np.float32)
    batch = to_global({"values": values, "sizes": SIZES}, make_mesh())

    @jax.jit
    def mean(values, sizes):
        real = real_tokens(sizes, ROWS, COLUMNS)
        return weighted_mean(values, place_weights(real)), picture_means(values, real)

    of_batch, of_pictures = mean(**batch)
    kept = cut(values)
    wanted = np.concatenate([part.reshape(-1) for part in kept]).mean()
    np.testing.assert_allclose(of_batch, wanted, rtol=1e-6)
    wanted = [part.mean() for part in kept]
    np.testing.assert_allclose(of_pictures[:, 0], wanted, rtol=1e-6)
