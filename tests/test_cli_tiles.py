"""encode --tile and --memory, info and progress. Oracles: the Python API, Pillow."""

import io

import numpy as np
import pytest
from PIL import Image
from small_codec import make_codec, picture

from bsq_jax import cli
from bsq_jax.coding.container import read_header
from bsq_jax.media.pictures import save_png


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """By name: with windows, and with a prior of tiles."""
    root = tmp_path_factory.mktemp("models")
    made = {
        "windows": make_codec(prior=False, spatial_window=2, positions="window"),
        "old": make_codec(),
    }
    for name, codec in made.items():
        codec.save(root / name)
    return root, made


@pytest.fixture
def run(models, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("BSQ_JAX_MODEL", str(models[0] / "windows"))
    monkeypatch.chdir(tmp_path)

    def run(*words):
        status = cli.main([str(word) for word in words])
        return status, *capsys.readouterr()

    return run


def header_of(path):
    return read_header(io.BytesIO(path.read_bytes()), "x")


@pytest.mark.parametrize(
    ("words", "settings", "said"),
    [
        ((), {}, "without tiles"),
        (("--tile", "0"), {"tile": 0}, "without tiles"),
        (("--tile", "native"), {"tile": 0}, "without tiles"),
        (("--tile", "24"), {"tile": 24}, "tiles of 24x24 share 8 pixels"),
        (
            ("--tile", "16x24", "--overlap", "2"),
            {"tile": (16, 24), "overlap": 2},
            "16x24 share 2",
        ),
        (("--tile", "16"), {"tile": 16}, "tiles of the model's size share 8 pixels"),
        (("--memory", "500"), {"memory_mb": 500}, "without tiles"),
    ],
)
def test_there_and_back(run, models, tmp_path, words, settings, said):
    codec, frames = models[1]["windows"], picture(37, 50)
    save_png(tmp_path / "a.png", frames[0])
    status, _, told = run("encode", "a.png", "a.bsq", *words)
    assert status == 0
    assert said in told
    assert (tmp_path / "a.bsq").read_bytes() == codec.encode(frames, **settings)
    assert run("decode", "a.bsq", "b.png")[0] == 0
    found = np.asarray(Image.open(tmp_path / "b.png"))
    np.testing.assert_array_equal(found, codec.reconstruct(frames, **settings)[0])
    status, out, _ = run("info", "a.bsq")
    assert status == 0
    assert said in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--tile", "12"), "multiples of the patch of 8x8, such as 128x128"),
        (("--tile", "big"), "give a side in pixels"),
        (("--tile", "24", "--overlap", "13"), "an overlap of 13 pixels"),
        (("--memory", "0"), "this model needs"),
        (("--memory", "100", "--tile", "24"), "not allowed with argument"),
        (("--model", "old", "--tile", "24"), "train a prior with prior.reach"),
        (("--model", "old", "--memory", "24"), "this one has none"),
    ],
)
def test_mistakes_get_one_line(run, models, tmp_path, words, said):
    save_png(tmp_path / "a.png", picture(37, 50)[0])
    words = [models[0] / "old" if word == "old" else word for word in words]
    try:
        status, _, told = run("encode", "a.png", "a.bsq", *words)
    except SystemExit as stop:  # of argparse
        status, told = stop.code, said
    assert status == 2
    assert said in told
    assert not (tmp_path / "a.bsq").exists()


def test_a_folder_goes_on_with_the_same_tiles_alone(run, tmp_path):
    (tmp_path / "in").mkdir()
    for number, size in enumerate([(37, 50), (1, 1), (100, 9)]):
        save_png(tmp_path / "in" / f"{number}.png", picture(*size)[0])
    assert run("encode", "in", "out", "--tile", "24")[0] == 0
    assert header_of(tmp_path / "out" / "0.bsq").tile == (24, 24)
    assert header_of(tmp_path / "out" / "1.bsq").tile == (0, 0)
    assert header_of(tmp_path / "out" / "2.bsq").tile == (24, 16)
    status, _, told = run("encode", "in", "out", "--tile", "24")
    assert status == 0
    assert "of which 3 were done before" in told
    status, _, told = run("encode", "in", "out")
    assert status == 2
    assert "coded with other settings" in told
    assert run("encode", "in", "out", "--force")[0] == 0
    assert header_of(tmp_path / "out" / "0.bsq").tile == (0, 0)
    assert "of which 3 were done before" in run("encode", "in", "out")[2]
    assert run("decode", "out", "back")[0] == 0
    assert np.asarray(Image.open(tmp_path / "back" / "2.png")).shape == (100, 9, 3)


def test_progress_of_a_large_picture(run, monkeypatch, tmp_path):
    """Lines of so many tiles, and none of small pictures or with --quiet."""
    monkeypatch.setattr("bsq_jax.coding.tile_tokenizer._TOKENS_AT_ONCE", 16)
    monkeypatch.setattr("bsq_jax.core.progress._EVERY", 0.0)
    for name, size in (("a", (90, 90)), ("b", (16, 16))):
        save_png(tmp_path / f"{name}.png", picture(*size)[0])
    _, _, told = run("encode", "a.png", "a.bsq", "--tile", "16", "--overlap", "0")
    assert "a.png: 4 of 36 tiles" in told
    _, _, told = run("decode", "a.bsq", "a2.png")
    assert "a.bsq: 4 of 36 tiles" in told
    assert "tiles," not in run("encode", "b.png", "b.bsq", "--tile", "16")[2]
    quiet = run("encode", "a.png", "a.bsq", "--tile", "16", "--force", "--quiet")
    assert quiet[2] == ""
    assert run("decode", "a.bsq", "a3.png", "--quiet")[2] == ""
