"""Videos as other programs write them. Oracles: the pictures that were written, Pillow's resize of
them, and the damage that was done.
"""

import io
import itertools
import shutil
from fractions import Fraction

import av
import numpy as np
import pytest
from absl import logging
from av.stream import Disposition
from PIL import Image
from shapes import data_config
from video_files import coordinates, grey, numbers_of, write_video

from bsq_jax.data.clip_lengths import train_frames
from bsq_jax.data.decoding import containers, video
from bsq_jax.data.decoding.record_frames import first_frame, size_of
from bsq_jax.data.decoding.video import Video
from bsq_jax.data.eval_pipeline import eval_batches
from bsq_jax.data.reader import FrameCache, Reader
from bsq_jax.data.records import NO_LABEL, BrokenRecord, Record
from bsq_jax.data.sources.tfds import TfdsSource
from bsq_jax.data.train_pipeline import train_batches


def all_frames(file, name=""):
    with Video(file, name=name) as opened:
        frames = dict(opened.frames(range(len(opened))))
        return np.stack([frames[number]() for number in range(len(opened))])


@pytest.fixture
def warnings(monkeypatch):
    """What is said, by a process that has said nothing yet."""
    said = []
    monkeypatch.setattr(video, "_noted", set())
    monkeypatch.setattr(logging, "warning", lambda text, *values: said.append(text % values))
    return said


# --- square pixels ---


