"""The commands encode, decode, info, export. Oracles: Pillow, PyAV, the Python API, messages."""

import io
import subprocess
import sys

import av
import chex
import jax
import numpy as np
import pytest
from PIL import Image, features
from small_codec import make_codec, picture
from video_files import write_video

from bsq_jax import cli
from bsq_jax.coding.codec import Codec
from bsq_jax.core.errors import UserError
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.media.pictures import encode_png, save_png
from bsq_jax.media.videos import encode_video


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "codec"
    made = make_codec(min_bits=3)
    made.save(folder)
    return folder, made


@pytest.fixture
def run(model, monkeypatch, capsys):
    monkeypatch.setenv("BSQ_JAX_MODEL", str(model[0]))

    def run(*words):
        status = cli.main([str(word) for word in words])
        return status, *capsys.readouterr()

    return run


def pixels_of(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_picture_there_and_back(run, model, tmp_path):
    frames = picture(21, 35)
    save_png(tmp_path / "a.png", frames[0])
    status, _, said = run("encode", tmp_path / "a.png", tmp_path / "a.bsq")
    assert status == 0
    data = (tmp_path / "a.bsq").read_bytes()
    assert data == model[1].encode(frames)
    assert f"{len(data)} bytes, {8 * len(data) / (21 * 35):.4f} bits a pixel" in said
    assert run("decode", tmp_path / "a.bsq", tmp_path / "b.png")[0] == 0
    found = np.asarray(Image.open(tmp_path / "b.png"))
    np.testing.assert_array_equal(found, model[1].reconstruct(frames)[0])
    status, out, _ = run("info", tmp_path / "a.bsq")
    assert status == 0
    for text in ("21x35 pixels, 1 frame(s), a picture", "prior, 6 bits", "all checksums are right"):
        assert text in out


def test_the_first_stages_of_residual_tokens(run, tmp_path):
    made, frames = make_codec(stages=2), picture(20, 24)
    made.save(tmp_path / "residual")
    save_png(tmp_path / "a.png", frames[0])
    words = ("encode", tmp_path / "a.png", tmp_path / "a.bsq", "--model", tmp_path / "residual")
    assert run(*words, "--stages", 1)[0] == 0
    data = (tmp_path / "a.bsq").read_bytes()
    assert data == made.encode(frames, bits=3) != made.encode(frames)
    np.testing.assert_array_equal(made.decode(data).frames, made.reconstruct(frames, bits=3))
    assert "prior, 3 bits" in run("info", tmp_path / "a.bsq")[1]
    for stages in (0, 3):
        status, _, said = run(*words, "--stages", stages, "--force")
        assert status == 2
        assert said == f"error: {stages} stages of a token: the tokens of residual have 2\n"
    status, _, said = run(*words, "--bits", 4, "--force")
    assert said == "error: 4 bits a token: residual takes 3 or 6\n"


def test_a_video_there_and_back(run, model, tmp_path):
    frames = picture(18, 30, 11)
    (tmp_path / "a.mkv").write_bytes(encode_video([frames], 24, exact=True))
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.mkv"), frames)
    status, *_ = run("encode", tmp_path / "a.mkv", tmp_path / "a.bsq", "--bits", 3)
    assert status == 0
    assert run("decode", tmp_path / "a.bsq", tmp_path / "b.mkv")[0] == 0
    wanted = model[1].reconstruct(frames, bits=3)
    np.testing.assert_array_equal(pixels_of(tmp_path / "b.mkv"), wanted)
    assert "24 frames a second" in run("info", tmp_path / "a.bsq")[1]
    status, _, said = run("decode", tmp_path / "a.bsq", tmp_path / "b.mp4")
    assert status == 0
    assert "for players" in said
    near = pixels_of(tmp_path / "b.mp4").astype(int) - wanted
    assert abs(near.mean()) < 2
    status, *_ = run("encode", tmp_path / "a.mkv", tmp_path / "c.bsq", "--frames", 2)
    assert "2 frame(s)" in run("info", tmp_path / "c.bsq")[1]


def with_sound(frames):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        video = container.add_stream("ffv1", rate=10)
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], "bgr0"
        sound = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        samples.sample_rate = 8000
        container.mux(sound.encode(samples))
        container.mux(video.encode())
    return buffer.getvalue()


