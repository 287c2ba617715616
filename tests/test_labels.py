"""Classes of examples, from the sources to the batches. Oracles: scikit-learn, names of folders."""

import dataclasses

import numpy as np
import pytest
from shapes import data_config
from sklearn.datasets import load_digits

from bsq_jax.core.errors import UserError
from bsq_jax.data.eval_pipeline import eval_batches
from bsq_jax.data.records import NO_LABEL, classes_of, label_of
from bsq_jax.data.sources import make_source
from bsq_jax.data.train_pipeline import train_batches
from bsq_jax.media.pictures import save_png

ALONE = {"global_batch": 6, "shard_index": 0, "shard_count": 1}


@pytest.mark.smoke
def test_digits_are_those_of_scikit_learn():
    bunch = load_digits()
    is_val = np.arange(1797) % 5 == 0
    for split, chosen in (("train", ~is_val), ("val", is_val)):
        source = make_source("digits", split)
        assert len(source) == chosen.sum()
        assert classes_of(source) == tuple("0123456789")
        pixels = np.stack([source[index].content for index in range(len(source))])
        grey = np.rint(bunch.images[chosen] * 255 / 16)
        np.testing.assert_array_equal(pixels, np.repeat(grey[..., None], 3, axis=-1))
        labels = [label_of(source, index) for index in range(len(source))]
        np.testing.assert_array_equal(labels, bunch.target[chosen])
    with pytest.raises(UserError, match="digits takes nothing after it"):
        make_source("digits:8", "val")


@pytest.fixture
def folder(tmp_path):
    """Train and val folders with classes that are colours."""
    colours = {"blue": (0, 0, 250), "green": (0, 250, 0), "red": (250, 0, 0)}
    for split, names in (("train", ("blue", "green", "red")), ("val", ("red", "blue", "pink"))):
        for number, name in enumerate(names):
            for copy in range(number + 1):
                colour = colours.get(name, (250, 200, 200))
                picture = np.full((8, 8, 3), colour, np.uint8)
                save_png(tmp_path / split / name / "deeper" / f"{copy}.png", picture)
    return tmp_path


def test_folders_are_classes(folder):
    train, val = (make_source(f"folder:{folder}", split) for split in ("train", "val"))
    # Classes are those of the training folder, though val has another one and lacks one.
    assert classes_of(train) == classes_of(val) == ("blue", "green", "red")
    labels = [label_of(train, index) for index in range(len(train))]
    assert labels == [0, 1, 1, 2, 2, 2]
    found = {val[i].id.split("/")[1]: label_of(val, i) for i in range(len(val))}
    assert found == {"blue": 0, "red": 2, "pink": NO_LABEL}
    whole = make_source(f"folder:{folder / 'train'}", "train", divide=False)
    assert classes_of(whole) == ("blue", "green", "red")
    # One picture that lies in no folder: then folders are no classes.
    save_png(folder / "train" / "loose.png", np.zeros((8, 8, 3), np.uint8))
    source = make_source(f"folder:{folder}", "train")
    assert classes_of(source) == ()
    assert label_of(source, 0) == NO_LABEL


def test_sources_without_classes():
    for spec in ("photos", "synthetic", "motion"):
        source = make_source(spec, "train")
        assert classes_of(source) == ()
        assert label_of(source, 0) == NO_LABEL


def test_batches_say_classes_when_asked(folder):
    """The colour of every crop is that of its label, in any order and on any host."""
    data = data_config(
        source=f"folder:{folder}", image_size=8, resize=8, eval_resize=8, threads=0, labels=True
    )
    colours = np.array([(0, 0, 250), (0, 250, 0), (250, 0, 0), (250, 200, 200)])
    batches = train_batches(data, **ALONE)
    seen = []
    for _ in range(4):
        batch = next(batches)
        assert batch["label"].dtype == np.int32
        np.testing.assert_array_equal(batch["pixels"][:, 0, 4, 4], colours[batch["label"]])
        seen.append(batch["label"])
    assert np.bincount(np.concatenate(seen)).tolist() == [4, 8, 12]
    halves = [
        next(train_batches(data, global_batch=6, shard_index=i, shard_count=2))["label"]
        for i in range(2)
    ]
    np.testing.assert_array_equal(np.concatenate(halves), seen[0])
    (batch,) = eval_batches(data, **{**ALONE, "global_batch": 8})
    real = batch["mask"] > 0
    assert real.sum() == 6
    np.testing.assert_array_equal(batch["label"][~real], NO_LABEL)
    np.testing.assert_array_equal(batch["pixels"][real, 0, 4, 4], colours[batch["label"][real]])
    silent = dataclasses.replace(data, labels=False)
    assert "label" not in next(train_batches(silent, **ALONE))
    assert "label" not in next(eval_batches(silent, **ALONE))


def test_images_beside_another_source_have_no_class(folder):
    """Steps of single frames from a second source: its numbers would mean something else."""
    data = data_config(
        **{"source": "digits", "image_size": 8, "resize": 8},
        eval_resize=8,
        threads=0,
        image_share=0.5,
        image_source=f"folder:{folder}",
        labels=True,
    )
    batches = train_batches(data, **ALONE)
    kinds = [next(batches) for _ in range(12)]
    mine = [batch for batch in kinds if (batch["label"] >= 0).all()]
    others = [batch for batch in kinds if (batch["label"] == NO_LABEL).all()]
    assert len(mine) + len(others) == 12
    assert mine
    assert others
    for batch in others:  # a colour, where digits are grey
        assert (np.ptp(batch["pixels"][:, 0, 4, 4].astype(int), axis=-1) > 0).all()


def test_a_validation_source_of_its_own_has_the_numbers_of_training(tmp_path, caplog):
    """Classes are the same by name: each source by itself would count its own from 0."""
    colours = {"cat": (250, 0, 0), "cow": (99, 99, 9), "dog": (0, 250, 0), "fish": (0, 0, 250)}
    for place, names in (("tr", ("cat", "dog", "fish")), ("va", ("cow", "dog", "fish"))):
        for name in names:
            for copy in range(2):
                picture = np.full((8, 8, 3), colours[name], np.uint8)
                save_png(tmp_path / place / name / f"{copy}.png", picture)
    data = data_config(
        **{"source": f"folder:{tmp_path}/tr", "val_source": f"folder:{tmp_path}/va"},
        **{"image_size": 8, "resize": 8},
        eval_resize=8,
        threads=0,
        labels=True,
    )
    batches = train_batches(data, **ALONE)
    (batch,) = eval_batches(data, **ALONE)
    of_training = [NO_LABEL, NO_LABEL, 1, 1, 2, 2]
    np.testing.assert_array_equal(batch["label"], of_training)
    train = next(batches)
    np.testing.assert_array_equal(
        train["pixels"][:, 0, 4, 4],
        np.array([colours[c] for c in ("cat", "dog", "fish")])[train["label"]],
    )
    told = [record.getMessage() for record in caplog.records if "no class" in record.getMessage()]
    assert len(told) == 1
    assert told[0].endswith(": cow")
    # Without classes in training there is no number that an example could have.
    (batch,) = eval_batches(dataclasses.replace(data, source="synthetic"), **ALONE)
    assert (batch["label"] == NO_LABEL).all()
