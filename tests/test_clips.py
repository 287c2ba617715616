"""Clips of several lengths in one batch. Oracle: loops over the real frames in float64 numpy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from bsq_jax.core.clips import hold_last, real_frames, weighted_mean
from bsq_jax.core.sharding import make_mesh, to_global

FRAMES = np.array([1, 3, 2, 4, 4, 2, 1, 3], np.int32)


@pytest.mark.smoke
def test_real_frames_on_host_and_device():
    wanted = [[step < count for step in range(4)] for count in FRAMES]
    assert real_frames(FRAMES, 4).tolist() == wanted
    assert isinstance(real_frames(FRAMES, 4), np.ndarray)
    assert real_frames(jnp.asarray(FRAMES), 4).tolist() == wanted


class Variants(chex.TestCase):
    """Compiled, op by op and on a device."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    @parameterized.parameters("uint8", "float32")
    def test_padding_holds_the_last_real_frame(self, dtype):
        pixels = np.random.default_rng(0).integers(0, 256, (8, 4, 2, 2, 3)).astype(dtype)
        wanted = np.stack(
            [[clip[min(step, count - 1)] for step in range(4)]
             for clip, count in zip(pixels, FRAMES, strict=True)]
        )  # fmt: skip
        held = self.variant(hold_last)(pixels, FRAMES)
        chex.assert_trees_all_equal(held, wanted, strict=True)

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_means_of_real_frames(self):
        values = np.random.default_rng(1).normal(3, 1, (8, 4, 5)).astype(np.float32)
        kept = [clip[:count].astype(np.float64) for clip, count in zip(values, FRAMES, strict=True)]
        run = self.variant(lambda values, frames: weighted_mean(values, real_frames(frames, 4)))
        found = run(values, FRAMES)
        chex.assert_shape(found, ())
        chex.assert_type(found, jnp.float32)
        chex.assert_trees_all_close(found, np.concatenate(kept).mean(), rtol=1e-6)


@pytest.mark.usefixtures("eight_devices")
def test_means_of_real_frames_over_all_devices():
    values = np.random.default_rng(1).normal(3, 1, (8, 4, 5)).astype(np.float32)
    kept = [clip[:count].astype(np.float64) for clip, count in zip(values, FRAMES, strict=True)]
    batch = to_global({"values": values, "frames": FRAMES}, make_mesh())

    @jax.jit
    def mean(values, frames):
        return weighted_mean(values, real_frames(frames, values.shape[1]))

    np.testing.assert_allclose(mean(**batch), np.concatenate(kept).mean(), rtol=1e-6)
    np.testing.assert_allclose(weighted_mean(jnp.asarray(values)), values.mean(), rtol=1e-6)
    weights = np.random.default_rng(2).uniform(0, 1, (8, 4, 5))
    wanted = np.average(values, weights=weights)
    np.testing.assert_allclose(
        weighted_mean(jnp.asarray(values), jnp.asarray(weights)), wanted, 1e-6
    )
