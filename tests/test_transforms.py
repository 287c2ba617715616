"""Transforms, against Pillow used directly and against pictures whose pixels are known."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from bsq_jax.data import transforms
from bsq_jax.data.decoding import stills
from bsq_jax.data.reader import load_resized
from bsq_jax.data.records import BrokenRecord, Record


def encode(image, file_format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def random_crop(image, *args):
    """The random crop of a clip of one frame."""
    return transforms.random_clip_crop([image], *args)[0]


def coordinates(height, width):
    """A picture whose pixels say where they are: red the row, green the column."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)


def test_rgb_and_arrays_come_back_as_they_are():
    pixels = noise(7, 9)
    np.testing.assert_array_equal(stills.decode(encode(Image.fromarray(pixels))), pixels)
    assert stills.decode(pixels) is pixels


def test_sixteen_bit_grey_is_scaled():
    values = np.array([[0, 128, 129, 257, 65278, 65535]], np.uint16)
    for file_format in ("PNG", "TIFF"):
        got = stills.decode(encode(Image.fromarray(values), file_format))
        np.testing.assert_array_equal(got[0, :, 0], [0, 0, 1, 1, 254, 255])
        assert got.shape == (1, 6, 3)


def test_grey_palette_and_cmyk():
    grey = noise(5, 6)[..., 0]
    got = stills.decode(encode(Image.fromarray(grey)))
    np.testing.assert_array_equal(got, np.repeat(grey[..., None], 3, axis=-1))
    flat = np.repeat(np.repeat(np.array([[[250, 10, 30]], [[0, 90, 200]]], np.uint8), 4, 0), 5, 1)
    palette = Image.fromarray(flat).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    np.testing.assert_array_equal(stills.decode(encode(palette)), flat)
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = stills.decode(encode(cmyk, "TIFF"))
    np.testing.assert_array_equal(red, np.broadcast_to([255, 0, 0], (8, 8, 3)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_composed_on_white(mode):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = [255, 0, 128]  # black: opaque, absent, half
    expected = [0, 255, 127]
    if mode == "P":
        image = Image.fromarray(np.array([[0, 1, 0]], np.uint8), "L").convert("P")
        image.putpalette([0, 0, 0, 9, 9, 9])
        data, expected = encode(image, transparency=1), [0, 255, 0]
    else:
        data = encode(Image.fromarray(rgba, "RGBA").convert(mode))
    got = stills.decode(data)
    np.testing.assert_array_equal(got, np.repeat(np.array([expected])[..., None], 3, axis=-1))


def broken_files():
    jpeg = encode(Image.fromarray(noise(64, 64)), "JPEG")
    png = encode(Image.fromarray(noise(64, 64)))
    return {
        "cut jpeg": jpeg[: len(jpeg) // 2],
        "cut png": png[: len(png) // 2],
        "empty": b"",
        "text": b"this is not a picture at all",
        "float": encode(Image.fromarray(np.zeros((3, 3), np.float32)), "TIFF"),
        "shape": np.zeros((3, 3), np.uint8),
        "dtype": np.zeros((3, 3, 3), np.float32),
    }


@pytest.mark.parametrize("kind", list(broken_files()))
def test_broken_records(kind):
    with pytest.raises(BrokenRecord) as caught:
        stills.decode(broken_files()[kind])
    assert str(caught.value)
    if kind in ("empty", "text", "shape"):
        with pytest.raises(BrokenRecord):
            stills.image_size(broken_files()[kind])


@pytest.mark.parametrize(("height", "width"), [(50, 83), (83, 50), (20, 21), (40, 40), (7, 300)])
@pytest.mark.parametrize("name", ["lanczos", "bicubic"])
def test_resize_short_side_is_pillows(height, width, name):
    image = noise(height, width)
    got = transforms.resize_short_side(image, 40, name)
    assert min(got.shape[:2]) == 40
    assert transforms.resized_shape(height, width, 40) == got.shape[:2]
    assert abs(got.shape[1] / got.shape[0] / (width / height) - 1) < 0.02
    size = (got.shape[1], got.shape[0])
    oracle = Image.fromarray(image).resize(size, getattr(Image.Resampling, name.upper()))
    np.testing.assert_array_equal(got, np.asarray(oracle))


def test_evaluation_resize_never_uses_a_reduced_decode():
    data = encode(Image.fromarray(noise(400, 600)), "JPEG", quality=90)
    with Image.open(io.BytesIO(data)) as opened:
        oracle = np.asarray(opened.convert("RGB").resize((60, 40), Image.Resampling.LANCZOS))
    exact = load_resized(Record("a", data), 40, "lanczos", draft=False)
    np.testing.assert_array_equal(exact, oracle)
    fast = load_resized(Record("a", data), 40, "lanczos", draft=True)
    assert fast.shape == oracle.shape
    assert not np.array_equal(fast, oracle)
    assert stills.decode(data, draft_side=80).shape == (100, 150, 3)


def test_random_crop_is_a_window_everywhere_equally_likely():
    image, rng = coordinates(12, 10), np.random.default_rng(0)
    corners = []
    for _ in range(3000):
        crop = random_crop(image, (8, 6), rng)
        top, left = crop[0, 0, :2]
        np.testing.assert_array_equal(crop, image[top : top + 8, left : left + 6])
        corners.append((int(top), int(left)))
    counts = np.unique(corners, axis=0, return_counts=True)[1]
    assert len(counts) == 25
    # 120 expected in each of the 25 places; chi-squared with 24 degrees of freedom, p = 1e-4
    assert ((counts - 120) ** 2 / 120).sum() < 59.3


def test_random_crop_scale_is_log_uniform_and_stays_inside():
    image, rng = coordinates(200, 250), np.random.default_rng(1)
    heights = []
    for _ in range(400):
        crop = random_crop(image, (20, 20), rng, (1.0, 8.0), "box")
        assert crop.shape == (20, 20, 3)
        rows = crop[:, 0, 0].astype(float)
        heights.append((rows[-1] - rows[0]) * 20 / 19)
    logs = np.log(np.array(heights) / 20) / np.log(8)
    assert logs.min() > -0.05
    assert logs.max() < 1.05
    assert abs(logs.mean() - 0.5) < 0.06  # four standard errors of a uniform mean
    assert abs(logs.std() - 12**-0.5) < 0.04


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (30, 4)])
def test_random_crop_enlarges_small_pictures(shape):
    rng = np.random.default_rng(2)
    for scale in ((1.0, 1.0), (0.5, 3.0)):
        assert random_crop(noise(*shape), (16, 12), rng, scale).shape == (16, 12, 3)


def test_random_crop_draws_the_same_numbers_whatever_the_picture():
    """So that a picture replaced by another leaves the flips of the stream as they were."""
    one, other = np.random.default_rng(3), np.random.default_rng(3)
    random_crop(noise(40, 40), (8, 8), one)
    random_crop(noise(6, 6), (8, 8), other, (0.5, 2.0))
    assert one.random() == other.random()


def test_center_crop_tiles_and_flip():
    image = coordinates(11, 14)
    np.testing.assert_array_equal(transforms.center_crop(image, (4, 6)), image[3:7, 4:10])
    crop = (4, 4)
    assert transforms.tile_grid((11, 14), crop) == (2, 3)
    tiles = [transforms.tile(image, n, crop) for n in range(6)]
    grid = np.concatenate([np.concatenate(tiles[3 * row : 3 * row + 3], 1) for row in range(2)])
    np.testing.assert_array_equal(grid, image[1:9, 1:13])
    with pytest.raises(IndexError):
        transforms.tile(image, 6, crop)
    with pytest.raises(ValueError, match="does not fit"):
        transforms.center_crop(image, (12, 4))
    flipped = transforms.flip(image)
    np.testing.assert_array_equal(flipped[:, 0], image[:, 13])
    np.testing.assert_array_equal(transforms.flip(flipped), image)


def test_permute_channels_takes_each_order_equally_often():
    rng = np.random.default_rng(0)
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    orders = [tuple(transforms.permute_channels(image, rng)[0, 0].tolist()) for _ in range(600)]
    assert sorted(set(orders)) == sorted(itertools.permutations((0, 1, 2)))
    assert all(60 < orders.count(order) < 140 for order in set(orders))
    one = transforms.permute_channels(image, rng)
    np.testing.assert_array_equal(np.sort(one, axis=-1), image)
