"""Training priors, and token sets. Oracles: numpy, one device, the tokenizer itself, messages."""

import dataclasses
import functools
import json
import pathlib
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from one_step import one_step
from shapes import data_config

from bsq_jax import Codec, cli
from bsq_jax import main as module
from bsq_jax.config import finalize
from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import make_mesh
from bsq_jax.data.eval_pipeline import eval_batches
from bsq_jax.data.tokens import read_description, token_batches
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.media.pictures import save_png
from bsq_jax.training.recipes.prior import PriorRecipe
from bsq_jax.training.saved_models import read_saved_config, with_tokenizer

TINY = str(pathlib.Path(__file__).parent / "tiny.py")
# Of a tokenizer all of whose patterns of bits name codes.
batches_of = functools.partial(
    token_batches, names_code=lambda bits: np.ones(bits.shape[:-1], bool)
)
PRIOR = """
import tiny

def get_config(argument=""):
    return tiny.get_prior("{tokenizer}", **{changes})
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The workdir of a tokenizer that can do with three of its six bits."""
    workdir = tmp_path_factory.mktemp("prior") / "tokenizer"
    flags = ["--config.train.steps=2", "--config.model.min_bits=3"]
    assert module.run(["--config", TINY, "--workdir", str(workdir), *flags]) == 0
    return workdir


