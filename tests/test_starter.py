"""The model that comes with the package: it is there, whole, small, and does what it is for."""

import pathlib

import numpy as np
import pytest
from PIL import Image
from skimage import data as samples

from bsq_jax import Codec, Tokenizer, cli
from bsq_jax.config import finalize, model_identity
from bsq_jax.config.files import load_config_file
from bsq_jax.core.errors import UserError
from bsq_jax.training import starter

MEGABYTE = 10**6


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    monkeypatch.delenv("BSQ_JAX_MODEL", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def codec():
    return Codec.load()


def psnr(one, other):
    return 10 * np.log10(255**2 / np.mean((one.astype(np.float64) - other) ** 2))


def test_it_is_small():
    files = [path for path in starter.starter_folder().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12 * MEGABYTE


def test_it_is_what_its_config_makes(codec):
    """Its settings are those of configs/starter.py, so that the recipe in the card is its own."""
    wanted = finalize(load_config_file("starter"))
    assert model_identity(codec.tokenizer.config) == model_identity(wanted)
    assert codec.has_prior
    assert codec.variable_bits[-1] == wanted.model.bits


@pytest.mark.smoke
def test_a_photograph_there_and_back_without_a_model_named(capsys):
    """Far better than a JPEG of as many bytes; Pillow is the judge."""
    original = samples.astronaut()[:320, :400]
    Image.fromarray(original).save("photo.png")
    assert cli.main(["encode", "photo.png", "photo.bsq"]) == 0
    assert "no model is named: the starter model of bsq_jax is taken" in capsys.readouterr().err
    assert cli.main(["info", "photo.bsq"]) == 0
    assert "starter" in capsys.readouterr().out
    assert cli.main(["decode", "photo.bsq", "again.png", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    again = np.asarray(Image.open("again.png"))
    size = pathlib.Path("photo.bsq").stat().st_size
    for quality in range(40, 0, -1):
        Image.fromarray(original).save("photo.jpg", quality=quality, optimize=True)
        jpeg = np.asarray(Image.open("photo.jpg"))
        if pathlib.Path("photo.jpg").stat().st_size <= size:
            break
    assert psnr(original, again) > psnr(original, jpeg) + 1


def test_fewer_bits_make_smaller_files(codec):
    original = samples.chelsea()[:128, :192]
    files = [codec.encode(original, bits=bits) for bits in codec.variable_bits]
    assert sorted(map(len, files)) == list(map(len, files))
    quality = [psnr(original, codec.decode(data).frames[0]) for data in files]
    assert sorted(quality) == quality


def test_a_clip_comes_back_frame_by_frame(codec):
    """The model has seen pictures alone: each frame has the pixels that it has as a picture."""
    frames = np.stack([np.roll(samples.coffee()[:64, :96], step, axis=1) for step in range(3)])
    decoded = codec.decode(codec.encode(frames, rate=25)).frames
    alone = [codec.decode(codec.encode(frame)).frames[0] for frame in frames]
    np.testing.assert_array_equal(decoded, np.stack(alone))


def test_the_tokenizer_alone_is_the_same_one(codec):
    tokenizer = Tokenizer.load()
    picture = samples.coffee()[:64, :96]
    np.testing.assert_array_equal(tokenizer.encode(picture), codec.tokenizer.encode(picture))


def test_reconstruct_takes_it(capsys):
    Image.fromarray(samples.coffee()[:64, :96]).save("photo.png")
    assert cli.main(["reconstruct", "photo.png", "again.png"]) == 0
    assert "as a .bsq file of starter" in capsys.readouterr().err


def test_an_installation_without_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(starter.bsq_jax, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(UserError, match="the starter model is missing from this installation"):
        Codec.load()
