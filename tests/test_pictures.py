"""Grids of pictures. Oracle: small arrays written out by hand, and a PNG read back by Pillow."""

import numpy as np
import pytest
from PIL import Image

from bsq_jax.core.errors import UserError
from bsq_jax.media.pictures import grid, save_png


def gray(*rows):
    """[height, width, 3] from rows of gray values."""
    return np.repeat(np.array(rows, np.uint8)[..., None], 3, axis=-1)


def test_two_rows_of_two_pictures():
    top = np.stack([gray([1, 2], [3, 4]), gray([5, 6], [7, 8])])
    below = top + 10
    _ = 255
    expected = [
        [_, _, _, _, _, _, _, _, _, _],
        [_, _, _, _, _, _, _, _, _, _],
        [_, _, 1, 2, _, _, 5, 6, _, _],
        [_, _, 3, 4, _, _, 7, 8, _, _],
        [_, _, _, _, _, _, _, _, _, _],
        [_, _, _, _, _, _, _, _, _, _],
        [_, _, 11, 12, _, _, 15, 16, _, _],
        [_, _, 13, 14, _, _, 17, 18, _, _],
        [_, _, _, _, _, _, _, _, _, _],
        [_, _, _, _, _, _, _, _, _, _],
    ]
    assert grid([top, below], scale=1).tolist() == gray(*expected).tolist()


def test_more_pictures_than_columns_go_on_in_another_block():
    row = np.stack([gray([1]), gray([2]), gray([3])])
    sheet = grid([row, row + 10], scale=1, columns=2)[..., 0]
    # Gaps are 2 pixels; three more of them between the blocks.
    tops, lefts = [2, 5, 14, 17], [2, 5]
    assert sheet.shape == (tops[-1] + 3, lefts[-1] + 3)
    found = [[int(sheet[top, left]) for left in lefts] for top in tops]
    assert found == [[1, 2], [11, 12], [3, 255], [13, 255]]
    assert (sheet != 255).sum() == 6


def test_enlarging_repeats_pixels():
    sheet = grid([gray([10, 20])[None]], scale=3)[..., 0]
    assert sheet[2:-2, 2:-2].tolist() == [[10, 10, 10, 20, 20, 20]] * 3


@pytest.mark.parametrize(
    ("count", "side", "low", "high"),
    [(8, 32, 900, 1200), (8, 128, 1000, 1200), (4, 96, 900, 1300), (8, 256, 2048, 2200)],
)
def test_the_default_scale_gives_a_picture_of_about_1000_pixels(count, side, low, high):
    rows = [np.zeros((count, side, side, 3), np.uint8)] * 2
    assert low <= grid(rows).shape[1] <= high


def test_labels_stand_at_the_left_of_their_rows():
    rows = [np.full((2, 32, 32, 3), value, np.uint8) for value in (50, 100)]
    plain = grid(rows, scale=1)
    named = grid(rows, scale=1, labels=["original", "ours"])
    strip = named[:, : named.shape[1] - plain.shape[1]]
    assert (named[:, strip.shape[1] :] == plain).all()
    inked = (strip < 128).any(axis=(1, 2))
    assert inked[2:34].sum() > 5
    assert inked[36:68].sum() > 5
    assert not inked[:2].any()
    assert not inked[34:36].any()
    assert not (strip[:, -4:] < 255).any()  # the longest label is not cut off


def test_captions_stand_above_their_pictures_in_every_block():
    rows = [np.full((3, 32, 32, 3), value, np.uint8) for value in (50, 100)]
    sheet = grid(rows, scale=1, columns=2, captions=["one", "two", ""])
    tops = [top for top in range(sheet.shape[0] - 32) if (sheet[top : top + 32, 5] == 50).all()]
    assert len(tops) == 2
    assert (sheet[tops[0] + 34 : tops[0] + 66, 5] == 100).all()
    places = [(top, left) for top in tops for left in (2, 36)]
    above = [sheet[top - 16 : top, left : left + 32] for top, left in places]
    assert [(strip < 128).any() for strip in above] == [True, True, False, False]
    assert (sheet[tops[1] : tops[1] + 66, 36:] == 255).all()  # no fourth picture


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([], {}, "at least one row"),
        ([np.zeros((1, 2, 2, 3), np.float32)], {}, "must be uint8"),
        ([np.zeros((2, 2, 3), np.uint8)], {}, "must be uint8"),
        ([np.zeros((1, 2, 2, 3), np.uint8), np.zeros((1, 3, 2, 3), np.uint8)], {}, "one shape"),
        ([np.zeros((1, 2, 2, 3), np.uint8)], {"labels": ["a", "b"]}, "as many labels"),
        ([np.zeros((1, 2, 2, 3), np.uint8)], {"scale": 0}, "scale=0"),
        ([np.zeros((2, 2, 2, 3), np.uint8)], {"captions": ["a"]}, "as many captions"),
    ],
)
def test_what_is_no_grid_is_named(rows, options, words):
    with pytest.raises(UserError, match=words):
        grid(rows, **options)


def test_save_png_keeps_every_pixel_and_leaves_no_other_file(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    for _ in range(2):
        save_png(tmp_path / "pictures" / "a.png", picture)
    with Image.open(tmp_path / "pictures" / "a.png") as image:
        assert (np.asarray(image) == picture).all()
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["a.png"]
    with pytest.raises(UserError, match="must be uint8"):
        save_png(tmp_path / "b.png", picture[..., 0])