def test_sound_is_left_out_with_a_notice(run, tmp_path):
    (tmp_path / "a.mkv").write_bytes(with_sound(picture(16, 16, 2)))
    status, _, said = run("encode", tmp_path / "a.mkv", tmp_path / "a.bsq")
    assert status == 0
    assert "the sound is left out" in said


def times_of(path):
    """``(milliseconds of the frames, of the whole)`` by PyAV."""
    with av.open(str(path)) as container:
        times = [round(1000 * frame.pts * frame.time_base) for frame in container.decode(video=0)]
        return times, round(container.duration / 1000)


PHONE = [0, 33, 66, 100, 1100, 2100, 3100]


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.mp4"])
def test_a_video_of_variable_rate_plays_as_long(run, model, tmp_path, name):
    settings = {"a.webm": {"codec": "libvpx-vp9"}, "a.mp4": {"bf": "0"}}.get(name, {})
    path = write_video(tmp_path / name, 7, size=(16, 32), times=PHONE, **settings)
    status, _, said = run("encode", path, tmp_path / "a.bsq")
    assert status == 0
    assert "frames come at a variable rate: the time of each is kept (7 frames in 3.1" in said
    status, out, _ = run("info", tmp_path / "a.bsq")
    assert status == 0
    assert "on average: their times vary (3.1" in out
    for kind in ("mkv", "mp4"):
        decoded = tmp_path / f"b.{kind}"
        status, _, said = run("decode", tmp_path / "a.bsq", decoded)
        assert status == 0
        assert "variable rate, 3.1" in said
        times, whole = times_of(decoded)
        assert times == PHONE
        assert 3130 <= whole <= 3145
    data = (tmp_path / "a.bsq").read_bytes()
    np.testing.assert_allclose(model[1].decode(data).times * 1000, PHONE, atol=0.6)


@pytest.mark.parametrize(("count", "wanted", "whole"), [(6, PHONE[:6], 3100), (5, PHONE[:5], 2100)])
def test_the_first_frames_keep_their_times(run, tmp_path, count, wanted, whole):
    path = write_video(tmp_path / "a.mkv", 7, size=(16, 16), times=PHONE)
    assert run("encode", path, tmp_path / "a.bsq", "--frames", count)[0] == 0
    assert run("decode", tmp_path / "a.bsq", tmp_path / "b.mkv")[0] == 0
    assert times_of(tmp_path / "b.mkv") == (wanted, whole)
    assert run("encode", path, tmp_path / "c.bsq", "--frames", 3)[0] == 0
    assert run("decode", tmp_path / "c.bsq", tmp_path / "c.mkv")[0] == 0
    assert times_of(tmp_path / "c.mkv")[1] == pytest.approx(100, abs=1)


def test_a_rate_that_is_not_so_is_told(run, tmp_path):
    """PyAV claims 25 frames a second in the header; the frames come at 50."""
    times = [20 * number for number in range(9)]
    path = write_video(tmp_path / "a.mkv", 9, size=(16, 16), times=times)
    status, _, said = run("encode", path, tmp_path / "a.bsq")
    assert status == 0
    assert "it claims 25 frames a second, and its frames come at 50" in said
    assert "50 frames a second\n" in run("info", tmp_path / "a.bsq")[1]
    assert (tmp_path / "a.bsq").read_bytes()[8] == 1  # version 1, as ever
    (tmp_path / "a_16x16.yuv").write_bytes(bytes(16 * 24))
    _, _, said = run("encode", tmp_path / "a_16x16.yuv", tmp_path / "b.bsq")
    assert "does not tell its rate: 25 frames a second are taken" in said


# --- animated pictures ---

WHITE = np.full(3, 255.0)


def animation(kind, durations, *, clear=False, **settings):
    """``(bytes, frames as shown on white, float64 [time, 20, 24, 3])`` of moving squares."""
    images, shown = [], []
    for number in range(len(durations)):
        pixels = np.zeros((20, 24, 4), np.uint8)
        pixels[..., :3] = 255 if clear else (30, 30 * number, 200)
        pixels[..., 3] = 0 if clear else 255
        pixels[4:12, 2 * number : 2 * number + 8] = (250, 20, 10 * number, 255)
        images.append(Image.fromarray(pixels))
        share = pixels[..., 3:] / 255
        shown.append(pixels[..., :3] * share + WHITE * (1 - share))
    file = io.BytesIO()
    images[0].save(
        file, kind, save_all=True, append_images=images[1:], duration=list(durations), **settings
    )
    return file.getvalue(), np.stack(shown)


