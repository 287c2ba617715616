"""Video files, against files written here whose frames say which they are."""

import io

import av
import numpy as np
import pytest
from video_files import LOSSLESS, coordinates, numbers_of, write_video

from bsq_jax.data.decoding.video import VIDEO_EXTENSIONS, Video
from bsq_jax.data.records import BrokenRecord

# What sets formats apart: B-frames, times that are irregular, absent or wrong, key frames that are
# none, seeking by showing or decoding time or not at all.
FILES = {
    "b_frames.mp4": {},
    "open_gop.mp4": {"x264-params": "open-gop=1:scenecut=0"},
    "refresh.mp4": {"x264-params": "intra-refresh=1:bframes=0", "gop": 16},  # keys are P-frames
    "irregular.mp4": {"times": np.cumsum(np.random.default_rng(0).integers(10, 90, 40)).tolist()},
    "irregular.mkv": {"times": np.cumsum(np.random.default_rng(1).integers(10, 90, 40)).tolist()},
    "b_frames.ts": {},
    "b_frames.avi": {"codec": "mpeg4", "bf": "2"},  # decoding times alone
    "made_up_times.avi": {},  # H.264 with B-frames in AVI
    "b_frames.mpg": {"codec": "mpeg2video", "bf": "2"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "hevc.mov": {"codec": "libx265", "x265-params": "log-level=none"},
}


def read(video, numbers):
    """The wanted frames, and the numbers of all that were decoded."""
    frames = dict(video.frames(numbers))
    return np.stack([frames[number]() for number in numbers]), list(frames)


@pytest.mark.parametrize("name", FILES)
def test_every_frame_is_found_in_every_format(tmp_path, name):
    path = write_video(tmp_path / name, 40, size=(48, 64), **FILES[name])
    with Video(path) as video:
        assert len(video) == 40
        table = video.frame_index
        pixels, numbers = read(video, range(40))
        np.testing.assert_array_equal(numbers_of(pixels), range(40))
        assert numbers == list(range(40))
        assert pixels.shape == (40, 48, 64, 3)
        assert pixels.dtype == np.uint8
        for start in (30, 17, 3, 38):  # to and fro in one open file
            np.testing.assert_array_equal(
                numbers_of(read(video, [start, start + 1])[0]), [start, start + 1]
            )
    for start in range(0, 38, 5):
        with Video(path.read_bytes(), table) as video:  # from memory as well
            pixels, _ = read(video, [start, start + 2])
        np.testing.assert_array_equal(numbers_of(pixels), [start, start + 2])


@pytest.mark.smoke
def test_nothing_is_decoded_before_the_key_frame_or_after_the_last_wanted(tmp_path):
    """Key frames are 0, 8, 16, ...; without B-frames a packet is a frame."""
    path = write_video(tmp_path / "a.mp4", 40, bf="0")
    with Video(path) as video:
        table = video.frame_index
        assert video.packets == 0  # listing decodes nothing
    for first, last in [(0, 0), (0, 5), (7, 7), (8, 8), (15, 18), (20, 22), (39, 39)]:
        with Video(path, table) as video:
            _, numbers = read(video, sorted({first, last}))
            key = first // 8 * 8
            assert numbers == list(range(key, last + 1))
            assert video.packets == last - key + 1


def test_b_frames_cost_no_more_than_their_delay(tmp_path):
    path = write_video(tmp_path / "a.mp4", 40, **{"x264-params": "scenecut=0:bframes=2"})
    with Video(path) as video:
        table = video.frame_index
        delay = video._container.streams.video[0].codec_context.delay or 2
    for first, last in [(0, 3), (9, 11), (20, 22), (33, 37)]:
        with Video(path, table) as video:
            assert read(video, [first, last])[1][0] == first // 8 * 8
            assert video.packets <= last - first // 8 * 8 + 1 + 2 * delay


def test_pixels_are_those_that_were_written(tmp_path):
    path = write_video(tmp_path / "a.mkv", 12, picture=coordinates, size=(24, 30), **LOSSLESS)
    with Video(path) as video:
        pixels, _ = read(video, [0, 5, 11])
    expected = [coordinates(number, (24, 30)) for number in (0, 5, 11)]
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_a_phone_held_upright_gives_upright_frames(tmp_path, degrees):
    path = write_video(
        tmp_path / "a.mp4", 2, picture=coordinates, size=(24, 30), rotate=degrees, **LOSSLESS
    )
    with Video(path) as video:
        pixels, _ = read(video, [1])
    np.testing.assert_array_equal(pixels[0], np.rot90(coordinates(1, (24, 30)), degrees // 90))


@pytest.mark.parametrize("matrix", ["ITU709", "ITU601"])
@pytest.mark.parametrize("levels", ["MPEG", "JPEG"])
def test_colours_follow_what_the_file_says(tmp_path, matrix, levels):
    from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

    colour = np.full((16, 16, 3), (200, 50, 30), np.uint8)
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.height = stream.width = 16
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace = Colorspace[matrix]
        stream.codec_context.color_range = ColorRange[levels]
        frame = VideoReformatter().reformat(
            av.VideoFrame.from_ndarray(colour, format="rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace[matrix],
            dst_color_range=ColorRange[levels],
        )
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for exact, tolerance in ((True, 2), (False, 4)):
        with Video(path, exact=exact) as video:
            assert np.abs(read(video, [0])[0].astype(int) - colour).max() <= tolerance


def test_a_listed_frame_that_is_missing_is_the_one_on_the_screen(tmp_path):
    path = write_video(tmp_path / "a.mp4", 20)
    with Video(path) as video:
        table = video.frame_index
    between = (table.times[10] + table.times[11]) // 2
    table = table._replace(times=np.insert(table.times, 11, between))
    with Video(path, table) as video:
        np.testing.assert_array_equal(numbers_of(read(video, [9, 11, 13])[0]), [9, 10, 12])
    table = table._replace(times=np.append(table.times, table.times[-1] + 900))
    with (
        Video(path, table) as video,
        pytest.raises(BrokenRecord, match="frame 21 of 22 cannot be decoded"),
    ):
        read(video, [21])


def test_raw_video(tmp_path):
    """YUV4MPEG2, written out: a line of text, then planes of bytes."""
    planes = [
        np.full(16 * 16, 40 + number, np.uint8).tobytes() + b"\x80" * 128 for number in range(9)
    ]
    header = b"YUV4MPEG2 W16 H16 F25:1 Ip A1:1 C420jpeg\n"
    path = tmp_path / "a.y4m"
    path.write_bytes(header + b"".join(b"FRAME\n" + plane for plane in planes))
    for file in (path, path.read_bytes()):
        with Video(file) as video:
            assert len(video) == 9
            pixels, _ = read(video, [0, 6, 7])
        assert (np.ptp(pixels, axis=(1, 2, 3)) == 0).all()
        np.testing.assert_array_equal(
            pixels[:, 0, 0, 0], np.rint(255 / 219 * np.array([24, 30, 31]))
        )


def broken_files(folder):
    """Files that are no videos, or not whole, and what is said of them."""
    whole = write_video(folder / "whole.mp4", 30).read_bytes()
    early = write_video(folder / "early.mp4", 30, flags="faststart").read_bytes()
    with av.open(str(folder / "early.mp4")) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return {
        "empty": (b"", "empty"),
        "text": (b"this is not a video at all" * 20, "."),
        "index cut off": (whole[: len(whole) * 2 // 3], "."),
        "frames cut off": (early[: places[20] + 2], "cut short after 20 frames"),
        "frames missing": (early[: places[20]], "cut short: 20 of 30 frames are there"),
        "playlist": (b"ffconcat version 1.0\nfile whole.mp4\n", "not a container"),
        "sound": ((folder / "sound.mp4").read_bytes(), "no video"),
    }


def test_broken_files(tmp_path):
    for kind, (content, message) in broken_files(tmp_path).items():
        file = tmp_path / kind
        file.write_bytes(content)
        for given in (content, file):
            with pytest.raises(BrokenRecord, match=message) as raised:
                Video(given)
            assert str(raised.value), kind
            assert "\n" not in str(raised.value)
    with pytest.raises(FileNotFoundError):
        Video(tmp_path / "nowhere.mp4")


def test_extensions_are_of_videos():
    assert {".mp4", ".avi", ".mkv", ".webm", ".mov"} <= VIDEO_EXTENSIONS
    assert not {".png", ".jpg", ".gif", ".txt"} & VIDEO_EXTENSIONS


@pytest.mark.parametrize("flags", [{}, {"x264-params": "open-gop=1:scenecut=0:bframes=3"}])
def test_a_recording_that_begins_in_the_middle(tmp_path, caplog, flags):
    """Cut where a broadcast is joined: the frames from the first key frame on, and no others."""
    whole = write_video(tmp_path / "whole.ts", 48, gop=12, **flags).read_bytes()
    size = 188  # of a packet of the transport stream
    packets = [whole[first : first + size] for first in range(0, len(whole), size)]
    cut = b"".join([*packets[:3], *packets[3 + len(packets) // 3 :]])  # the tables of programs stay
    with av.open(io.BytesIO(cut)) as container:
        listed = [packet for packet in container.demux(video=0) if packet.size]
    keys = [number for number, packet in enumerate(listed) if packet.is_keyframe]
    assert keys[0] > 0
    start = listed[keys[0]].pts
    expected = sum(packet.pts >= start for packet in listed[keys[0] :])
    with Video(cut, name=str(tmp_path)) as video:
        assert len(video) == expected
        clip = np.stack([pixels() for _, pixels in video.frames(range(expected))])
    numbers = numbers_of(clip)
    assert numbers[0] % 12 == 0
    np.testing.assert_array_equal(np.diff(numbers), 1)
    assert f"{len(listed) - expected} frames before its first key frame are left out" in caplog.text
