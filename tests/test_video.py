"""Video files, against clips written here whose frames say which they are."""

import dataclasses

import numpy as np
import pytest
from video_files import numbers_of, write_video

from bsq_jax.data.pipeline import DataConfig, eval_batches, train_batches

SMALL = DataConfig(
    image_size=16, resize=16, eval_resize=16, flip=False, frames=4, stride=3, threads=1, seed=7
)


@pytest.mark.smoke
def test_clips_of_a_folder_become_batches(tmp_path):
    for name in ("train/a.mp4", "train/b.mp4", "val/c.mp4"):
        write_video(tmp_path / name, 20)
    config = dataclasses.replace(SMALL, source=f"clips:{tmp_path}")
    sizes = {"global_batch": 4, "shard_index": 0, "shard_count": 1}
    iterator = train_batches(config, **sizes)
    batch = next(iterator)
    iterator.close()
    assert batch["pixels"].shape == (4, 4, 16, 16, 3)
    np.testing.assert_array_equal(batch["frames"], [4, 4, 4, 4])
    for clip in batch["pixels"]:
        numbers = numbers_of(clip)
        np.testing.assert_array_equal(np.diff(numbers), [3, 3, 3])
        assert 0 <= numbers[0] <= 10
    (batch,) = eval_batches(config, **sizes)
    np.testing.assert_array_equal(numbers_of(batch["pixels"][0]), [5, 8, 11, 14])  # the middle
    np.testing.assert_array_equal(batch["mask"], [1, 0, 0, 0])