def write_aspect(path, aspect, *, rotate=0, size=(24, 30)):
    """Lossless RGB whose samples have this shape."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=25, options={"qp": "0"})
        stream.height, stream.width = size
        stream.pix_fmt = "rgb24"
        stream.codec_context.sample_aspect_ratio = aspect
        if rotate:
            stream.set_display_rotation(rotate)
        for number in range(2):
            frame = av.VideoFrame.from_ndarray(coordinates(number, size), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.smoke
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize("rotate", [0, 90, 180])
@pytest.mark.parametrize(
    ("aspect", "size"),
    [
        (Fraction(64, 45), (24, 43)),
        (Fraction(8, 9), (27, 30)),
        (Fraction(1, 3), (72, 30)),
        (Fraction(1), (24, 30)),
        (Fraction(6), (24, 30)),
        (Fraction(1, 6), (24, 30)),
        (Fraction(1000), (24, 30)),
    ],
)
def test_pixels_become_square(tmp_path, warnings, aspect, size, rotate, ending):
    path = write_aspect(tmp_path / f"a.{ending}", aspect, rotate=rotate)
    picture = Image.fromarray(coordinates(1, (24, 30))).resize(size[::-1], Image.Resampling.BICUBIC)
    expected = np.rot90(np.asarray(picture), rotate // 90)
    np.testing.assert_array_equal(all_frames(path)[1], expected)
    record = Record("a", path)
    assert size_of(record) == expected.shape[:2] == first_frame(record).shape[:2]
    if aspect != 1000:  # which FFmpeg itself takes for no shape
        assert bool(warnings) == (max(aspect, 1 / aspect) > 4)


# --- which of the streams is the video ---


def write_streams(path, films, *, covers=(), sound=False, defaults=()):
    """Videos of one grey each and covers, in this order: `covers` are the places of covers."""
    with av.open(str(path), "w") as container:
        streams = []
        for place, number in enumerate(films):
            cover = place in covers
            stream = container.add_stream("mjpeg" if cover else "mpeg4", rate=25)
            stream.height = stream.width = 32 if cover else 16
            stream.pix_fmt = "yuvj420p" if cover else "yuv420p"
            stream.disposition = Disposition.attached_pic if cover else Disposition(0)
            if place in defaults:
                stream.disposition = Disposition.default
            streams.append((stream, number, cover))
        if sound:
            stream = container.add_stream("aac", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.rate = 8000
            container.start_encoding()
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        for stream, number, cover in streams:
            for time in range(1 if cover else 3):
                side = stream.width
                frame = av.VideoFrame.from_ndarray(grey(number, (side, side)), format="rgb24")
                frame = frame.reformat(format=stream.pix_fmt)
                frame.pts, frame.time_base = time, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


def test_a_cover_is_no_video(tmp_path):
    path = write_streams(tmp_path / "song.mp4", [5], covers=[0], sound=True)
    with av.open(str(path)) as container:
        assert container.streams.video[0].disposition & Disposition.attached_pic
    for file in (path, path.read_bytes()):
        with pytest.raises(BrokenRecord, match="there is no video in the file"):
            Video(file)


def test_a_film_with_a_cover_keeps_its_film(tmp_path):
    path = write_streams(tmp_path / "film.mp4", [5, 9], covers=[0])
    clip = all_frames(path)
    assert clip.shape == (3, 16, 16, 3)
    np.testing.assert_array_equal(numbers_of(clip), 9)


@pytest.mark.parametrize(("defaults", "number"), [((), 5), ((1,), 9), ((0, 1), 5)])
def test_of_several_videos_the_default_is_taken(tmp_path, defaults, number):
    path = write_streams(tmp_path / "film.mkv", [5, 9], defaults=defaults)
    np.testing.assert_array_equal(numbers_of(all_frames(path)), number)


def test_a_codec_without_a_decoder_is_a_broken_record(tmp_path):
    path = write_video(tmp_path / "a.mp4", 4)
    for file in (path, path.read_bytes()):
        content = path.read_bytes().replace(b"avc1", b"xxxx")
        given = content if isinstance(file, bytes) else tmp_path / "b.mp4"
        (tmp_path / "b.mp4").write_bytes(content)
        with pytest.raises(BrokenRecord, match="there is no decoder for its video"):
            Video(given)


# --- interlaced ---


def test_interlaced_video_is_said_once_a_file(tmp_path, warnings):
    tags = {"x264-params": "interlaced=1"}
    first = write_video(tmp_path / "a.mp4", 6, size=(32, 32), **tags)
    second = write_video(tmp_path / "b.mp4", 6, size=(32, 32), **tags)
    plain = write_video(tmp_path / "c.mp4", 6, size=(32, 32))
    for _ in range(2):
        for file in (first, second, plain):
            np.testing.assert_array_equal(numbers_of(all_frames(file)), range(6))
    all_frames(first.read_bytes(), name="set#3")
    assert [text.partition(": ")[0] for text in warnings] == [str(first), str(second), "set#3"]
    assert all("interlaced" in text for text in warnings)


# --- times ---


def write_times(path, times, *, gop=12):
    """H.264 without B-frames whose packets get these times in ms."""
    options = {"x264-params": "scenecut=0:bframes=0"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.height = stream.width = 16
        stream.pix_fmt, stream.gop_size = "yuv420p", gop
        stream.codec_context.time_base = Fraction(1, 1000)
        packets = []
        for number in range(len(times)):
            frame = av.VideoFrame.from_ndarray(grey(number, (16, 16)), format="rgb24")
            frame.pts, frame.time_base = 40 * number, Fraction(1, 1000)
            packets += stream.encode(frame.reformat(format="yuv420p"))
        packets += stream.encode(None)
        for packet, time in zip(packets, times, strict=True):
            packet.pts = packet.dts = time
            packet.time_base = Fraction(1, 1000)
            container.mux(packet)
    return path


def set_times(path, times):
    """Writes other times in ms, even decreasing ones, into the frames of an FLV file."""
    data, place, left = bytearray(path.read_bytes()), 13, list(times)
    while place < len(data):
        size = int.from_bytes(data[place + 1 : place + 4], "big")
        # A video tag that holds a frame, and not the settings of the decoder or the end.
        if data[place] == 9 and data[place + 12] == 1:
            time = left.pop(0)
            data[place + 4 : place + 8] = (time % 2**24).to_bytes(3, "big") + bytes([time >> 24])
        place += 11 + size + 4
    assert not left
    path.write_bytes(data)
    return path


def read_clip(path, length, draw, *, stride=1):
    """As training reads it."""

    class One:
        name, videos = "one", True

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return Record(path.name, path)

    reader = Reader(
        *(One(),), size=16, filter="bicubic", draft=True, max_broken=1.0, cache=FrameCache(1)
    )
    return reader.read(0, lambda count: train_frames(count, length, stride, draw))


@pytest.mark.parametrize("name", ["a.flv", "a.mkv"])
@pytest.mark.parametrize("gop", [2, 3, 4, 12])  # the second of the two is a key frame, or is not
def test_two_frames_of_one_time_are_one(tmp_path, name, gop):
    times = [0, 40, 80, 120, 120, 160, 200]
    path = write_times(tmp_path / name, times, gop=gop)
    with Video(path) as opened:
        assert len(opened) == 6
        assert (np.diff(opened.frame_index.times) > 0).all()
    shown = [0, 1, 2, 3, 5, 6]
    np.testing.assert_array_equal(numbers_of(all_frames(path)), shown)
    for length in (1, 2, 3, 6):
        for draw in np.linspace(0, 0.99, 7):
            clip = read_clip(path, length, draw)
            start = int(draw * (6 - length + 1))
            np.testing.assert_array_equal(numbers_of(np.stack(clip)), shown[start : start + length])


@pytest.mark.parametrize(
    "times",
    [
        [0] * 8,  # all at once
        [0, 0, 0, 1, 1, 1, 2, 2],  # milliseconds are too coarse
        [0, 40, 80, 120, 40, 80, 120, 160],  # two recordings, one after the other
    ],
)
def test_times_that_tell_nothing_leave_the_order_of_the_frames(tmp_path, times):
    path = set_times(write_times(tmp_path / "a.flv", [40 * n for n in range(8)], gop=3), times)
    with Video(path) as opened:
        assert len(opened) == 8
    np.testing.assert_array_equal(numbers_of(all_frames(path)), range(8))
    for draw in np.linspace(0, 0.99, 6):
        start = int(draw * 6)
        clip = read_clip(path, 3, draw)
        np.testing.assert_array_equal(numbers_of(np.stack(clip)), range(start, start + 3))


def test_times_near_the_largest_number(tmp_path):
    """A table as a damaged file may give it: seeking does not overflow."""
    path = write_video(tmp_path / "a.mkv", 20)
    with Video(path) as opened:
        table = opened.frame_index
    largest = np.iinfo(np.int64).max
    keys = np.append(table.keys[:2], largest - 1)
    far = table._replace(
        times=np.append(table.times[:12], [largest - 1, largest]), keys=keys, seeks=keys
    )
    with Video(path, far) as opened, pytest.raises(BrokenRecord, match="cannot be decoded"):
        list(opened.frames([13]))


# --- frames that are not as the header says ---


def test_a_change_of_size_is_a_broken_record_where_it_is_met(tmp_path):
    """JPEGs one after the other, each with a size of its own."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height = stream.width = 16
        stream.pix_fmt = "yuvj420p"
        container.start_encoding()
        for number in range(8):
            jpeg = io.BytesIO()
            Image.fromarray(grey(number, (16, 16 if number < 4 else 32))).save(jpeg, "JPEG")
            packet = av.Packet(jpeg.getvalue())
            packet.stream, packet.is_keyframe = stream, True
            packet.pts = packet.dts = 40 * number
            packet.time_base = Fraction(1, 1000)
            container.mux(packet)
    with Video(path) as opened:
        shapes = [render().shape for _, render in opened.frames(range(8))]
    assert shapes == [(16, 16, 3)] * 4 + [(16, 32, 3)] * 4
    assert read_clip(path, 8, 0.0) is None
    assert len(read_clip(path, 4, 0.0)) == len(read_clip(path, 4, 0.99)) == 4


