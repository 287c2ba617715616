"""Training masked language models. Oracles: numpy in float64, one device, the data, messages."""

import dataclasses
import json
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from one_step import one_step
from shapes import masked_lm_shape

from bsq_jax import cli
from bsq_jax import main as module
from bsq_jax.config import finalize
from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import make_mesh
from bsq_jax.data.sources import make_source
from bsq_jax.data.tokens import read_description
from bsq_jax.evaluation.masked_lm import masked_lm_table
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.media.pictures import save_png
from bsq_jax.quantizers.bits import to_group_indices
from bsq_jax.training.recipes.masked_lm import MaskedLmRecipe
from bsq_jax.training.saved_models import with_tokenizer
from bsq_jax.training.tasks.masked_lm import sums_over_masked

TINY = str(pathlib.Path(__file__).parent / "tiny.py")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("masked_lm") / "tokenizer"
    flags = ["--config.train.steps=2", "--config.data.source=digits"]
    assert module.run(["--config", TINY, "--workdir", str(workdir), *flags]) == 0
    return workdir


@pytest.fixture(scope="module")
def config_file(tokenizer):
    return f"{TINY}:masked_lm={tokenizer}"


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory):
    """A source of eight digits of each class to train on and three to validate on."""
    folder = tmp_path_factory.mktemp("digits")
    for split, count in (("train", 8), ("val", 3)):
        source = make_source("digits", split)
        left = dict.fromkeys(range(10), count)
        for index in range(len(source)):
            label = source.label(index)
            if left[label]:
                left[label] -= 1
                path = folder / split / str(label) / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                save_png(path, source[index].content)
    return f"folder:{folder}"


def task_of(tokenizer, workdir, mesh, *, accumulate=1, **changes):
    config = tiny.get_masked_lm(tokenizer, **changes)
    config.train.accumulate = accumulate
    return MaskedLmRecipe(finalize(with_tokenizer(config, workdir)), workdir, mesh).task


def batch_of(time=1, examples=8):
    drawn = np.random.default_rng(0)
    return {
        "pixels": drawn.integers(0, 256, (examples, time, 16, 16, 3), np.uint8),
        "frames": np.resize(np.array([time, 1, time, min(2, time)], np.int32), examples),
        "label": np.arange(examples, dtype=np.int32) % 10,
    }


def masked_batch(task, mesh, batch, count):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(count))
    return jax.device_get(jax.jit(task.mask)(batch, task.load_frozen(mesh), keys))


@pytest.mark.parametrize("unit", ["token", "group"])
def test_what_is_asked(tokenizer, tmp_path, unit):
    """Which frame, which masks, which label, for many draws of the same examples."""
    mesh = make_mesh(devices=jax.devices()[:1])
    task = task_of(tokenizer, tmp_path, mesh, frames=3, mask_unit=unit, label_dropout=0.25)
    batch = {name: np.tile(rows, (100,) + (1,) * (rows.ndim - 1)) for name, rows in
             batch_of(3).items()}  # fmt: skip
    found = masked_batch(task, mesh, batch, 800)
    bits = Tokenizer.load(tokenizer).encode(batch["pixels"].reshape(-1, 16, 16, 3))
    words = np.asarray(to_group_indices(bits.reshape(800, 3, 4, 6), 3))
    rows = np.arange(800)
    np.testing.assert_array_equal(found.targets, words[rows, found.frame])
    ahead = np.arange(3)[None] - found.frame[:, None]
    want = np.where((ahead > 0)[..., None, None], 8, words)
    want[rows, found.frame] = np.where(found.masked, 8, found.targets)
    np.testing.assert_array_equal(found.words, want)
    # Each real frame comes about as often as any other of its clip.
    for frames in (1, 2, 3):
        mine = found.frame[batch["frames"] == frames]
        shares = np.bincount(mine, minlength=3) / len(mine)
        np.testing.assert_allclose(shares, (np.arange(3) < frames) / frames, atol=0.1)
    # The number of masks is that of the cosine schedule at a uniform place.
    counts = found.masked.sum(axis=(1, 2))
    units = 4 if unit == "token" else 8
    if unit == "token":
        assert (found.masked == found.masked[..., :1]).all()
        counts //= 2
    else:
        assert (found.masked != found.masked[..., :1]).any()
    at_least = [(counts >= n).mean() for n in range(1, units + 1)]
    # ceil(U cos(pi r / 2)) >= n  <=>  cos(pi r / 2) > (n - 1) / U.
    want = [2 / np.pi * np.arccos((n - 1) / units) for n in range(1, units + 1)]
    np.testing.assert_allclose(at_least, want, atol=0.05)
    np.testing.assert_allclose(found.masked.mean(axis=0), found.masked.mean(), atol=0.08)
    told = found.labels >= 0
    assert abs(told.mean() - 0.75) < 0.05
    np.testing.assert_array_equal(found.labels[told], batch["label"][told])