@pytest.fixture(scope="module")
def config_file(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "prior.py"
    path.write_text(PRIOR.format(tokenizer=tokenizer, changes={}))
    return str(path)


@pytest.fixture(scope="module")
def trained(config_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "prior"
    assert module.run(["--config", config_file, "--workdir", str(workdir)]) == 0
    return workdir


def recipe_of(tokenizer, workdir, mesh, **changes):
    config = tiny.get_prior(tokenizer)
    for key, value in changes.items():
        config.train[key] = value
    return PriorRecipe(finalize(with_tokenizer(config, workdir)), workdir, mesh)


def batch_of(time, seed=0):
    drawn = np.random.default_rng(seed)
    pixels = drawn.integers(0, 256, (8, time, 16, 16, 3), np.uint8)
    return {"pixels": pixels, "frames": np.array([time, 1, time, 2] * 2, np.int32)}


@pytest.mark.smoke
@pytest.mark.usefixtures("eight_devices")
def test_a_step_is_the_same_on_any_mesh(tokenizer, tmp_path):
    batch = batch_of(2)
    meshes = make_mesh(devices=jax.devices()[:1]), make_mesh(data=2, fsdp=4)
    found = [one_step(recipe_of(tokenizer, tmp_path, mesh).task, mesh, batch) for mesh in meshes]
    (params, watched), (others, watched_there) = found
    np.testing.assert_allclose(watched["loss"], watched_there["loss"], rtol=1e-6)
    norms = [float(values["gradient_norm"]) for _, values in found]
    np.testing.assert_allclose(*norms, rtol=1e-4)
    chex.assert_trees_all_equal_shapes_and_dtypes(params, others)
    chex.assert_tree_all_finite(params)


def test_evaluation_measures_the_cost_of_each_frame(tokenizer, tmp_path):
    mesh = make_mesh(devices=jax.devices()[:1])
    task, batch = recipe_of(tokenizer, tmp_path, mesh).task, batch_of(2)
    measured = jax.jit(task.evaluate_step)(
        task.init_state(mesh).params, {"pixels": batch["pixels"]}, task.load_frozen(mesh)
    )
    chex.assert_tree_all_finite(measured)
    chex.assert_shape([measured["bits"], measured["logits"]], (8, 2, 2, 2, 6))
    bits = Tokenizer.load(tokenizer).encode(batch["pixels"].reshape(16, 16, 16, 3))
    np.testing.assert_array_equal(measured["bits"].reshape(16, 2, 2, 6), bits)
    signs = 2.0 * np.asarray(measured["bits"]) - 1
    cost = bits_of(measured["logits"], signs).sum(axis=(2, 3, 4))
    np.testing.assert_allclose(measured["cost"], cost, rtol=1e-5)
    assert 0.8 < cost.mean() / 24 < 1.3  # a fresh prior knows nothing


def bits_of(logits, signs):
    """What each sign costs in bits, by integer logits of 1/64 nat, in float64."""
    return np.log2(1 + np.exp(-signs * np.asarray(logits, np.float64) / 64))


def test_the_loss_is_the_cost_of_the_kept_bits_of_real_frames(tokenizer, tmp_path):
    """Of a tokenizer whose clips keep three to all of their six bits; in micro-batches too."""
    mesh = make_mesh(devices=jax.devices()[:1])
    task, batch = recipe_of(tokenizer, tmp_path, mesh).task, batch_of(2)
    kept = np.asarray(task.kept_bits(8, jnp.int32(0)))
    assert 3 <= kept.min() < kept.max() == 6
    there = np.arange(6) < kept[:, None]
    bits = Tokenizer.load(tokenizer).encode(batch["pixels"].reshape(16, 16, 16, 3))
    there = there[:, None, None, None]
    signs = (2.0 * bits.reshape(8, 2, 2, 2, 6) - 1) * there
    params = task.init_state(mesh).params
    logits = jax.jit(task.model.apply)({"params": params}, np.float32(signs))
    real = np.arange(2) < batch["frames"][:, None]
    counted = np.broadcast_to(there & real[:, :, None, None, None], signs.shape)
    _, watched = one_step(task, mesh, batch)
    chex.assert_tree_all_finite(watched)
    wanted = bits_of(logits, signs)[counted].mean()
    np.testing.assert_allclose(watched["loss"], wanted, rtol=1e-5)
    np.testing.assert_allclose(watched["saved"], 1 - wanted, atol=1e-5)
    _, in_parts = one_step(dataclasses.replace(task, accumulate=4), mesh, batch)
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(in_parts[name], watched[name], rtol=1e-4)


def test_it_learns(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] - 0.02
    result = json.loads((trained / "evaluation.json").read_text())["results"]["raw"]
    assert result["raw_bits"] == result["frames"] * 4 * 6
    assert abs(8 * result["coded_bytes"] - result["entropy_bits"]) < 0.01 * result["raw_bits"] + 64
    assert result["saved"] == 1 - 8 * result["coded_bytes"] / result["raw_bits"]


def test_the_log_says_how_many_pictures_and_whether_they_are_the_tokenizers(
    tokenizer, config_file, tmp_path, capsys
):
    for number in range(24):
        save_png(tmp_path / "own" / f"{number}.png", np.full((16, 16, 3), number, np.uint8))
    words = ["--config", config_file, "--config.train.steps=1"]
    own = f"folder:{tmp_path / 'own'}"
    flags = ["--workdir", str(tmp_path / "a"), f"--config.data.source={own}"]
    assert module.run([*words, *flags]) == 0
    said = capsys.readouterr().err
    (line,) = (line for line in said.splitlines() if line.startswith("data: "))
    counts = [int(word) for word in line.replace(",", "").split() if word.isdigit()]
    assert sum(counts) == 24
    assert line == f"data: {counts[0]} records of {own} to train, {counts[1]} to validate"
    assert f"the tokenizer's data.source is synthetic, that of this model {own}: set" in said
    assert module.run([*words, "--workdir", str(tmp_path / "b")]) == 0
    assert "the tokenizer's data.source" not in capsys.readouterr().err


def test_the_workdir_holds_its_tokenizer(trained, tokenizer, tmp_path, capsys):
    inside, outside = Tokenizer.load(trained / "tokenizer"), Tokenizer.load(tokenizer)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    np.testing.assert_array_equal(inside.encode(pixels), outside.encode(pixels))
    with pytest.raises(UserError, match="holds a prior; its tokenizer is in"):
        Tokenizer.load(trained)
    # Another tokenizer in its old place changes nothing, and training goes on.
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    config = json.loads((copy / "config.json").read_text())
    config["prior"]["tokenizer"] = str(tmp_path / "gone")
    (copy / "config.json").write_text(json.dumps(config))
    assert module.run(["--workdir", str(copy), "--config.train.steps=7"]) == 0
    assert "resuming at step 6" in capsys.readouterr().err
    assert module.run(["--mode", "evaluate", "--workdir", str(copy)]) == 0
    assert "arithmetic coder" in capsys.readouterr().out
    shutil.rmtree(copy / "tokenizer")
    config["prior"]["tokenizer"] = str(tokenizer)
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="tokenizer is missing"):
        module.run(["--workdir", str(copy), "--config.train.steps=8"])


@pytest.mark.parametrize("order", ["raster", "grids"])
def test_a_prior_with_a_reach_trains_and_codes_grids_of_any_size(config_file, tmp_path, order):
    """A reach of 1x1, from the command line; costs are those of the logits, files come back."""
    flags = ["--config.prior.reach=1", f"--config.prior.order={order}", "--config.train.steps=4"]
    workdir = tmp_path / "w"
    assert module.run(["--config", config_file, "--workdir", str(workdir), *flags]) == 0
    result = json.loads((workdir / "evaluation.json").read_text())["results"]["raw"]
    assert result["raw_bits"] == result["frames"] * 4 * 6
    assert result["raw_bpp"] == 6 / 64
    assert abs(8 * result["coded_bytes"] - result["entropy_bits"]) < 0.01 * result["raw_bits"] + 64
    recipe = PriorRecipe(read_saved_config(workdir), workdir, make_mesh(devices=jax.devices()[:1]))
    task = recipe.task
    state = task.init_state(make_mesh(devices=jax.devices()[:1]))
    bits = np.random.default_rng(0).integers(0, 2, (2, 3, 5, 4, 6), np.uint8)
    measured = jax.jit(task.evaluate_step)(state.params, {"bits": bits}, {})
    signs = 2.0 * bits - 1
    cost = bits_of(measured["logits"], signs).sum(axis=(2, 3, 4))
    np.testing.assert_allclose(measured["cost"], cost, rtol=1e-5)
    codec = Codec.load(workdir)
    for size in ((16, 16), (40, 24)):
        frames = np.random.default_rng(1).integers(0, 256, (1, *size, 3), np.uint8)
        decoded = codec.decode(codec.encode(frames)).frames
        np.testing.assert_array_equal(
            decoded, codec.decode(codec.encode(frames, mode="raw")).frames
        )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--config.prior.tokenizer=",), "set prior.tokenizer"),
        (("--config.prior.tokenizer=/no/such",), "not the workdir of a run"),
        (("--config.prior.heads=3",), "prior.heads 3"),
        (("--config.prior.order=spiral",), "must be one of raster, grids"),
        (("--config.data.source=tokens:/no/such",), "make one with python -m bsq_jax tokenize"),
    ],
)
def test_mistakes(config_file, tmp_path, flags, said):
    with pytest.raises(UserError, match=said):
        module.run(["--config", config_file, "--workdir", str(tmp_path / "w"), *flags])