def test_a_header_that_claims_too_many_pixels(tmp_path, monkeypatch):
    """Refused before memory is asked for; the frames themselves are measured too."""
    path = write_video(tmp_path / "a.avi", 4, size=(16, 32), codec="mpeg4")
    monkeypatch.setattr(containers, "MAX_PIXELS", 16 * 32 - 1)
    with pytest.raises(BrokenRecord, match="frames of 16x32 pixels are too large"):
        Video(path)
    planes = b"YUV4MPEG2 W60000 H60000 F25:1 C420\nFRAME\n" + bytes(100)
    with pytest.raises(BrokenRecord):
        Video(planes)


def test_a_file_that_has_no_end(tmp_path, monkeypatch):
    """A demuxer that a damaged index sends round for ever."""

    class Endless:
        def demux(self, stream):
            while True:
                yield io.BytesIO()

    given = list(itertools.islice(containers.packets(Endless(), None, bytes(50)), 52))
    assert len(given) == 52
    with pytest.raises(BrokenRecord, match="more frames than bytes"):
        list(itertools.islice(containers.packets(Endless(), None, bytes(50)), 53))


@pytest.mark.parametrize(
    "error", [AttributeError("no"), OverflowError(), KeyError("x"), MemoryError()]
)
def test_whatever_the_library_raises_is_a_broken_record(tmp_path, monkeypatch, error):
    path = write_video(tmp_path / "a.mp4", 4)

    class Failing:
        def demux(self, stream):
            raise error
            yield

    with pytest.raises(BrokenRecord) as caught:
        list(containers.packets(Failing(), None, path))
    assert str(caught.value)

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(av, "open", fail)
    with pytest.raises(BrokenRecord):
        Video(path)