ANIMATIONS = {
    "gif": ("GIF", {"disposal": 2}),
    "webp": ("WEBP", {"lossless": True}),
    "png": ("PNG", {}),
}


@pytest.mark.parametrize("clear", [False, True])
@pytest.mark.parametrize("name", ANIMATIONS)
def test_all_frames_of_an_animation_become_a_video(run, model, tmp_path, name, clear):
    kind, settings = ANIMATIONS[name]
    data, shown = animation(kind, (100, 200, 50, 1000, 100), clear=clear, **settings)
    path = tmp_path / f"a.{name}"
    path.write_bytes(data)
    status, _, said = run("encode", path, tmp_path / "a.bsq")
    assert status == 0
    assert "an animation of 5 frames: it becomes a video" in said
    assert "5 frames of 20x24" in said
    assert run("decode", tmp_path / "a.bsq", tmp_path / "b.mkv")[0] == 0
    assert times_of(tmp_path / "b.mkv") == ([0, 100, 300, 350, 1350], 1450)
    wanted = model[1].reconstruct(np.rint(shown).astype(np.uint8))
    np.testing.assert_array_equal(pixels_of(tmp_path / "b.mkv"), wanted)
    assert run("decode", tmp_path / "a.bsq", tmp_path / "b.mp4")[0] == 0
    assert times_of(tmp_path / "b.mp4") == ([0, 100, 300, 350, 1350], 1450)
    status, _, said = run("decode", tmp_path / "a.bsq", tmp_path / "b.png")
    assert status == 2
    assert "videos are written as .mkv or .mp4" in said
    assert run("encode", path, tmp_path / "c.bsq", "--frames", 2)[0] == 0
    assert run("decode", tmp_path / "c.bsq", tmp_path / "c.mkv")[0] == 0
    assert times_of(tmp_path / "c.mkv") == ([0, 100], 300)


@pytest.mark.parametrize("name", ANIMATIONS)
def test_animations_of_constant_rate_and_of_no_time(run, tmp_path, name):
    kind, settings = ANIMATIONS[name]
    for each, rate in ((40, 25), (0, 10)):
        (tmp_path / "a").write_bytes(animation(kind, (each,) * 3, **settings)[0])
        assert run("encode", tmp_path / "a", tmp_path / "a.bsq", "--force")[0] == 0
        out = run("info", tmp_path / "a.bsq")[1]
        assert f"3 frame(s), {rate} frames a second\n" in out


@pytest.mark.parametrize("name", ANIMATIONS)
def test_an_animation_of_one_frame_is_a_picture(run, tmp_path, name):
    kind, settings = ANIMATIONS[name]
    (tmp_path / "a").write_bytes(animation(kind, (100,), **settings)[0])
    status, _, said = run("encode", tmp_path / "a", tmp_path / "a.bsq")
    assert status == 0
    assert "an animation of" not in said
    assert "1 frame(s), a picture" in run("info", tmp_path / "a.bsq")[1]


def test_the_picture_for_readers_of_plain_png_is_no_frame(run, model, tmp_path):
    data, shown = animation("PNG", (70, 70, 70), default_image=True)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.n_frames == 3  # with the one that is no frame
    (tmp_path / "a.png").write_bytes(data)
    assert run("encode", tmp_path / "a.png", tmp_path / "a.bsq")[0] == 0
    assert run("decode", tmp_path / "a.bsq", tmp_path / "b.mkv", "--force")[0] == 0
    found = pixels_of(tmp_path / "b.mkv")
    np.testing.assert_array_equal(found, model[1].reconstruct(np.rint(shown[1:]).astype(np.uint8)))


