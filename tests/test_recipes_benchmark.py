"""`benchmarks.recipes` in small: the same crops and sizes for all, whole photographs as scores.

Oracles: settings of the paper, PSNR and schedules in closed form, optax, and the evaluation that
``bsq_jax.main`` makes by itself.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks import recipes
from benchmarks.photograph_scores import Photographs, Scores
from benchmarks.recipe_kinds import RECIPES
from benchmarks.recipes import Trainings, common_settings, main, make_rows
from benchmarks.work import Schedule, not_in_peer, schedule_of
from bsq_jax.config import default_config, finalize
from bsq_jax.core.sharding import make_mesh
from bsq_jax.data.factory import make_data_config
from bsq_jax.training.optimizer import make_schedule
from bsq_jax.training.recipes import make_recipe

SMALL = (
    *("--config.model.width=16", "--config.model.layers=1", "--config.train.batch_size=8"),
    *("--config.data.resize=96", "--config.data.eval_resize=64", "--config.data.scale=1,1"),
)


def write_steps(out, photographs, **steps):
    """What an earlier call with these photographs and `SMALL` has found of the speed."""
    asked = {"minutes": 2, "photographs": str(photographs.resolve()), "flags": list(SMALL)}
    (out / "steps.json").write_text(json.dumps({"asked": asked, "steps": steps}))


def write_photographs(folder, sizes, count=4):
    """Pictures of blurred noise: `count` in train, one of each size (height, width) in val."""
    rng = np.random.default_rng(0)
    for split, shapes in {"train": [(96, 96)] * count, "val": sizes}.items():
        (folder / split).mkdir()
        for number, (height, width) in enumerate(shapes):
            coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
            picture = coarse.resize((width, height), Image.Resampling.BICUBIC)
            picture.save(folder / split / f"{number}.png")
    return folder


@pytest.mark.smoke
def test_the_recipes_differ_in_what_they_say_alone(tmp_path):
    common = common_settings(tmp_path)
    configs = {name: each.finalized(1000, 3, common, ()) for name, each in RECIPES.items()}
    first = make_data_config(configs["ours"])
    for config in configs.values():
        assert make_data_config(config) == first  # so the crops are the same
        assert config.train.batch_size == 32
        model = config.model
        assert (model.bits, model.width, model.layers, model.heads) == (18, 128, 2, 2)
        assert (model.head_hidden, model.dtype) == (0, "float32")
    assert not_in_peer(configs["pytorch"], train=True) == []
    assert configs["pytorch"].to_json() == configs["plain"].to_json()
    assert configs["ours"].optimizer.name == "muon"
    assert (configs["ours"].loss.l2, configs["ours"].loss.perceptual) == (1, 0)
    last_third = configs["quickstart"].loss
    assert (last_third.perceptual > 0, last_third.perceptual_start) == (True, 682)
    assert (configs["ours"].quantizer.stages, configs["ours"].model.head_channels) == (3, 16)
    fsq = configs["ours_fsq"].quantizer
    assert (fsq.name, fsq.levels, fsq.stages) == ("fsq", (4,) * 9, 1)


def test_the_published_recipe_is_the_papers(tmp_path):
    """Weights, optimizer and schedule are the defaults, which tests/test_configs.py pins."""
    common, paper = common_settings(tmp_path), finalize(default_config())
    config = RECIPES["published"].finalized(1000, 0, common, ())
    for section in ("loss", "quantizer"):
        found, expected = config[section].to_dict(), paper[section].to_dict()
        found.pop("entropy_ramp_steps", None), expected.pop("entropy_ramp_steps", None)
        assert found == expected
    for key in ("name", "final", "b1", "b2", "eps", "weight_decay", "clip", "ema", "warmup_start"):
        assert config.optimizer[key] == paper.optimizer[key]
    assert config.optimizer.learning_rate == pytest.approx(4e-7 * 32)
    assert (config.optimizer.warmup_steps, config.loss.entropy_ramp_steps) == (5, 2)
    rate = RECIPES["published_rate"].finalized(1000, 0, common, ())
    assert rate.optimizer.learning_rate == 2e-3
    assert (rate.loss.perceptual, rate.loss.adversarial) == (0.1, 0.1)
    pixels = RECIPES["published_pixels"].finalized(1000, 0, common, ())
    assert (pixels.loss.perceptual, pixels.loss.adversarial) == (0, 0)
    assert (pixels.loss.l1, pixels.loss.entropy) == (1, 0.1)


def test_pytorch_is_given_our_schedule(tmp_path):
    config = RECIPES["pytorch"].finalized(300, 0, common_settings(tmp_path), ())
    schedule, ours = schedule_of(config), make_schedule(config)
    for step in (0, 1, 50, 99, 100, 101, 200, 299):
        assert schedule.rate(step) == pytest.approx(float(ours(step)), rel=1e-5)
    plain = Schedule(steps=11, peak=2.0, warmup_steps=0, warmup_start=0.1, final=0.5)
    assert (plain.rate(0), plain.rate(11)) == (2.0, 1.0)


def test_photographs_are_cut_and_put_together(tmp_path):
    folder = write_photographs(tmp_path, [(128, 128), (128, 200), (200, 140)])
    last = (*SMALL, "--config.data.eval_resize=128")
    config = RECIPES["ours"].finalized(10, 0, common_settings(folder), last)
    photographs = Photographs(config)
    sizes = [picture.shape[:2] for picture in photographs.pictures]
    assert sizes == [(128, 128), (128, 192), (128, 128)]
    assert photographs.tiles.shape == (4 + 6 + 4, 64, 64, 3)
    np.testing.assert_array_equal(photographs.tiles[6], photographs.pictures[1][:64, 128:])
    np.testing.assert_array_equal(photographs.tiles[7], photographs.pictures[1][64:, :64])
    for made, picture in zip(
        photographs.assembled(photographs.tiles), photographs.pictures, strict=True
    ):
        np.testing.assert_array_equal(made, picture)


def test_scores_are_means_over_photographs():
    grey = [np.full((64, 64, 3), 100, np.uint8), np.full((64, 128, 3), 100, np.uint8)]
    off = [grey[0] + np.uint8(1), grey[1] + np.uint8(10)]
    found = Scores()(grey, off)
    assert found["psnr"] == pytest.approx(20 * np.log10(255) - 10, rel=1e-5)  # of 0 and 20 dB less
    same = Scores()(grey, grey)
    assert (same["psnr"], same["ssim"], same["lpips"]) == (100.0, pytest.approx(1), 0.0)


def test_rows_are_means_over_seeds():
    found = [
        {"recipe": "ours", "seed": seed, "steps": 60, "seconds": 2.0, "parameters": 7}
        | {"psnr": 25.0 + seed, "ssim": 0.5, "lpips": 0.25}
        for seed in (0, 2)
    ]
    assert make_rows(["ours", "plain"], found) == [
        {
            **{"recipe": "ours", "seeds": 2, "parameters": 7, "steps": 60, "minutes": "2.00"},
            **{"PSNR": "26.00", "its range": "25.00 to 27.00", "SSIM": "0.500", "LPIPS": "0.250"},
        }
    ]


def test_speed_is_the_median_between_logged_steps(tmp_path, monkeypatch):
    """Stand-in for trainings: steps of 0.5 s, slower ones in the first round and at its start."""
    asked = []

    def run(module, *words):
        asked.append((words[1], words[-2:]))
        workdir, slow = words[3], 4 if len(asked) == 1 else 1
        workdir.mkdir(parents=True)
        steps = [{"prefix": "train", "step": 5, "time": -100.0}]
        steps += [{"prefix": "train", "step": n, "time": slow * n / 2} for n in (20, 30, 40)]
        (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, steps)))

    monkeypatch.setattr(recipes, "run", run)
    trainings = Trainings(tmp_path, tmp_path, "", ["--config.data.resize=96"])
    found = trainings.measure_speed(["ours", "plain"], 3)
    assert found == {"ours": 0.5, "plain": 0.5}
    configs = [RECIPES[name].config for name in ("ours", "plain")] * 3  # in turn
    last = ("--config.data.resize=96", "--config.train.log_every=5")
    assert asked == [(config, last) for config in configs]


def test_crops_are_those_that_training_takes(tmp_path):
    folder = write_photographs(tmp_path, [(64, 64)])
    trainings = Trainings(tmp_path, folder, "", SMALL)
    trainings.write_crops(tmp_path / "crops", trainings.config(RECIPES["pytorch"], 3, 5))
    crops = np.fromfile(tmp_path / "crops", np.uint8).reshape(3, 8, 1, 64, 64, 3)
    config = trainings.config(RECIPES["ours"], 1000, 5)
    batches = make_recipe(config, tmp_path / "run", make_mesh()).batches(0, 0, 1)
    for expected in crops:
        np.testing.assert_array_equal(next(batches)["pixels"], expected)
    batches.close()


def test_it_trains_and_measures(tmp_path, monkeypatch, capsys):
    """One tile is one photograph here, so the run's own evaluation has the same mean."""
    folder = write_photographs(tmp_path, [(64, 64)] * 3)
    out = tmp_path / "out"
    out.mkdir()
    write_steps(out, folder, ours=4)
    flags = ["--photographs", folder, "--seeds", 5, "--recipes", "ours", "pytorch"]
    flags += ["--torch-python", "", "--out", out, "--json", tmp_path / "found.json", *SMALL]
    main(list(map(str, flags)))
    assert "no comparison with PyTorch: not asked for" in capsys.readouterr().out
    written = json.loads((tmp_path / "found.json").read_text())
    assert [row["recipe"] for row in written["rows"]] == ["ours"]
    (training,) = written["settings"]["trainings"]
    config = json.loads((out / "ours_5" / "config.json").read_text())
    assert (config["seed"], config["train"]["steps"]) == (5, 4)
    own = json.loads((out / "ours_5" / "evaluation.json").read_text())["results"]["ema"]
    assert training["psnr"] == pytest.approx(own["psnr"], abs=1e-3)
    assert training["ssim"] == pytest.approx(own["ssim"], abs=1e-4)

    monkeypatch.setattr(recipes, "run", None)  # what has been measured is not trained again
    main(list(map(str, flags)))
    with pytest.raises(SystemExit):
        main(list(map(str, [*flags, "--minutes", 3])))
    assert "has trainings with other flags: name another --out" in capsys.readouterr().err


def test_a_failed_training_is_left_out(tmp_path, monkeypatch, capsys):
    folder = write_photographs(tmp_path, [(64, 64)])
    write_steps(tmp_path, folder, ours=4, plain=4)
    done = {"recipe": "plain", "seed": 0, "steps": 4, "seconds": 1.0, "parameters": 7}
    done |= {"psnr": 25.0, "ssim": 0.5, "lpips": 0.25}
    (tmp_path / "plain_0.json").write_text(json.dumps(done))
    failing = "import sys; sys.exit(3)"
    monkeypatch.setattr(
        recipes, "run", lambda *_: subprocess.run([sys.executable, "-c", failing], check=True)
    )
    flags = ["--photographs", folder, "--seeds", 0, "--recipes", "ours", "plain", "--out", tmp_path]
    flags += ["--torch-python", ""]
    main(list(map(str, [*flags, *SMALL])))
    printed = capsys.readouterr().out
    assert "ours, seed 0: left out, the training failed" in printed
    assert printed.splitlines()[-1].split()[:2] == ["plain", "1"]
