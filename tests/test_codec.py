"""The codec's command. Oracles: Pillow, PyAV, the Python API, messages written by hand."""

import io
import subprocess
import sys

import av
import numpy as np
import pytest
from PIL import Image
from small_codec import make_codec, picture

from bsq_jax import codec as command
from bsq_jax.core.pictures import encode_png, save_png
from bsq_jax.core.videos import encode_video


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
        status = command.main([str(word) for word in words])
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


def test_pipes(model):
    folder, made = model
    frames = picture(20, 20)
    words = [sys.executable, "-m", "bsq_jax.codec"]
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
        (("encode", "a.png", "x.bsq", "--overlap", "-2"), "overlap of -2"),
        (("encode", "a.png", "x.bsq", "--model", "gone"), "gone does not exist"),
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
    (tmp_path / "empty.bsq").write_bytes(b"")
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
    assert status == 2
    assert "--model" in said


def test_export(run, model, tmp_path):
    status, _, said = run("export", model[0], tmp_path / "copy")
    assert status == 0
    assert "tokenizer and prior" in said
    save_png(tmp_path / "a.png", picture(16, 16)[0])
    words = (tmp_path / "a.png", tmp_path / "a.bsq", "--model", tmp_path / "copy")
    assert run("encode", *words)[0] == 0
    assert (tmp_path / "a.bsq").read_bytes() == model[1].encode(picture(16, 16))
    assert run("export", model[0], tmp_path / "copy")[0] == 2