def test_a_prior_is_no_tokenizer(trained, config_file, tmp_path):
    with pytest.raises(UserError, match="holds a prior, not a tokenizer"):
        module.run(
            ["--config", config_file, "--workdir", str(tmp_path), "--config.prior.tokenizer",
             str(trained)]
        )  # fmt: skip


# --- token sets ---


@pytest.fixture(scope="module")
def tokens(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens") / "set"
    flags = ["--model", str(tokenizer), "--examples", "24", "--quiet"]
    assert cli.main(["tokenize", str(folder), *flags]) == 0
    return folder


def test_a_token_set_holds_what_the_tokenizer_makes(tokens, tokenizer):
    described = read_description(tokens)
    data = data_config(source="synthetic", image_size=16, resize=16, eval_resize=16, threads=0)
    alone = {"global_batch": 8, "shard_index": 0, "shard_count": 1}
    count = 0
    batches = batches_of(described, "val", data, **alone)
    for pixels, bits in zip(eval_batches(data, **alone), batches, strict=True):
        wanted = Tokenizer.load(tokenizer).encode(pixels["pixels"])
        real = pixels["mask"] > 0
        np.testing.assert_array_equal(bits["mask"], pixels["mask"])
        np.testing.assert_array_equal(bits["bits"][real], wanted[real])
        count += int(real.sum())
    assert count == described.counts["val"]
    first = next(batches_of(described, "train", data, **alone))
    assert first["bits"].shape == (8, 1, 2, 2, 6)
    halves = [
        next(batches_of(described, "train", data, global_batch=8, shard_index=i, shard_count=2))
        for i in range(2)
    ]
    joined = np.concatenate([half["bits"] for half in halves])
    np.testing.assert_array_equal(joined, first["bits"])


def test_training_from_a_token_set(tokens, config_file, tokenizer, tmp_path, capsys):
    flags = [f"--config.data.source=tokens:{tokens}", "--config.train.steps=2"]
    workdir = tmp_path / "w"
    # Not how this set was made, nor read by a run on it: the report must not say so.
    unread = ["--config.data.eval_resize=99", "--config.data.eval_crop=tiles"]
    assert module.run(["--config", config_file, "--workdir", str(workdir), *flags, *unread]) == 0
    report = json.loads((workdir / "evaluation.json").read_text())
    assert report["results"]["ema"]["frames"] == read_description(tokens).counts["val"]
    assert report["measured"] == {
        **{"source": f"tokens:{tokens}", "made_from": "synthetic", "image_size": [16, 16]},
        **{"resize": 16, "crop": "center", "frames": 1, "stride": 1},
    }
    said = f"16x16 (center) from tokens:{tokens} (val), made from synthetic, short side to 16"
    assert said in capsys.readouterr().out
    with pytest.raises(UserError, match=r"data\.val_source=photos .* data\.source=tokens:"):
        module.run(
            ["--config", config_file, "--workdir", str(tmp_path / "x"), *flags,
             "--config.data.val_source=photos"]
        )  # fmt: skip


def test_damaged_and_foreign_token_sets(tokens, config_file, trained, tmp_path):
    def run(folder):
        flags = [f"--config.data.source=tokens:{folder}", "--config.train.steps=1"]
        module.run(["--config", config_file, "--workdir", str(tmp_path / "w"), *flags])

    copy = tmp_path / "set"
    shutil.copytree(tokens, copy)
    text = (copy / "tokens.json").read_text()
    for old, new, said in (
        (
            read_description(tokens).model,
            "0" * 64,
            r"another tokenizer \(step 2 of \w+, 0{16}\) than",
        ),
        ('"version": 2', '"version": 1', "not of this version"),
        ('"bits"', '"bots"', "is damaged"),
        ('"train": 24', '"train": 25', "holds 24 clips, not the 25"),
    ):
        (copy / "tokens.json").write_text(text.replace(old, new))
        with pytest.raises(UserError, match=said):
            run(copy)
    swapped = json.loads(text) | {"grid": [4, 1]}  # as many tokens
    (copy / "tokens.json").write_text(json.dumps(swapped))
    with pytest.raises(UserError, match=r"6 bits in 4x1 \(rows x columns\).* of 6 in 2x2"):
        run(copy)
    (copy / "tokens.json").write_text(text)
    (copy / "train.array_record").write_bytes(b"nothing")
    with pytest.raises(UserError, match="tokenize again"):
        run(copy)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--examples", "-1"), "--examples -1"),
        (("--config.data.sorce=x",), "did you mean data.source"),
        (("--what",), "unknown flag --what"),
    ],
)
def test_tokenize_mistakes(tokenizer, tmp_path, capsys, words, said):
    assert cli.main(["tokenize", str(tmp_path / "x"), "--model", str(tokenizer), *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_tokenize_overwrites_only_when_told(tokens, tokenizer, capsys):
    assert cli.main(["tokenize", str(tokens), "--model", str(tokenizer)]) == 2
    assert "--force" in capsys.readouterr().err


def test_a_set_that_is_not_finished_leaves_the_one_before(tokens, tokenizer, tmp_path, capsys):
    folder, broken = tmp_path / "set", tmp_path / "broken"
    shutil.copytree(tokens, folder)
    broken.mkdir()
    for number in range(3):
        (broken / f"{number}.png").write_bytes(b"no picture")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    words = [str(folder), "--force", "--model", str(tokenizer), "--examples", "9", "--quiet"]
    assert cli.main(["tokenize", *words, f"--config.data.val_source=folder:{broken}"]) == 2
    assert "broken" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert cli.main(["tokenize", *words]) == 0
    assert read_description(folder).counts == {"train": 9, "val": 64}
    assert {path.name for path in folder.iterdir()} == set(before)


def test_a_set_of_pictures_has_one_frame_and_classes_of_training(tokenizer, tmp_path):
    for place, names in (("tr", ("cat", "dog", "fish")), ("va", ("dog", "fish"))):
        for name in names:
            picture = np.full((16, 16, 3), 99, np.uint8)
            save_png(tmp_path / place / name / "0.png", picture)
    data = {"source": "tr", "val_source": "va"}
    flags = [f"--config.data.{key}=folder:{tmp_path}/{place}" for key, place in data.items()]
    words = [str(tmp_path / "set"), "--model", str(tokenizer), "--quiet"]
    assert cli.main(["tokenize", *words, "--config.data.frames=5", *flags]) == 0
    described = read_description(tmp_path / "set")
    assert (described.frames, described.made["frames"]) == (1, 1)
    assert described.classes == ("cat", "dog", "fish")
    asked = data_config(labels=True, threads=0)
    alone = {"global_batch": 2, "shard_index": 0, "shard_count": 1}
    (batch,) = batches_of(described, "val", asked, **alone)
    assert batch["label"].tolist() == [1, 2]
