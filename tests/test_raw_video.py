"""Raw ``.yuv`` files, named inputs. Oracles: planes laid out by hand, BT.601 and BT.709."""

import io
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from video_files import grey, numbers_of, write_video

from bsq_jax.core.errors import UserError
from bsq_jax.data.command_line_files import distinct, find_inputs
from bsq_jax.data.decoding.raw_video import raw_layout
from bsq_jax.data.decoding.video import Video
from bsq_jax.data.records import BrokenRecord
from bsq_jax.data.sources import make_source


def planes(height, width, luma, blue=128, red=128):
    """One frame of one colour in 4:2:0 as bytes."""
    small = -(-height // 2) * -(-width // 2)
    return bytes([luma]) * (height * width) + bytes([blue]) * small + bytes([red]) * small


def write_raw(path, size, count):
    """Frames whose luma counts up from 20 in steps of 5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(planes(*size, 20 + 5 * number) for number in range(count)))
    return path


def rgb(luma, blue, red, kr, kb):
    """One Y'CbCr colour of 16..235 as RGB in 0..255, by the definition of the matrix."""
    y, b, r = (luma - 16) / 219, (blue - 128) / 224, (red - 128) / 224
    red_, blue_ = y + 2 * (1 - kr) * r, y + 2 * (1 - kb) * b
    green = (y - kr * red_ - kb * blue_) / (1 - kr - kb)
    return 255 * np.clip([red_, green, blue_], 0, 1)


@pytest.mark.smoke
@pytest.mark.parametrize("size", [(6, 10), (5, 7), (16, 34)])
def test_frames_are_read_where_they_lie(tmp_path, size):
    path = write_raw(tmp_path / f"a_{size[1]}x{size[0]}_30.yuv", size, 9)
    luma = np.rint((np.arange(9) * 5 + 4) * 255 / 219)
    for wanted in (range(9), [0], [3, 4], [8], [2, 7]):
        with Video(path) as video:
            assert len(video) == 9
            frames = dict(video.frames(list(wanted)))
            pixels = np.stack([frames[number]() for number in wanted])
            assert video.packets <= wanted[-1] - wanted[0] + 2  # none before is read
        assert pixels.shape == (len(wanted), *size, 3)
        assert np.abs(pixels.astype(int) - luma[list(wanted), None, None, None]).max() <= 1


@pytest.mark.parametrize(("height", "kr", "kb"), [(480, 0.299, 0.114), (720, 0.2126, 0.0722)])
def test_colours_are_by_the_matrix_for_the_size(tmp_path, height, kr, kb):
    path = tmp_path / f"a_16x{height}.yuv"
    path.write_bytes(planes(height, 16, 120, 90, 150))
    with Video(path) as video:
        pixels = dict(video.frames([0]))[0]()
    assert np.abs(pixels - rgb(120, 90, 150, kr, kb)).max() <= 1


@pytest.mark.parametrize(
    ("name", "size", "rate"),
    [
        ("Beauty_1920x1080_120fps_420_8bit_YUV", (1080, 1920), 120),
        ("videoSRC01_1920x1080_30", (1080, 1920), 30),
        ("BasketballPass_416X240_50", (240, 416), 50),
        ("clip10_64x48_29.97", (48, 64), Fraction("29.97")),
        ("64x48_24fps", (48, 64), 24),
        ("a_64x48_420", (48, 64), None),
        ("a_12_64x48", (48, 64), None),
    ],
)
def test_size_and_rate_come_from_the_name(tmp_path, name, size, rate):
    path = tmp_path / f"{name}.yuv"
    path.write_bytes(bytes(size[0] * size[1] * 3))
    assert raw_layout(path) == (*size, 2, rate)


@pytest.mark.parametrize(
    ("name", "length", "message"),
    [
        ("foreman", 90, "put its size into its name"),
        ("a_0x48_30", 90, "put its size into its name"),
        ("a_10x6_30", 91, r"91 bytes are no whole number of frames of 10x6 .* \(90 bytes each\)"),
        ("a_10x6_30", 0, "empty"),
        ("Beauty_3840x2160_120fps_420_10bit_YUV", 90, "10 bits a sample.*yuv420p"),
        ("a_10x6_yuv420p10le", 90, "10 bits"),
        ("a_10x6_12-bit", 90, "12 bits"),
        ("a_10x6_444", 90, "4:4:4"),
        ("a_10x6_yuv422p_50", 90, "4:2:2"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path, name, length, message):
    path = tmp_path / f"{name}.yuv"
    path.write_bytes(bytes(length))
    with pytest.raises(BrokenRecord, match=message) as caught:
        Video(path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        Video(tmp_path / "a_10x6.yuv")


def test_the_rate_of_a_video(tmp_path):
    for name, rate in {"a_10x6_30": 30, "b_10x6": None}.items():
        with Video(write_raw(tmp_path / f"{name}.yuv", (6, 10), 2)) as video:
            assert video.rate == rate


def test_raw_videos_are_a_source(tmp_path):
    """The layouts of UVG and MCL-JCV: all raw files in one folder."""
    for number in (1, 2, 3):
        write_raw(tmp_path / f"videoSRC0{number}_16x16_30.yuv", (16, 16), 4)
    (tmp_path / "readme.txt").write_text("not a video")
    source = make_source(f"clips:{tmp_path}", "val", divide=False)
    assert [source[i].id for i in range(3)] == [f"videoSRC0{n}_16x16_30.yuv" for n in (1, 2, 3)]
    single = make_source(f"clips:{tmp_path}/videoSRC01_16x16_30.yuv", "val", divide=False)
    assert len(single) == 1


# --- what is named on a command line ---


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    path.write_bytes(stream.getvalue())
    return path


def test_pictures_of_a_folder_in_order_and_each_once(tmp_path):
    """The layout of Kodak."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 9, 14, 3), np.uint8)
    for number in reversed(range(24)):
        save(tmp_path / f"kodim{number + 1:02d}.png", pixels[number])
    found = find_inputs([str(tmp_path), str(tmp_path / "kodim03.png")])
    assert [one.name for one in found] == [f"kodim{n:02d}.png" for n in range(1, 25)]
    for one, original in zip(found, pixels, strict=True):
        frames, rate = one.read()
        np.testing.assert_array_equal(frames, original[None])
        assert rate is None
        assert one.shape() == (9, 14)
    assert found[0].shape(size=18) == (18, 28) == found[0].read(size=18)[0].shape[1:3]


def test_frames_of_videos_from_the_first(tmp_path):
    coded = write_video(tmp_path / "a.mp4", 10, size=(16, 32))
    raw = write_raw(tmp_path / "b_32x16_60.yuv", (16, 32), 10)
    first, second = find_inputs([str(coded), str(raw)])
    for count in (1, 4, 10, 50):
        frames, rate = first.read(frames=count)
        np.testing.assert_array_equal(numbers_of(frames), range(min(count, 10)))
        assert rate == 25
        frames, rate = second.read(frames=count)
        assert len(frames) == min(count, 10)
        assert rate == 60
    assert numbers_of(first.read(size=8)[0]).tolist() == list(range(10))
    assert first.read(size=8)[0].shape == (10, 8, 16, 3)
    assert first.shape() == second.shape() == (16, 32)


def test_equal_names_get_numbers(tmp_path):
    for folder in "ab":
        save(tmp_path / folder / "x.png", grey(1, (4, 4)))
    found = find_inputs([str(tmp_path / "a"), str(tmp_path / "b")])
    assert [one.name for one in found] == ["x.png", "x.png (2)"]
    assert distinct(["a", "b", "a", "a (2)", "a"]) == ["a", "b", "a (2)", "a (2) (2)", "a (3)"]


def test_naming_many_files_takes_steps_in_proportion():
    steps = []

    class Name(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other):
            steps.append("compared")
            return str.__eq__(self, other)

        def __format__(self, spec):
            steps.append("numbered")
            return str.__format__(self, spec)

    assert len(set(distinct([Name(n) for n in range(400)]))) == 400
    assert distinct([Name("a") for _ in range(400)])[-1] == "a (400)"
    assert len(steps) < 4000  # every pair would be 80,000


def test_mistakes_in_what_is_named(tmp_path):
    save(tmp_path / "x.png", grey(1, (4, 4)))
    video = write_raw(tmp_path / "videos" / "a_10x6.yuv", (6, 10), 2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("")
    picture = str(tmp_path / "x.png")
    for places, message in {
        (str(tmp_path / "nowhere"),): "does not exist",
        (str(tmp_path / "empty"),): "holds no pictures or videos",
        (str(tmp_path / "notes.txt"),): "no picture or video by its name",
        (picture, str(video)): r"x\.png is a picture and a_10x6\.yuv is a video",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            find_inputs(places)
        assert "\n" not in str(caught.value)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "a_4x4.yuv").write_bytes(b"12345")
    for name, message in {
        "broken.png": r"^broken\.png is no picture that can be read: not a picture",
        "a_4x4.yuv": r"^a_4x4\.yuv is no video that can be read: 5 bytes are no whole number",
    }.items():
        broken = find_inputs([str(tmp_path / name)])[0]
        for read in (broken.shape, broken.read):
            with pytest.raises(UserError, match=message):
                read()


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("Crop_2x2_64x48_30.yuv", (48, 64)),
        ("64x48_of_128x96.yuv", (48, 64)),
        ("64x48.yuv", (48, 64)),
    ],
)
def test_of_several_sizes_in_a_name_the_largest_that_fits_is_taken(tmp_path, name, size):
    (tmp_path / name).write_bytes(bytes(64 * 48 * 3 // 2 * 3))
    layout = raw_layout(tmp_path / name)
    assert (layout.height, layout.width, layout.frames) == (*size, 3)
