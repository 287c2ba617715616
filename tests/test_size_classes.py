"""Size classes and limits of tokens. Oracle: properties counted over random sizes, closed forms."""

import math
import types

import chex
import numpy as np
import pytest
from shapes import tokenizer_shape

from bsq_jax.core.errors import UserError
from bsq_jax.core.once import say_once
from bsq_jax.inference import size_classes
from bsq_jax.inference.grids import Pictures, check_tokens, frames_at_once
from bsq_jax.inference.size_classes import MOST_CLASSES, SizeClasses

WINDOW = 4


def windowed(**changes):
    return tokenizer_shape(spatial_window=WINDOW, positions="window", **changes)


def windows_of(grid):
    return math.prod(-(-side // WINDOW) for side in grid)


@pytest.fixture
def made(monkeypatch):
    """Programs are not compiled, but counted: how many were made, and dropped."""
    counts = types.SimpleNamespace(made=0, dropped=0)

    def jit(function, **_):
        def drop():
            counts.dropped += 1

        counts.made += 1
        return types.SimpleNamespace(clear_cache=drop)

    monkeypatch.setattr(size_classes, "jax", types.SimpleNamespace(jit=jit))
    return counts


def random_grids(count, largest=200, seed=0):
    sides = np.exp(np.random.default_rng(seed).uniform(0, np.log(largest), (count, 2)))
    return [tuple(grid) for grid in sides.astype(int).tolist()]


def test_pictures_of_many_sizes_share_few_programs(made):
    classes = SizeClasses(windowed())
    for rows, columns in random_grids(200):
        grid = classes.choose(rows, columns)
        assert grid[0] >= rows
        assert grid[1] >= columns
        assert not any(side % WINDOW for side in grid)
        spare = 2 if len(classes.programs.kept) > MOST_CLASSES else 1.4
        assert windows_of(grid) <= spare * windows_of((rows, columns))
        classes.program(grid, "encode", print)
        assert len(classes.programs.kept) <= 1 + MOST_CLASSES  # with the model's own
    assert made.made - made.dropped <= MOST_CLASSES
    assert made.made == classes.programs.compiled < 100
    # Photographs, of sides between 400 and 800 pixels, say: hardly any is dropped.
    photographs = SizeClasses(windowed())
    for rows, columns in np.random.default_rng(0).integers(50, 100, (1000, 2)).tolist():
        photographs.program(photographs.choose(rows, columns), "encode", print)
    assert photographs.programs.compiled < 40


def test_a_class_that_is_compiled_is_taken_where_little_is_wasted():
    classes = SizeClasses(windowed())
    assert classes.choose(37, 37) == (40, 40)  # 10 x 10 windows
    assert classes.choose(33, 37) == (40, 40)  # 90 of 100 windows
    assert classes.choose(36, 36) == (40, 40)  # 81: 1.23
    assert classes.choose(32, 36) == (32, 36)  # 72: 1.39, too much
    assert classes.choose(41, 1) == (44, 4)  # not covered
    assert classes.choose(65, 65) == (72, 72)  # 17 windows become 18
    assert [size_classes._rounded(n) for n in (1, 8, 9, 16, 17, 31, 33, 100)] == [
        *(1, 8, 9, 16, 18, 32, 36, 104)
    ]


def test_when_there_are_many_the_least_recently_used_is_dropped(made):
    classes = SizeClasses(windowed(), most=2)
    own = windowed().grid
    for grid in ((4, 40), (40, 4), own):
        classes.program(classes.choose(*grid), "encode", print)
    classes.program((4, 40), "decode", print)
    assert classes.programs == (4, {own: 1, (40, 4): 1, (4, 40): 2})
    assert classes.choose(1, 24) == (4, 40)  # 1.67 times the windows: better than to drop one
    assert classes.choose(1, 8) == (4, 8)  # 5 times
    assert made.dropped == 1
    assert classes.programs == (4, {own: 1, (4, 40): 2, (4, 8): 0})
    assert str(classes.programs).splitlines() == [
        "4 programs compiled, 3 of them kept",
        f"  {own[0]}x{own[1]} tokens: 1",
        "  4x40 tokens: 2",
        "  4x8 tokens: 0",
    ]
    # A stream goes on in a class that was dropped: it is made anew.
    classes.program((40, 4), "encode", print)
    assert classes.programs.compiled == 5
    assert set(classes.programs.kept) == {own, (4, 8), (40, 4)}
    assert made.dropped == 3


@pytest.mark.parametrize(
    "changes",
    [{"spatial_window": 0}, {"positions": "learned"}, {"positions": "part:own"}],
)
def test_models_whose_bits_depend_on_padding_compute_each_size_by_itself(made, changes, caplog):
    shape = tokenizer_shape(**{"spatial_window": WINDOW, "positions": "window"} | changes)
    classes = SizeClasses(shape, most=3)
    say_once.cache_clear()
    for rows, columns in random_grids(20):
        assert not classes.pads(rows, columns)
        assert classes.choose(rows, columns) == (rows, columns)
        classes.program((rows, columns), "encode", print)
        assert len(classes.programs.kept) <= 4
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("pictures of more than 3 sizes: this model computes each size by itself")


def test_the_models_own_grid_is_never_padded():
    classes = SizeClasses(windowed())
    own = windowed().grid
    assert not classes.pads(*own)
    assert classes.choose(*own) == own
    assert classes.pads(own[0], own[1] + 1)


def test_limits_of_tokens():
    windows, whole = windowed(frames=2), tokenizer_shape(frames=2)
    for shape, grid, frames in (
        (windows, (2**9, 2**8), 1),
        (windows, (2**8, 2**8), 2),
        (whole, (2**7, 2**6), 1),
        (whole, whole.grid, 10**6),  # of the model's own size
    ):
        check_tokens(shape, grid, frames, "a picture")
    for shape, grid, frames, words in (
        (
            windows,
            (2**9, 257),
            1,
            "a picture has 512x257 tokens, and with attention within windows",
        ),
        (windows, (2**9, 2**8), 2, "has 512x256 tokens in each of 2 frames, and with"),
        (whole, (91, 91), 1, "with attention over whole frames this model computes at most 8,192 "),
        (whole, (91, 91), 1, "tokens at once: use bsq_jax.Codec, which codes pictures and videos"),
    ):
        with pytest.raises(UserError) as raised:
            check_tokens(shape, grid, frames, "a picture")
        assert words in str(raised.value)
        assert "\n" not in str(raised.value)


def test_long_clips_are_computed_in_parts_where_a_window_allows_it():
    endless = windowed(frames=8, window=3)
    assert [frames_at_once(endless, 100, tokens) for tokens in (1, 2**11, 2**12, 3000, 2**17)] == [
        *(16, 16, 8, 8, 1)
    ]
    assert frames_at_once(endless, 3, 1) == 3
    check_tokens(endless, (2**9, 2**8), 10**6, "a clip")
    for shape in (windowed(frames=8), windowed(frames=8, window=3, causality="full")):
        assert frames_at_once(shape, 100, 1) == 100


def test_pictures_are_filled_up():
    rng = np.random.default_rng(0)
    arrays = [rng.integers(1, 9, (2, 1, 5, 3, 1)), rng.integers(1, 9, (1, 1, 1, 8, 1))]
    several = Pictures(arrays, (4, 2), (3, 5))
    chex.assert_shape(several[:], (3, 1, 12, 10, 1))
    assert several.shape == (3, 1, 12, 10, 1)
    wanted = np.zeros((3, 1, 12, 10, 1), int)
    for place, each in enumerate([arrays[0][:1], arrays[0][1:], arrays[1]]):
        down, across = -each.shape[2] % 4, -each.shape[3] % 2
        padded = np.pad(each, ((0, 0), (0, 0), (0, down), (0, across), (0, 0)), "edge")
        wanted[place, :, : padded.shape[2], : padded.shape[3]] = padded[0]
    for chunk in (slice(0, 3), slice(1, 2), slice(2, 3)):
        np.testing.assert_array_equal(several[chunk], wanted[chunk])
    whole = Pictures([wanted], (4, 2), (3, 5))
    assert np.shares_memory(whole[0:1], wanted)