@pytest.mark.smoke
class SumsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_the_loss_against_numpy(self):
        shape = masked_lm_shape(1, 3, bits=5, group_size=3)  # groups of 8 and of 4 words
        drawn = np.random.default_rng(0)
        logits = drawn.normal(size=(2, 3, 12)).astype(np.float32)
        targets = np.stack([drawn.integers(0, 8, (2, 3)), drawn.integers(0, 4, (2, 3))], axis=-1)
        masked = drawn.random((2, 3, 2)) < 0.6
        run = self.variant(lambda *arrays: sums_over_masked(shape, *arrays, 0.2))
        found = run(logits, targets.astype(np.int32), masked)
        want = {name: np.zeros(2) for name in ("loss", "cross_entropy", "right", "masked")}
        for example, token, group in np.argwhere(masked):
            words = slice(8) if group == 0 else slice(8, None)
            part = np.float64(logits[example, token, words])
            log = part - np.log(np.exp(part).sum())
            target = targets[example, token, group]
            smooth = 0.8 * np.eye(len(log))[target] + 0.2 / len(log)
            want["loss"][example] -= smooth @ log
            want["cross_entropy"][example] -= log[target]
            want["right"][example] += log.argmax() == target
            want["masked"][example] += 1
        chex.assert_trees_all_close(found, want, rtol=1e-5)
        chex.assert_tree_all_finite(found)


@pytest.mark.smoke
@pytest.mark.usefixtures("eight_devices")
def test_a_step_is_the_same_on_any_mesh_and_in_parts(tokenizer, tmp_path):
    batch = batch_of(2, 16)
    single = make_mesh(devices=jax.devices()[:1])
    found = [
        one_step(task_of(tokenizer, tmp_path, mesh, frames=2, accumulate=parts), mesh, batch)[1]
        for mesh, parts in ((single, 1), (make_mesh(data=2, fsdp=2, tensor=2), 1), (single, 4))
    ]
    for other in found[1:]:
        for name in ("loss", "cross_entropy", "accuracy", "masked", "gradient_norm"):
            np.testing.assert_allclose(other[name], found[0][name], rtol=1e-4, err_msg=name)
    assert 0.9 < found[0]["cross_entropy"] < 1.1  # bits a bit: a fresh model guesses


def test_validation_does_not_depend_on_the_batch(tokenizer, tmp_path):
    mesh = make_mesh(devices=jax.devices()[:1])
    task = task_of(tokenizer, tmp_path, mesh)
    params, frozen = task.init_state(mesh).params, task.load_frozen(mesh)
    batch = batch_of() | {"index": np.arange(8)}
    step = jax.jit(task.evaluate_step)
    whole = step(params, batch, frozen)
    halves = [
        step(params, {name: rows[part] for name, rows in batch.items()}, frozen)
        for part in (slice(4, 8), slice(0, 4))
    ]
    joined = jax.tree.map(lambda a, b: np.concatenate([a, b]), halves[1], halves[0])
    chex.assert_trees_all_close(joined, whole, rtol=1e-5)
    chex.assert_shape(list(whole.values()), (8,))