def test_our_own_mistakes_are_not_taken_for_broken_files(tmp_path):
    path = write_video(tmp_path / "a.mp4", 4)

    def mistaken(count):
        raise AttributeError("a mistake of ours")

    class One:
        name, videos = "one", True

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return Record("a", path)

    reader = Reader(
        *(One(),), size=16, filter="bicubic", draft=True, max_broken=1.0, cache=FrameCache(1)
    )
    with pytest.raises(AttributeError, match="a mistake of ours"):
        reader.read(0, mistaken)


class Damaged:
    """Examples of which the parser makes nothing: not even a ValueError."""

    class DecodeError(Exception):
        """As that of protobuf."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        if index == 1:
            raise self.DecodeError("Error parsing message\nwith more lines")
        stream = io.BytesIO()
        Image.fromarray(grey(3, (16, 16))).save(stream, "PNG")
        return {"image": stream.getvalue(), "label": 1}


def test_examples_that_cannot_be_parsed_are_broken_records():
    source = TfdsSource("set", Damaged(), "image", videos=False, label="label", classes=("a", "b"))
    assert source.label(0) == 1
    assert source.label(1) == NO_LABEL
    with pytest.raises(BrokenRecord, match=r"^Error parsing message$"):
        source[1]


def test_a_folder_of_odd_videos_trains_and_evaluates(tmp_path):
    """Each is read or named, and neither ends the run."""
    folder = tmp_path / "train"
    folder.mkdir()
    write_aspect(folder / "anamorphic.mp4", Fraction(64, 45))
    write_streams(folder / "song.mp4", [5], covers=[0], sound=True)
    write_streams(folder / "film.mp4", [5, 9], covers=[0])
    write_times(folder / "twice.mkv", [0, 40, 80, 120, 120, 160])
    content = write_video(folder / "whole.mp4", 8).read_bytes()
    (folder / "codec.mp4").write_bytes(content.replace(b"avc1", b"xxxx"))
    (folder / "cut.mp4").write_bytes(content[: len(content) // 2])
    shutil.copytree(folder, tmp_path / "val")
    data = data_config(
        source=f"clips:{folder}",
        val_source=f"clips:{tmp_path / 'val'}",
        image_size=16,
        resize=16,
        eval_resize=16,
        frames=4,
        max_broken=0.6,
        threads=0,
    )
    alone = {"global_batch": 7, "shard_index": 0, "shard_count": 1}
    batches = train_batches(data, **alone)
    for _ in range(4):
        assert next(batches)["pixels"].shape == (7, 4, 16, 16, 3)
    assert batches.stats()["broken"] == 3
    (batch,) = eval_batches(data, **alone)
    assert batch["mask"].sum() == 4
