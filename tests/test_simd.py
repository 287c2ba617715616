"""The image backend of two packages, against Pillow."""

import dataclasses
import importlib.util
import io
import itertools

import numpy as np
import pytest
from PIL import Image
from shapes import data_config
from streams import take

from bsq_jax.core.errors import UserError
from bsq_jax.data import simd, transforms
from bsq_jax.data.decoding import stills
from bsq_jax.data.decoding.record_frames import first_frame
from bsq_jax.data.records import BrokenRecord
from bsq_jax.data.sources import make_source

installed = pytest.mark.skipif(
    any(importlib.util.find_spec(module) is None for module in simd.PACKAGES),
    reason="needs simplejpeg and cykooz-resizer",
)


@pytest.fixture(scope="module")
def photograph():
    return first_frame(make_source("photos", "train")[0])[:375, :500]


def jpeg(pixels, mode="RGB", **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


def outcome(file, **options):
    """Pixels, or None of a broken record."""
    try:
        return stills.decode(file, **options)
    except BrokenRecord:
        return None


@installed
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpegs_have_pillows_pixels(photograph, subsampling):
    shapes, modes = [(64, 96), (33, 57), (16, 8), (1, 1)], ["RGB", "L", "CMYK"]
    for (height, width), mode, progressive in itertools.product(shapes, modes, [False, True]):
        options = {} if mode != "RGB" else {"subsampling": subsampling}
        picture = photograph[100 : 100 + height, 200 : 200 + width]
        file = jpeg(picture, mode, quality=90, progressive=progressive, **options)
        np.testing.assert_array_equal(stills.decode(file, backend="simd"), stills.decode(file))


@installed
def test_orientation_and_reduced_decoding_are_pillows(photograph):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = jpeg(photograph[:40, :60], exif=exif)
        np.testing.assert_array_equal(stills.decode(file, backend="simd"), stills.decode(file))
    file = jpeg(photograph)
    got = stills.decode(file, draft_side=100, backend="simd")
    assert got.shape[0] < 375
    np.testing.assert_array_equal(got, stills.decode(file, draft_side=100))


@installed
def test_damaged_jpegs_end_as_with_pillow(photograph):
    rng = np.random.default_rng(0)
    files = [jpeg(photograph[:48, :80], progressive=bool(number % 2)) for number in range(2)]
    read = broken = 0
    for number in range(200):
        file = bytearray(files[number % 2])
        for place in rng.integers(0, len(file), 3):
            file[place] = rng.integers(256)
        file = bytes(file[: rng.integers(len(file))] if number % 5 == 0 else file)
        expected, got = outcome(file), outcome(file, backend="simd")
        assert (expected is None) == (got is None)
        if expected is None:
            broken += 1
        else:
            read += 1
            np.testing.assert_array_equal(got, expected)
    assert min(read, broken) > 20


@installed
@pytest.mark.parametrize("name", list(simd.FILTERS))
@pytest.mark.parametrize(
    ("height", "width"), [(256, 341), (128, 200), (375, 100), (60, 500), (700, 900), (375, 500)]
)
def test_resizing_is_close_to_pillows(photograph, name, height, width):
    oracle = transforms.resize(photograph, height, width, name).astype(int)
    got = transforms.resize(photograph, height, width, name, "simd")
    assert got.dtype == np.uint8
    error = np.abs(got - oracle)
    assert error.max() <= 2
    assert (error > 0).mean() < 0.01  # which is over 68 dB


@installed
def test_pictures_that_stop_filters(photograph):
    """Of one row or column, enlarged; of values at the ends of the range; a view of another."""
    black_and_white = np.where(photograph > 128, 255, 0).astype(np.uint8)
    for picture in (photograph[:1], photograph[:, :1], black_and_white, photograph[::-2, ::-3]):
        oracle = transforms.resize(picture, 90, 70, "lanczos").astype(int)
        got = transforms.resize(picture, 90, 70, "lanczos", "simd")
        assert np.abs(got - oracle).max() <= 3


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install simplejpeg cykooz-resizer"):
        simd.check("bicubic")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(UserError, match=r"has no data\.filter=box"):
        simd.check("box")
    simd.check("lanczos")


@installed
def test_training_has_the_same_order_and_windows(tmp_path, photograph):
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(photograph[40 * number :, 30 * number :]))
    config = data_config(
        source=f"folder:{tmp_path}", val_source="photos", image_size=64, resize=80, scale=(0.8, 1.2)
    )
    expected = take(config, 3)
    for change in ({}, {"cache_mb": 0, "threads": 3}):
        changed = dataclasses.replace(config, backend="simd", **change)
        for batch, oracle in zip(take(changed, 3), expected, strict=True):
            np.testing.assert_array_equal(batch["index"], oracle["index"])
            error = np.abs(batch["pixels"].astype(int) - oracle["pixels"])
            assert error.max() <= 5  # of two resizes, one behind the other
            assert error.mean() < 0.03