@pytest.fixture(scope="module")
def trained(config_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "lm"
    flags = ["--config.train.steps=30", "--config.train.checkpoint_every=15"]
    assert module.run(["--config", config_file, "--workdir", str(workdir), *flags]) == 0
    return workdir


def test_it_learns_and_shows_samples(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    found = [line["cross_entropy"] for line in lines if "cross_entropy" in line]
    assert np.mean(found[-5:]) < np.mean(found[:5]) - 0.1
    report = json.loads((trained / "evaluation.json").read_text())
    result = report["results"]["raw"]
    assert result["count"] == 360
    assert result["cross_entropy"] < 0.95
    assert 0 < result["accuracy"] < 1
    assert pathlib.Path(report["pictures"][0]).name == "samples_0000030.png"
    assert pathlib.Path(report["pictures"][0]).is_file()


def test_evaluate_and_resume(trained, capsys):
    assert module.run(["--mode", "evaluate", "--workdir", str(trained)]) == 0
    out = capsys.readouterr().out
    assert "cross entropy (bits per masked bit)" in out
    assert "360 examples of 16x16" in out
    assert module.run(["--workdir", str(trained), "--config.train.steps=31"]) == 0
    assert "resuming at step 30" in capsys.readouterr().err


def test_samples_are_measured(trained, few_digits):
    flags = ["--config.eval.frechet=true", "--config.eval.samples=20", "--config.eval.pictures=1"]
    flags += [f"--config.data.val_source={few_digits}"]
    assert module.run(["--mode", "evaluate", "--workdir", str(trained), *flags]) == 0
    (path,) = trained.glob("evaluation_*.json")  # of other data than the run's
    report = json.loads(path.read_text())
    result = report["results"]["ema"]
    assert result["samples"] == 20
    assert result["frechet_vgg16"] > 0
    assert 0 <= result["precision"] <= 1
    assert report["judges"]["frechet_vgg16"]["samples"] == 30
    assert report["judges"]["compared_with"] == "originals"
    table = masked_lm_table(report)
    assert "Frechet distance, VGG16 features" in table
    assert "20 samples against these examples" in table
    assert "reconstructions" not in table


def test_from_a_token_set_with_classes(tokenizer, config_file, few_digits, tmp_path, capsys):
    folder, workdir = tmp_path / "set", tmp_path / "lm"
    words = ["tokenize", str(folder), "--model", str(tokenizer), "--quiet"]
    assert cli.main([*words, f"--config.data.source={few_digits}"]) == 0
    tokens = read_description(folder)
    assert (tokens.classes, tokens.counts) == (tuple("0123456789"), {"train": 80, "val": 30})
    flags = [f"--config.data.source=tokens:{folder}", "--config.train.steps=2"]
    flags += ["--config.eval.frechet=true", "--config.eval.samples=8", "--config.eval.pictures=1"]
    assert module.run(["--config", config_file, "--workdir", str(workdir), *flags]) == 0
    report = json.loads((workdir / "evaluation.json").read_text())
    from_tokens = report["results"]["raw"]
    # There are no pictures: samples are compared with reconstructions, and the report says so.
    assert report["judges"]["compared_with"] == "reconstructions"
    out = capsys.readouterr().out
    assert "Frechet distance, VGG16 features" in out
    assert "8 samples against reconstructions of these examples" in out
    assert "samples are compared with reconstructions, because the data are tokens" in out
    flags = ["--config.train.steps=2", f"--config.data.source={few_digits}"]
    assert module.run(["--config", config_file, "--workdir", str(tmp_path / "b"), *flags]) == 0
    from_pixels = json.loads((tmp_path / "b" / "evaluation.json").read_text())["results"]["raw"]
    # Other epochs in training, but the validation split and its masks are the same.
    assert from_tokens["count"] == from_pixels["count"] == 30
    np.testing.assert_allclose(from_tokens["cross_entropy"], from_pixels["cross_entropy"], 0.05)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--config.masked_lm.tokenizer=",), "set masked_lm.tokenizer"),
        (("--config.masked_lm.tokenizer=/no/such",), "not the workdir of a run"),
        (("--config.masked_lm.heads=3",), "does not divide into masked_lm.heads"),
        (("--config.masked_lm.group_size=7",), "choose 1 to 6 for 6 bits"),
        (("--config.masked_lm.classes=9",), "has 10 classes, but masked_lm.classes is 9"),
        (("--config.data.source=synthetic",), "has no classes, but masked_lm.classes is 10"),
        (("--config.masked_lm.schedule=sine",), "must be one of cosine"),
        (("--config.masked_lm.mask_unit=bit",), "must be one of token, group"),
        (("--config.sampling.order=raster",), "must be one of confidence, random"),
        (("--config.masked_lm.label_dropout=2",), r"must be in \[0, 1\]"),
        (
            ("--config.masked_lm.classes=0", "--config.sampling.guidance=1"),
            "not trained with and without classes",
        ),
        (("--config.data.frames=2",), "data.frames is 2, but masked_lm.frames is 1"),
    ],
)
def test_mistakes(config_file, tmp_path, flags, said):
    with pytest.raises(UserError, match=said) as error:
        module.run(["--config", config_file, "--workdir", str(tmp_path / "w"), *flags])
    assert "\n" not in str(error.value)


def test_parameters_do_not_depend_on_how_it_is_trained(tokenizer, tmp_path):
    """Their shapes are a matter of a few keys; a run may go on with other masks."""
    mesh = make_mesh(devices=jax.devices()[:1])
    one = task_of(tokenizer, tmp_path, mesh)
    other = task_of(tokenizer, tmp_path, mesh, schedule="linear", mask_unit="group")
    shapes = [jax.tree.map(lambda a: a.shape, t.abstract_state(mesh).params) for t in (one, other)]
    assert shapes[0] == shapes[1]
    assert dataclasses.replace(one, mask_schedule="linear", mask_unit="group").model == other.model
