"""The command that measures samples. Oracles: sets compared with themselves, scipy, messages."""

import functools
import json

import numpy as np
import pytest
import scipy.linalg

from bsq_jax import cli
from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import make_mesh
from bsq_jax.data.sources import make_source
from bsq_jax.evaluation import score as module
from bsq_jax.evaluation.metrics import FeatureStatistics
from bsq_jax.evaluation.picture_set import PictureSet
from bsq_jax.media.pictures import save_png

# One for all tests with the same pictures and settings: compiling VGG16 is most of their time.
SCORERS = functools.cache(module.Scorer)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Two devices, for two batches of a set: eight copies of VGG16 take their time."""
    monkeypatch.setattr(module, "_BATCH", 4)
    monkeypatch.setattr(module, "make_mesh", lambda devices: make_mesh(devices=devices[:2]))
    monkeypatch.setattr(module, "Scorer", SCORERS)


def run(*words):
    return cli.main(["score", *(str(word) for word in words), "--quiet"])


def digits(count, first=0):
    """Digits of 8 x 8, enlarged without smoothing to 16 x 16."""
    source = make_source("digits", "train")
    images = [source[index].content for index in range(first, first + count)]
    return np.stack(images).repeat(2, axis=1).repeat(2, axis=2)


def save(path, pictures):
    np.savez(path, pictures)
    return path


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return [
        save(folder / f"{name}.npz", digits(12, first)) for name, first in (("a", 0), ("b", 99))
    ]


def results(path):
    return json.loads(path.read_text())


def test_a_set_against_itself_and_another(sets, tmp_path, capsys):
    file = tmp_path / "result.json"
    assert run(sets[0], "--reference", sets[0], "--json", file) == 0
    same = results(file)["results"]
    assert abs(same["frechet_vgg16"]) < 1e-3
    assert (same["precision"], same["recall"]) == (1.0, 1.0)
    out = capsys.readouterr().out
    assert "Frechet distance, VGG16 features" in out
    assert "FID: no weights" in out
    assert "(12 frames in 512 dimensions)" in out
    assert run(sets[1], "--reference", sets[0], "--json", file) == 0
    other = results(file)
    assert other["results"]["frechet_vgg16"] > 1
    assert other["samples"]["count"] == 12
    # In a folder, out of order with the batches, the same pictures give the same.
    folder = tmp_path / "pictures"
    for number, picture in enumerate(digits(12, 99)):
        save_png(folder / f"{number:03d}.png", picture)
    save_png(folder / "grid.png", np.zeros((9, 9, 3), np.uint8))  # is no sample
    assert run(folder, "--reference", sets[0], "--json", file) == 0
    for name, value in other["results"].items():
        np.testing.assert_allclose(results(file)["results"][name], value, rtol=1e-6, err_msg=name)


def test_statistics_stand_for_their_reference(sets, tmp_path, capsys):
    stats, file = tmp_path / "a.stats.npz", tmp_path / "result.json"
    assert run(sets[1], "--statistics", stats) == 2
    assert "give --reference too, and it is made" in capsys.readouterr().err
    assert run(sets[1], "--reference", sets[0], "--statistics", stats, "--json", file) == 0
    made = results(file)["results"]
    assert run(sets[1], "--statistics", stats, "--json", file) == 0
    assert results(file)["results"] == made
    assert results(file)["reference"] == [str(sets[0]), ""]
    assert run(sets[1], "--reference", sets[1], "--statistics", stats) == 2
    assert "give another --statistics" in capsys.readouterr().err
    small = save(tmp_path / "small.npz", digits(8).repeat(2, axis=1).repeat(2, axis=2))
    assert run(small, "--statistics", stats) == 2
    assert "another size (16x16)" in capsys.readouterr().err
    stats.write_bytes(stats.read_bytes()[:-300])
    assert run(sets[1], "--statistics", stats) == 2
    assert "holds no statistics" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_data_source_as_reference(split, tmp_path):
    file = tmp_path / "result.json"
    pictures = np.stack([make_source("synthetic", split)[i].content for i in range(64)])
    samples = save(tmp_path / "samples.npz", pictures)
    words = ("--reference", "synthetic", "--split", split, "--json", file)
    assert run(samples, *words) == 0
    assert abs(results(file)["results"]["frechet_vgg16"]) < 1e-2  # resized from 96 to 96 pixels
    assert results(file)["of_reference"]["frechet_vgg16"]["samples"] == 64


def test_a_folder_is_compared_with_whole_unless_a_split_is_asked_for(sets, tmp_path, capsys):
    folder = tmp_path / "pictures"
    for number, picture in enumerate(digits(12)):
        save_png(folder / f"{number:03d}.png", picture)
    file, stats = tmp_path / "result.json", tmp_path / "stats.npz"
    words = (sets[0], "--reference", f"folder:{folder}", "--json", file)
    assert run(*words, "--statistics", stats) == 0
    assert f"12 samples of {sets[0]} against 12 pictures of folder:" in capsys.readouterr().out
    assert abs(results(file)["results"]["frechet_vgg16"]) < 1e-3
    in_val = len(make_source(f"folder:{folder}", "val"))
    assert 0 < in_val < 12
    assert run(*words, "--split", "train") == 0
    said = f"against {12 - in_val} pictures of folder:{folder} (train)"
    assert said in capsys.readouterr().out
    assert results(file)["of_reference"]["frechet_vgg16"]["samples"] == 12 - in_val
    # The statistics of all are not those of a split.
    assert run(*words, "--statistics", stats) == 0
    assert run(*words, "--statistics", stats, "--split", "val") == 2
    assert "give another --statistics" in capsys.readouterr().err


def test_saved_moments_are_the_moments():
    """Against numpy and scipy, through the arrays of a file."""
    drawn = np.random.default_rng(0)
    rows = drawn.normal(size=(2000, 5)) @ drawn.normal(size=(5, 5)) + 3
    logits = drawn.normal(size=(2000, 1, 7))
    fresh = lambda: FeatureStatistics({"x": 5}, 7, kept="x")  # noqa: E731
    one, other = fresh(), fresh()
    one.update({"x": rows[:, None], "logits": logits}, np.ones((2000, 1), bool), np.arange(2000))
    other.load(one.to_arrays())
    moments = other.moments["x"]
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(rows.T), rtol=1e-9)
    root = scipy.linalg.sqrtm(np.cov(rows.T) @ moments.covariance)
    np.testing.assert_allclose(root, np.cov(rows.T), rtol=1e-6)
    np.testing.assert_array_equal(other.sample(), rows)
    assert other.inception_score() == one.inception_score()
    more = fresh()
    more.load(one.to_arrays())
    extra = (drawn.normal(size=(9, 1, 5)), drawn.normal(size=(9, 1, 7)))
    for each in (one, more):  # what is loaded can go on
        each.update({"x": extra[0], "logits": extra[1]}, np.ones((9, 1), bool), np.arange(9))
    np.testing.assert_allclose(more.moments["x"].mean, one.moments["x"].mean, rtol=1e-12)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((3, 32, 32, 3), np.float32), "must be uint8"),
        (np.zeros((0, 32, 32, 3), np.uint8), "must be uint8"),
        (np.zeros((3, 8, 8, 3), np.uint8), "at least 16 pixels a side"),
    ],
)
def test_bad_samples(array, said, tmp_path, capsys):
    assert run(save(tmp_path / "bad.npz", array), "--reference", "digits") == 2
    assert said in capsys.readouterr().err


def test_damaged_archives_are_one_line(tmp_path):
    """Every byte of a small compressed archive, changed: zlib and NumPy raise what they like."""
    path = tmp_path / "a.npz"
    np.savez_compressed(path, np.zeros((2, 4, 4, 3), np.uint8))
    whole, said = path.read_bytes(), []
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            PictureSet(path)
        except UserError as error:
            said.append(str(error))
    assert len(said) > 100
    assert not any("\n" in text for text in said)


def test_bad_places(sets, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npz").write_text("nothing")
    mixed = tmp_path / "mixed"
    for number, size in enumerate((16, 24)):
        save_png(mixed / f"{number}.png", np.zeros((size, size, 3), np.uint8))
    other = save(tmp_path / "other.npz", np.zeros((3, 24, 24, 3), np.uint8))
    for words, said in (
        ((tmp_path / "none", "--reference", "digits"), "no folder"),
        ((tmp_path / "empty", "--reference", "digits"), "holds no pictures"),
        ((tmp_path / "text.npz", "--reference", "digits"), "is no .npz file with pictures"),
        ((mixed, "--reference", sets[0]), "all must be of one size"),
        ((sets[0],), "what to compare with"),
        ((sets[0], "--reference", "digitz"), "did you mean 'digits'"),
        ((sets[0], "--reference", other), "the reference is 24x24, the samples are 16x16"),
        ((sets[0], "--reference", "motion"), "holds videos"),
        ((sets[0], "--reference", "digits", "--inception", "/no/such"), "/no/such"),
    ):
        assert run(*words) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
