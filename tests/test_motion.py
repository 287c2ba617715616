"""Videos over photographs, against a plane whose pixels are known at every real position."""

import dataclasses
import math

import numpy as np
import pytest
from PIL import Image
from shapes import data_config

from bsq_jax.data.sources import make_source, motion
from bsq_jax.data.sources.motion import CameraPath, View, channels_of, render
from bsq_jax.data.train_pipeline import train_batches


def plane(height, width):
    """Grey that grows by 0.3 a pixel to the right and by 0.2 a pixel down."""
    y, x = np.mgrid[0:height, 0:width] + 0.5
    return (20 + 0.3 * x + 0.2 * y).astype(np.float32)


@pytest.mark.parametrize("angle", [0.0, 0.4, -2.0])
@pytest.mark.parametrize("zoom", [0.6, 1.0])
def test_a_frame_is_the_photograph_at_real_positions(zoom, angle):
    view = View(150.3, 101.8, zoom, angle)
    got = render([Image.fromarray(plane(220, 300))] * 3, view, (40, 50))
    y, x = np.mgrid[0:40, 0:50] + 0.5
    across, down = zoom * (x - 25), zoom * (y - 20)
    where_x = 150.3 + math.cos(angle) * across - math.sin(angle) * down
    where_y = 101.8 + math.sin(angle) * across + math.cos(angle) * down
    oracle = 20 + 0.3 * where_x + 0.2 * where_y
    error = got - oracle[..., None]
    assert np.abs(error).max() < 0.56  # rounded to bytes; Pillow's cubic bends a slope slightly
    assert abs(error.mean()) < 0.05


def test_without_zoom_turn_or_fractions_a_frame_is_a_cut():
    photograph = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    got = render(channels_of(photograph), View(40.0, 30.0, 1.0, 0.0), (20, 30))
    np.testing.assert_array_equal(got, photograph[20:40, 25:55])


def test_paths_are_smooth_varied_and_stay_inside():
    height, width = 288, 400
    still = np.zeros(3)
    for seed in range(60):
        path = CameraPath(height, width, (seed,))
        views = np.array([path.view(time) for time in range(motion.FRAMES)])
        for x, y, zoom, angle in views[::5]:
            turn = np.array(
                [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
            )
            signs = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]]) / 2
            corners = (zoom * signs * (motion.SIZE[1], motion.SIZE[0])) @ turn.T + (x, y)
            assert corners.min() > -1e-9
            assert (corners <= (width + 1e-9, height + 1e-9)).all()
        assert views[:, 2].max() <= 1.0  # never reduced
        steps = np.diff(views, axis=0)
        assert np.hypot(steps[:, 0], steps[:, 1]).max() < 20
        assert np.abs(np.diff(steps, axis=0)).max() < 1.5  # no jerks, in pixels a frame a frame
        ranges = np.ptp(views, axis=0)
        still += [ranges[2] == 0, ranges[3] == 0, ranges[:].max() == 0]
    assert 10 < still[0] < 32  # a third of 60 without zoom: 20 expected, 3.6 standard deviations
    assert 10 < still[1] < 32
    assert still[2] == 0


@pytest.mark.smoke
def test_videos_are_the_same_each_time_and_in_one_split():
    train, val = make_source("motion", "train"), make_source("motion", "val")
    assert (len(train), len(val)) == (128, 24)
    assert {train[n].id for n in range(8, 16)} == {
        f"{make_source('photos', 'train')[n].id}#1" for n in range(8)
    }
    assert not {r.id.split("#")[0] for r in (train[n] for n in range(8))} & {
        val[n].id.split("#")[0] for n in range(3)
    }
    frames = [train[9].content[n] for n in (0, 40)]
    assert all(frame.shape == (144, 192, 3) and frame.dtype == np.uint8 for frame in frames)
    assert not np.array_equal(*frames)
    np.testing.assert_array_equal(make_source("motion", "train")[9].content[40], frames[1])
    assert not np.array_equal(train[1].content[0], train[9].content[0])  # one photograph, two paths


def test_batches_of_motion():
    config = data_config(source="motion", image_size=32, resize=36, eval_resize=36, frames=3)
    config = dataclasses.replace(config, cache_mb=8)
    iterator = train_batches(config, global_batch=2, shard_index=0, shard_count=1)
    batch = next(iterator)
    iterator.close()
    assert batch["pixels"].shape == (2, 3, 32, 32, 3)
    np.testing.assert_array_equal(batch["frames"], [3, 3])
