"""What an evaluation shows. Oracle: the grid and the movies laid out by hand."""

import io

import chex
import numpy as np
from PIL import Image
from skimage import data

from bsq_jax.evaluation.comparison_pictures import (
    ORACLE,
    Examples,
    examples_picture,
    jpeg_within,
    one_color_per_patch,
    photographs_picture,
    side_by_side,
)
from bsq_jax.media.pictures import grid

LABELS = ["original", "reconstruction", ORACLE]


def examples(count, time, frames, seed=0):
    shape = (2, count, time, 8, 16, 3)
    originals, made = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return Examples(originals, made, np.asarray(frames))


def test_one_color_per_patch():
    pixels = examples(2, 3, [3, 3]).originals
    wanted = np.empty_like(pixels)
    for index in np.ndindex(2, 3, 2):
        block = pixels[*index[:2], :, 8 * index[2] : 8 * index[2] + 8]
        wanted[*index[:2], :, 8 * index[2] : 8 * index[2] + 8] = np.rint(block.mean(axis=(0, 1)))
    found = one_color_per_patch(pixels, 8)
    chex.assert_equal_shape([found, pixels])
    chex.assert_type(found, np.uint8)
    chex.assert_trees_all_equal(found, wanted)
    np.testing.assert_array_equal(one_color_per_patch(pixels[0, 0], 8), wanted[0, 0])


def test_pictures_stand_beside_each_other():
    shown = examples(4, 1, [1] * 4)
    rows = [shown.originals[:, 0], shown.reconstructions[:, 0]]
    rows.append(one_color_per_patch(rows[0], 8))
    np.testing.assert_array_equal(examples_picture(shown, 8), grid(rows, labels=LABELS))
    assert side_by_side(shown, 2, 18) == side_by_side(None, 2, 18) == []


def test_clips_are_shown_over_time_without_padding():
    """From the first frame to the last; of four clips three, the second of three frames."""
    shown = examples(4, 12, [12, 3, 9, 12])
    chosen = [[0, 2, 3, 5, 6, 8, 9, 11], [0, 1, 2], [0, 1, 2, 3, 5, 6, 7, 8]]
    rows = [[], [], []]
    for clip, indices in enumerate(chosen):
        empty = np.full((8 - len(indices), 8, 16, 3), 255, np.uint8)
        original = shown.originals[clip]
        parts = (original, shown.reconstructions[clip], one_color_per_patch(original, 8))
        for row, part in zip(rows, parts, strict=True):
            row.append(np.concatenate([part[indices], empty]))
    captions = [f"frame {i}" for i in chosen[0] + chosen[1]] + [""] * 5
    captions += [f"frame {i}" for i in chosen[2]]
    wanted = grid([np.concatenate(row) for row in rows], labels=LABELS, captions=captions)
    np.testing.assert_array_equal(examples_picture(shown, 8), wanted)


def test_movies_have_the_real_frames():
    shown = examples(3, 12, [12, 3, 9])
    found = side_by_side(shown, 2, 18)
    assert [len(movie) for movie in found] == [12, 3]
    scale = 320 // 16
    bar = found[1].shape[1] - 8 * scale
    for clips, left in ((shown.originals, 0), (shown.reconstructions, 16 * scale + 4)):
        part = found[1][:, bar::scale, left : left + 16 * scale : scale]
        np.testing.assert_array_equal(part, clips[1, :3])


def test_photographs_of_any_sizes():
    rng = np.random.default_rng(1)
    originals = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((16, 24), (32, 8))]
    made = [255 - image for image in originals]
    sheet = photographs_picture(originals, made, patch=8, bits=18)
    rows = []
    smallest = [jpeg_within(image, 0)[0] for image in originals]  # noise, which no JPEG makes small
    colors = [one_color_per_patch(image, 8) for image in originals]
    for images in (originals, made, smallest, colors):
        row = np.full((2, 32, 24, 3), 255, np.uint8)
        row[0, 8:24], row[1, :, 8:16] = images
        rows.append(row)
    labels = ["original", "18 bits per patch", "JPEG, its smallest", "24 bits: one color"]
    np.testing.assert_array_equal(sheet, grid(rows, labels=labels, columns=2, scale=8))
    beside = photographs_picture(originals, made, patch=8, bits=18, others={"other": smallest})
    labels = ["original", "18 bits per patch", "other", "JPEG, its smallest"]
    rows = [*rows[:2], rows[2], rows[2]]
    np.testing.assert_array_equal(beside, grid(rows, labels=labels, columns=2, scale=8))


def test_a_jpeg_has_the_best_quality_that_fits():
    """Oracle: all qualities, one by one."""
    image = data.astronaut()[:64, 128:256]

    def coded(quality):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "jpeg", quality=quality, optimize=True)
        return file.getvalue()

    files = [coded(quality) for quality in range(1, 96)]
    for most in (len(files[0]), 1500, 4000.5, 10**6):
        best = max((file for file in files if len(file) <= most), key=len)
        found, size = jpeg_within(image, most)
        assert size == len(best)
        np.testing.assert_array_equal(found, np.asarray(Image.open(io.BytesIO(best))))
    assert jpeg_within(image, 10)[1] == len(files[0])
