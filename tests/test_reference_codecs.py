"""Codecs to compare with. Oracles: BT.709 written out, boxes of MP4 read by hand, Pillow."""

import collections
import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image
from video_files import grey, numbers_of

from bsq_jax.coding import reference_codecs
from bsq_jax.coding.reference_codecs import NAMES, reference
from bsq_jax.core.errors import UserError

VIDEOS = ("h264", "h265", "av1", "h264-444", "h265-444")
CODECS = ("jpeg", "webp", "avif", *VIDEOS)


def soft(time, height, width):
    """Soft colours that move, uint8 [time, height, width, 3]."""
    t, y, x, c = np.ogrid[0:time, 0:height, 0:width, 0:3]
    wave = np.sin(0.05 * x + 0.04 * y + 0.3 * t) + 0.15 * (c - 1) * np.sin(0.06 * x - 0.03 * y)
    return np.rint(127 + 90 * wave).astype(np.uint8)


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2))


def written(name, frames, setting, rate=Fraction(25)):
    """The bytes of the file that a video codec makes."""
    return reference_codecs._write(*reference(name).code.args, frames, setting, rate)


@pytest.mark.smoke
@pytest.mark.parametrize("name", CODECS)
def test_every_codec_codes_better_at_higher_rates(name, capfd):
    coder = reference(name)
    frames = soft(4, 97, 131)
    assert len(coder.settings) == 6
    rates, qualities = [], []
    for setting in coder.settings:
        coded = coder.code(frames, setting, Fraction(30))
        assert coded.frames.shape == frames.shape
        assert coded.frames.dtype == np.uint8
        assert 0 < coded.packet_bytes <= coded.file_bytes
        rates.append(coded.packet_bytes)
        qualities.append(psnr(frames, coded.frames))
    assert rates == sorted(rates)
    assert qualities == sorted(qualities)
    assert rates[-1] > 1.5 * rates[0]
    assert 20 < qualities[0] < 37 < qualities[-1]
    shift = np.mean(coded.frames.astype(float) - frames, axis=(0, 1, 2))
    # Of avif the conversion of colours is Pillow's.
    assert np.abs(shift).max() < (1.0 if name == "avif" else 0.5)
    if name.endswith("-444"):
        assert qualities[-1] > 38
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["h264-444", "h265-444"])
def test_colours_in_the_file_are_by_bt709(name):
    """Frames of one colour each, coded nearly without loss: their planes are that colour."""
    colours = np.array([[0, 0, 0], [255, 255, 255], [200, 30, 60], [20, 90, 240], [90, 200, 20]])
    frames = np.broadcast_to(colours[:, None, None], (5, 64, 64, 3)).astype(np.uint8)
    r, g, b = (colours / 255).T
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    expected = [16 + 219 * y, 128 + 224 * (b - y) / 1.8556, 128 + 224 * (r - y) / 1.5748]
    with av.open(io.BytesIO(written(name, frames, 1))) as container:
        decoded = list(container.decode(video=0))
    for number, frame in enumerate(decoded):
        assert (frame.colorspace, frame.color_range) == (1, 1)  # BT.709, 16..235
        assert (frame.color_primaries, frame.color_trc) == (1, 1)
        stored = frame.to_ndarray(channel_last=True).mean(axis=(0, 1))
        assert np.abs(stored - np.array(expected)[:, number]).max() < 1
    assert np.abs(reference(name).code(frames, 1, None).frames.astype(int) - frames).max() <= 2


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("lines", [64, 720])
def test_files_say_how_their_colours_are_stored(name, lines):
    with av.open(io.BytesIO(written(name, soft(1, lines, 64), 40))) as container:
        context = container.streams.video[0].codec_context
        found = (context.colorspace, context.color_primaries, context.color_trc)
        assert (*found, context.color_range) == (1, 1, 1, 1)  # BT.709, 16..235


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p"])
def test_the_way_there_and_back_shifts_no_level(pixels):
    """Greys of every level and soft colours: what is lost is rounding."""
    converter = reference_codecs.VideoReformatter()
    greys = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    for picture, least in ((greys, 55), (soft(1, 64, 64)[0], 45)):
        back = reference_codecs._rgb(converter, reference_codecs._yuv(converter, picture, pixels))
        assert psnr(picture, back) > least
        assert np.abs(np.mean(back.astype(float) - picture, axis=(0, 1))).max() < 0.1