@pytest.mark.parametrize("name", ANIMATIONS)
def test_a_broken_animation_gets_one_line(run, tmp_path, name):
    """Cut inside a frame, whichever: a line, and no file."""
    kind, settings = ANIMATIONS[name]
    noise = np.random.default_rng(0).integers(0, 255, (4, 40, 40, 3)).astype(np.uint8)
    images, file = [Image.fromarray(frame) for frame in noise], io.BytesIO()
    images[0].save(file, kind, save_all=True, append_images=images[1:], duration=100, **settings)
    data = file.getvalue()
    for share in (0.3, 0.6, 0.8):
        (tmp_path / "a").write_bytes(data[: int(len(data) * share)])
        status, _, said = run("encode", tmp_path / "a", tmp_path / "a.bsq")
        assert status == 2
        error = said.splitlines()[-1]
        assert error.startswith("error: ")
        assert "no picture or video that can be read" in error
        assert len(said.splitlines()) <= 2
        assert not (tmp_path / "a.bsq").exists()


def test_frames_of_an_animation_are_made_one_by_one(tmp_path):
    """Sixty frames of 3 MB as pixels: memory is that of a few."""
    import tracemalloc

    from bsq_jax.coding.frame_source import open_frames

    images = [Image.new("P", (1000, 1000), number) for number in range(60)]
    file = io.BytesIO()
    images[0].putpalette([value for value in range(256) for _ in range(3)])
    for image in images[1:]:
        image.putpalette(images[0].getpalette())
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=20)
    tracemalloc.start()
    with open_frames("a.gif", file.getvalue(), None) as frames:
        assert sum(len(group) for group in frames.groups(2)) == frames.count == 60
        assert frames.rate() == 50
    assert tracemalloc.get_traced_memory()[1] < 40e6
    tracemalloc.stop()


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow does not read AVIF")
def test_an_animation_of_avif(run, tmp_path):
    (tmp_path / "a.avif").write_bytes(animation("AVIF", (100, 200, 50))[0])
    assert run("encode", tmp_path / "a.avif", tmp_path / "a.bsq")[0] == 0
    assert run("decode", tmp_path / "a.bsq", tmp_path / "b.mkv")[0] == 0
    assert times_of(tmp_path / "b.mkv") == ([0, 100, 300], 350)


