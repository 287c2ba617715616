"""Lengths of clips, against counts over many steps and closed forms."""

import collections
import dataclasses

import numpy as np
import pytest
from shapes import data_config

from bsq_jax.data import clip_lengths
from bsq_jax.data.clip_lengths import Schedule, buckets, eval_frames, train_frames

CLIPS = data_config(frames=12, min_frames=3, seed=5)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("frames", "min_frames", "share", "expected"),
    [
        (16, 0, 0.0, (16,)),
        (16, 16, 0.0, (16,)),
        (16, 1, 0.0, (1, 2, 4, 8, 16)),
        (16, 4, 0.0, (4, 8, 16)),
        (16, 5, 0.0, (8, 16)),
        (12, 3, 0.0, (4, 8, 12)),
        (12, 9, 0.0, (12,)),
        (17, 4, 0.25, (1, 4, 8, 16, 17)),
        (1, 1, 0.5, (1,)),
        (8, 2, 1.0, (1,)),
    ],
)
def test_buckets(frames, min_frames, share, expected):
    config = data_config(frames=frames, min_frames=min_frames, image_share=share)
    assert buckets(config) == expected
    steps = [Schedule(config).step(step) for step in range(400)]
    assert {step.frames for step in steps} == set(expected)


def test_lengths_are_uniform_over_all_clips():
    """A step drawn by its bucket, a length uniform in it: each of the ten lengths equally often."""
    schedule, rng = Schedule(CLIPS), np.random.default_rng(0)
    counts = collections.Counter()
    for number in range(4000):
        step = schedule.step(number)
        assert not step.images
        assert step.place == number
        counts[int(rng.integers(step.shortest, step.frames, endpoint=True))] += 1
    assert sorted(counts) == list(range(3, 13))
    # 400 expected of each; chi-squared with 9 degrees of freedom, p = 1e-4
    assert sum((count - 400) ** 2 / 400 for count in counts.values()) < 33.7
    spans = {(step.shortest, step.frames) for step in map(schedule.step, range(100))}
    assert spans == {(3, 4), (5, 8), (9, 12)}


def test_spans_cover_every_length_once():
    for frames in range(1, 40):
        for min_frames in range(1, frames + 1):
            spans = clip_lengths._spans(frames, min_frames)
            covered = [n for first, last in spans for n in range(first, last + 1)]
            assert covered == list(range(min_frames, frames + 1))
            # Doubling: at least half of a full bucket is real, but for the first and the last.
            assert all(first > last / 2 for first, last in spans[1:-1])


@pytest.mark.parametrize("share", [0.1, 0.25, 1 / 3, 0.5, 0.99, 1.0])
def test_the_share_of_single_frames_is_exact_and_counted(share):
    config = dataclasses.replace(CLIPS, image_share=share)
    schedule = Schedule(config)
    steps = [schedule.step(step) for step in range(64 * 30)]
    assert sum(step.images for step in steps) == int(64 * 30 * share + 1e-9)
    for images in (True, False):
        kind = [step for step in steps if step.images == images]
        assert [step.place for step in kind] == list(range(len(kind)))
    assert all((step.frames, step.shortest) == (1, 1) for step in steps if step.images)
    if share == 0.5:  # in an order of their own, so that nothing periodic meets one kind alone
        assert len({tuple(s.images for s in steps[n : n + 64]) for n in range(0, 1920, 64)}) == 30


def test_a_step_is_a_function_of_seed_and_number():
    config = dataclasses.replace(CLIPS, image_share=0.3)
    forward = [Schedule(config).step(step) for step in range(300)]
    schedule = Schedule(config)
    assert [schedule.step(step) for step in reversed(range(300))] == forward[::-1]
    other = Schedule(dataclasses.replace(config, seed=6))
    assert [other.step(step) for step in range(300)] != forward
    assert schedule.step(10**9) == Schedule(config).step(10**9)


def test_pictures_have_one_frame():
    schedule = Schedule(dataclasses.replace(CLIPS, image_share=0.5), videos=False)
    assert {(s.frames, s.shortest) for s in map(schedule.step, range(200))} == {(1, 1)}


@pytest.mark.parametrize("stride", [1, 3])
def test_training_clips_start_everywhere_and_end_inside(stride):
    count, length = 20, 5
    room = count - (length - 1) * stride
    starts = collections.Counter()
    for draw in np.linspace(0, 1, 1000 * room, endpoint=False):
        frames = train_frames(count, length, stride, draw)
        assert len(frames) == length
        assert frames.step == stride
        assert frames[0] >= 0
        assert frames[-1] < count
        starts[frames[0]] += 1
    assert starts == dict.fromkeys(range(room), 1000)


@pytest.mark.parametrize(
    ("count", "length", "stride", "real", "starts"),
    [(1, 8, 1, 1, 1), (5, 8, 1, 5, 1), (8, 8, 2, 4, 2), (9, 8, 4, 3, 1), (3, 2, 5, 1, 3)],
)
def test_a_short_video_gives_fewer_real_frames(count, length, stride, real, starts):
    clips = {tuple(train_frames(count, length, stride, d)) for d in np.linspace(0, 0.999, 50)}
    assert {len(clip) for clip in clips} == {real}
    assert len(clips) == starts
    assert all(clip[0] >= 0 and clip[-1] < count for clip in clips)
    assert tuple(eval_frames(count, length, stride, 0, 1)) in clips


def test_evaluation_clips_are_evenly_spaced():
    starts = [eval_frames(100, 10, 1, clip, 4)[0] for clip in range(4)]
    assert starts == [0, 30, 60, 90]
    assert [eval_frames(40, 10, 1, clip, 4)[0] for clip in range(4)] == [0, 10, 20, 30]
    assert [eval_frames(100, 10, 2, clip, 2)[0] for clip in range(2)] == [0, 81]
    assert eval_frames(100, 10, 2, 0, 1) == range(40, 60, 2)
    for clips in range(1, 9):  # rounded to the nearest, never outside
        got = [eval_frames(37, 6, 2, clip, clips) for clip in range(clips)]
        assert all(len(frames) == 6 and frames[-1] <= 36 for frames in got)
        exact = np.linspace(0, 26, clips) if clips > 1 else np.array([13.0])
        assert np.abs(np.array([frames[0] for frames in got]) - exact).max() <= 0.5