@pytest.mark.parametrize("name", VIDEOS)
def test_bytes_are_those_of_the_file(name):
    """Walks the boxes of the MP4: all of it is the file, and what is in mdat are the packets."""
    frames = soft(7, 64, 80)
    file = written(name, frames, 30)
    coded = reference(name).code(frames, 30, None)
    place, boxes = 0, {}
    while place < len(file):
        size, kind = struct.unpack(">I4s", file[place : place + 8])
        boxes[kind] = size
        place += size
    assert place == coded.file_bytes
    assert boxes[b"mdat"] - 8 == coded.packet_bytes
    assert b"x264 - core" not in file
    assert b"x265 (build" not in file


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("count", [1, 2, 3, 11])
def test_frames_come_back_in_order(name, count):
    frames = np.stack([grey(number, (64, 64)) for number in range(count)])
    coder = reference(name)
    coded = coder.code(frames, coder.settings[-1], None)
    np.testing.assert_array_equal(numbers_of(coded.frames), range(count))


@pytest.mark.parametrize("name", ["h265", "h265-444"])
@pytest.mark.parametrize("count", [1, 2])
def test_nothing_is_reordered_where_there_is_nothing_to(name, count):
    """With reordering libx265 takes the times of so few frames from what lies in memory."""
    frames = np.full((count, 64, 64, 3), 90, np.uint8)
    with av.open(io.BytesIO(written(name, frames, 46))) as file:
        times = [(packet.pts, packet.dts) for packet in file.demux(video=0) if packet.size]
    assert len(times) == count
    assert all(shown == decoded for shown, decoded in times)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("size", [(1, 1), (3, 150), (47, 33)])
def test_any_size_is_filled_up_and_cut_again(name, size):
    frames = np.full((2, *size, 3), (180, 90, 60), np.uint8)
    coder = reference(name)
    coded = coder.code(frames, coder.settings[-1], None)
    assert np.abs(coded.frames.astype(int) - frames).max() <= 5


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("size", [(97, 131), (100, 130)])
def test_the_same_bytes_every_time(name, size):
    """At sizes that are no multiples of a block, where libx264 reads what is behind a row.

    Once in thousands of files libx264 makes another one even so, for a reason that is not known;
    without the filling half of them are others.
    """
    frames = soft(4, *size)
    for setting in reference(name).settings[-2:]:
        files = collections.Counter()
        for fill in range(12):
            junk = [np.random.default_rng(fill).bytes(10**5 * part) for part in range(1, 5)]
            del junk  # other bytes lie in memory
            files[written(name, frames, setting)] += 1
        assert max(files.values()) >= (10 if name.startswith("h264") else 12)


def test_the_rate_is_in_the_file():
    with av.open(io.BytesIO(written("h264", soft(3, 64, 64), 30, Fraction(30000, 1001)))) as file:
        assert file.streams.video[0].average_rate == Fraction(30000, 1001)


PILLOW = {
    "jpeg": {"optimize": True, "progressive": True},
    "webp": {"method": 6},
    "avif": {"speed": 4, "max_threads": 1},
}


@pytest.mark.parametrize("name", PILLOW)
def test_pictures_are_files_of_pillow(name):
    frames = soft(2, 40, 50)
    coded = reference(name).code(frames, 50, None)
    sizes = []
    for frame, decoded in zip(frames, coded.frames, strict=True):
        file = io.BytesIO()
        Image.fromarray(frame).save(file, name.upper(), quality=50, **PILLOW[name])
        np.testing.assert_array_equal(decoded, np.asarray(Image.open(file).convert("RGB")))
        sizes.append(len(file.getvalue()))
    assert coded.file_bytes == coded.packet_bytes == sum(sizes)


def test_what_is_not_there_is_named(monkeypatch):
    with pytest.raises(UserError, match=r"unknown codec 'h266'.*jpeg, webp, avif, h264") as caught:
        reference("h266")
    monkeypatch.setattr(reference_codecs.av, "codecs_available", {"libx264"})
    for name, wanted in {"h265": "libx265", "av1": "libsvtav1 or libaom-av1"}.items():
        with pytest.raises(UserError, match=rf"{name} needs .*{wanted}, for yuv420p") as caught:
            reference(name)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(reference_codecs.features, "check", lambda name: False)
    for name in ("webp", "avif"):
        with pytest.raises(UserError, match=rf"cannot write {name.upper()}: leave {name} out"):
            reference(name)
    assert reference("h264").about == "libx264, preset slow, yuv420p"
    assert set(CODECS) < set(NAMES)


def test_frames_that_an_encoder_refuses():
    with pytest.raises(UserError, match=r"libx264 does not take 1 frames of 2x20000 .*: leave"):
        reference("h264").code(np.zeros((1, 2, 20000, 3), np.uint8), 30, None)