def test_of_several_pages_the_first_is_taken_and_said(run, tmp_path):
    pages = [Image.fromarray(frame) for frame in picture(16, 16, 3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    status, _, said = run("encode", tmp_path / "a.tif", tmp_path / "a.bsq")
    assert status == 0
    assert "holds 3 pictures: the first is taken" in said
    assert "1 frame(s), a picture" in run("info", tmp_path / "a.bsq")[1]


# --- what is lost ---


def test_a_lost_line_is_said(run, model, tmp_path):
    (tmp_path / "a.bsq").write_bytes(model[1].encode(picture(17, 21, 2), 25))
    said = run("decode", tmp_path / "a.bsq", tmp_path / "a.mp4")[2]
    assert "the last row and the last column of 17x21 pixels is left out" in said
    assert "left out" not in run("decode", tmp_path / "a.bsq", tmp_path / "a.mkv")[2]
    (tmp_path / "b.bsq").write_bytes(model[1].encode(picture(16, 22, 2), 25))
    assert "left out" not in run("decode", tmp_path / "b.bsq", tmp_path / "b.mp4")[2]


def test_frames_of_several_sizes_are_named(run, tmp_path):
    """A stream whose size changes: two files of MPEG-2 joined."""
    small = write_video(tmp_path / "s.ts", 3, size=(32, 32), codec="mpeg2video", bf="0")
    large = write_video(tmp_path / "l.ts", 3, size=(48, 48), codec="mpeg2video", bf="0")
    (tmp_path / "a.ts").write_bytes(small.read_bytes() + large.read_bytes())
    status, _, said = run("encode", tmp_path / "a.ts", tmp_path / "a.bsq")
    assert status == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_a_video_from_stdin(model, tmp_path):
    folder, made = model
    frames = picture(16, 16, 3)
    words = [sys.executable, "-m", "bsq_jax"]
    tail = ["-", "-", "--model", str(folder), "--quiet"]
    coded = subprocess.run(
        [*words, "encode", *tail], input=encode_video([frames], 10, exact=True),
        capture_output=True, check=True,
    )  # fmt: skip
    assert coded.stderr == b""
    np.testing.assert_array_equal(made.decode(coded.stdout).frames, made.reconstruct(frames))


def test_pipes(model):
    folder, made = model
    frames = picture(20, 20)
    words = [sys.executable, "-m", "bsq_jax"]
    tail = ["-", "-", "--model", str(folder), "--quiet"]
    coded = subprocess.run(
        [*words, "encode", *tail], input=encode_png(frames[0]), capture_output=True, check=True
    )
    assert coded.stderr == b""
    shown = subprocess.run(
        [*words, "decode", *tail], input=coded.stdout, capture_output=True, check=True
    )
    found = np.asarray(Image.open(io.BytesIO(shown.stdout)))
    assert np.abs(found.astype(int) - made.reconstruct(frames)[0]).max() <= 1


def test_nothing_is_overwritten_unless_told(run, tmp_path):
    save_png(tmp_path / "a.png", picture(16, 16)[0])
    (tmp_path / "a.bsq").write_bytes(b"precious")
    status, _, said = run("encode", tmp_path / "a.png", tmp_path / "a.bsq")
    assert status == 2
    assert "add --force" in said
    assert (tmp_path / "a.bsq").read_bytes() == b"precious"
    assert run("encode", tmp_path / "a.png", tmp_path / "a.bsq", "--force")[0] == 0
    assert run("decode", tmp_path / "a.bsq", tmp_path / "a.png")[0] == 2


def test_a_video_cut_short_gives_what_is_whole_and_says_so(run, model, tmp_path):
    frames = picture(150, 150, 20)
    from fractions import Fraction

    data = model[1].encode(frames, Fraction(10), mode="raw")
    (tmp_path / "a.bsq").write_bytes(data[: len(data) // 2])
    status, _, said = run("decode", tmp_path / "a.bsq", tmp_path / "a.mkv")
    assert status == 2
    assert "cut short: 8 of 20 frames are whole; the frames before are in" in said
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.mkv"), model[1].reconstruct(frames[:8]))
    status, out, said = run("info", tmp_path / "a.bsq")
    assert status == 2
    assert "all checksums" not in out
    assert "cut short" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("encode", "gone.png", "x.bsq"), "gone.png does not exist"),
        (("encode", "text.png", "x.bsq"), "is no picture or video"),
        (("encode", "text.mp4", "x.bsq"), "is no picture or video"),
        (("encode", "a.png", "no/x.bsq"), "does not exist: make it first"),
        (("encode", "a.png", "x.bsq", "--bits", "9"), "9 bits a token"),
        (("encode", "a.png", "x.bsq", "--stages", "1"), "1 stages of a token: codec has no"),
        (("encode", "a.png", "x.bsq", "--overlap", "-2"), "overlap of -2"),
        (("encode", "a.png", "x.bsq", "--model", "gone"), "gone does not exist"),
        (("encode", "a.png", "x.bsq", "--frames", "0"), "--frames 0: give 1 or more"),
        (("encode", "a.mp4", "x.bsq", "--frames", "-1"), "--frames -1"),
        (("encode", "a.png", "x.bsq", "--overlap", "99"), "may share 0 to 8"),
        (("encode", "a.bsq", "x.bsq"), "a.bsq is a .bsq file already: decode it"),
        (("encode", "a.png", "x.PNG"), "what is encoded is a .bsq file, no .png file"),
        (("encode", "a.png", "x.mp4"), "what is encoded is a .bsq file"),
        (("encode", "a.png", "folder", "--force"), "folder is a folder"),
        (("decode", "a.bsq", "folder", "--force"), "folder is a folder"),
        (("encode", "folder", "x.bsq"), "folder is a folder: give a folder for the results"),
        (("encode", "empty.bsq", "x.bsq"), "the file is empty"),
        (("encode", "empty.mp4", "x.bsq"), "the file is empty"),
        (("decode", "a.bsq", "x.gif"), "pictures are written as .png"),
        (("decode", "a.png", "x.png"), "is a PNG picture"),
        (("decode", "a.bsq", "x.mp4"), "pictures are written as .png"),
        (("decode", "text.png", "x.png"), "is no .bsq file"),
        (("info", "empty.bsq"), "is empty"),
        (("export", "gone", "x"), "gone does not exist"),
    ],
)
def test_mistakes_get_one_line(run, model, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    save_png("a.png", picture(16, 16)[0])
    (tmp_path / "a.bsq").write_bytes(model[1].encode(picture(16, 16)))
    for name in ("text.png", "text.mp4"):
        (tmp_path / name).write_text("hello, this is no picture")
    for name in ("empty.bsq", "empty.mp4"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "a.mp4").write_bytes(encode_video([picture(16, 16, 2)], 25))
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.iterdir())
    status, _, found = run(*words)
    assert status == 2
    assert said in found
    assert found.startswith("error: ")
    assert found.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_which_model(run, monkeypatch, tmp_path):
    save_png(tmp_path / "a.png", picture(16, 16)[0])
    monkeypatch.delenv("BSQ_JAX_MODEL")
    status, _, said = run("encode", tmp_path / "a.png", tmp_path / "a.bsq")
    assert status == 0
    assert "no model is named: the starter model of bsq_jax is taken" in said
    assert "of starter" in said


def test_export(run, model, tmp_path):
    status, _, said = run("export", model[0], tmp_path / "copy")
    assert status == 0
    assert "tokenizer and prior" in said
    save_png(tmp_path / "a.png", picture(16, 16)[0])
    words = (tmp_path / "a.png", tmp_path / "a.bsq", "--model", tmp_path / "copy")
    assert run("encode", *words)[0] == 0
    assert (tmp_path / "a.bsq").read_bytes() == model[1].encode(picture(16, 16))
    assert run("export", model[0], tmp_path / "copy")[0] == 2


def test_reconstruct_is_encode_and_decode(run, model, tmp_path):
    frames = picture(21, 35)
    save_png(tmp_path / "a.png", frames[0])
    status, _, said = run("reconstruct", tmp_path / "a.png", tmp_path / "b.png")
    assert status == 0
    again = np.asarray(Image.open(tmp_path / "b.png"))
    np.testing.assert_array_equal(again, model[1].reconstruct(frames)[0])
    error = np.mean((again.astype(np.float64) - frames[0]) ** 2)
    assert f"21x35, {10 * np.log10(255**2 / error):.2f} dB" in said
    assert f"{len(model[1].encode(frames))} bytes" in said
    words = ("reconstruct", tmp_path / "a.png", tmp_path / "c.png", "--beside", "--bits", 3)
    assert run(*words, "--quiet") == (0, "", "")
    both = np.asarray(Image.open(tmp_path / "c.png"))
    beside = [frames[0], model[1].reconstruct(frames, bits=3)[0]]
    np.testing.assert_array_equal(both, np.concatenate(beside, axis=1))


def test_reconstruct_names_mistakes(run, tmp_path):
    save_png(tmp_path / "a.png", picture(16, 16)[0])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for words, message in [
        (("broken.png", "b.png"), "is no picture that can be read"),
        (("a.png", "b.jpg"), "the name must end in .png"),
        (("a.png", "a.png"), "exists"),
        (("missing.png", "b.png"), "does not exist"),
    ]:
        status, _, said = run("reconstruct", *(tmp_path / word for word in words))
        assert status == 2
        assert message in said
        assert said.count("\n") == 1


def test_an_export_of_half_precision_is_a_model_of_its_own(run, model, tmp_path):
    """Half the bytes; numpy rounds the weights; it codes and decodes its own files."""
    assert run("export", model[0], tmp_path / "half", "--half")[0] == 0
    whole, half = (
        folder / "tokenizer" / "raw.safetensors" for folder in (model[0], tmp_path / "half")
    )
    assert half.stat().st_size < 0.7 * whole.stat().st_size
    made = Codec.load(tmp_path / "half")
    wanted = jax.tree.map(
        lambda leaf: leaf.astype(np.float16).astype(np.float32), model[1].tokenizer.params
    )
    chex.assert_trees_all_equal(made.tokenizer.params, wanted)
    frames = picture(21, 35)
    data = made.encode(frames)
    np.testing.assert_array_equal(made.decode(data).frames, made.reconstruct(frames))
    assert made.fingerprint("prior") != model[1].fingerprint("prior")


def test_weights_beyond_half_precision_are_refused(model, tmp_path):
    params = jax.tree.map(np.copy, model[1].tokenizer.params)
    params["to_latent"]["bias"][0] = 1e5
    tokenizer = Tokenizer(model[1].tokenizer.config, params)
    with pytest.raises(UserError, match="to_latent/bias has weights beyond the range of float16"):
        tokenizer.save(tmp_path / "half", half=True)
