"""Data without any variation, with everything on that divides by it: nothing becomes infinite."""

import json

import chex
import numpy as np
import pytest
import tiny
from PIL import Image

from bsq_jax.config import finalize
from bsq_jax.core.errors import UserError
from bsq_jax.training import train_run
from bsq_jax.training.workdir import open_checkpoints


def folder_of(path, count):
    path.mkdir()
    for number in range(count):
        Image.new("RGB", (16, 16)).save(path / f"{number:02d}.png")
    return path


def config_of(folder, **train):
    """Both players, adaptive weight, LeCAM, R1 and the perceptual loss, in bfloat16."""
    config = tiny.get_config()
    config.model.dtype = "bfloat16"
    config.loss.update(
        perceptual=0.1, adversarial=0.1, adaptive=True, lecam=0.01, lecam_decay=0.9, r1_every=2
    )
    config.discriminator.update(channel_base=64, channel_max=4)
    config.data.source = f"folder:{folder}"
    config.eval.update(frechet=True, pictures=1)
    config.train.update({"steps": 4, "batch_size": 8, "checkpoint_every": 100, **train})
    return finalize(config)


def test_identical_black_pictures(tmp_path, capsys):
    workdir = tmp_path / "run"
    config = config_of(folder_of(tmp_path / "black", 8))
    config.unlock()
    config.data.val_source = f"folder:{folder_of(tmp_path / 'others', 8)}"
    assert train_run.train(config, workdir) == 0
    assert "PSNR" in capsys.readouterr().out
    report = json.loads((workdir / "evaluation.json").read_text())
    for result in report["results"].values():
        numbers = [value for value in result.values() if isinstance(value, float)]
        assert np.isfinite(numbers).all(), result
        assert 0 <= result["frechet_vgg16"] < 1e4  # of sets without any variance
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["prefix"] == "train"] == [1, 2, 3, 4]
    for line in lines:  # what is not finite is null
        assert None not in line.values(), line
    assert {"lecam", "r1", "adversarial_weight", "perceptual"} <= lines[0].keys()
    with open_checkpoints(workdir) as checkpoints:
        _, state, _ = checkpoints.restore_partial(["params", "ema", "opt_state", "adversary"])
    chex.assert_tree_all_finite(state)


@pytest.mark.parametrize("count", [1, 2])
def test_one_and_two_pictures(tmp_path, capsys, count):
    """One cannot be divided; of two, one is validated, which has no Frechet distance."""
    workdir, folder = tmp_path / "run", folder_of(tmp_path / "black", count)
    config = config_of(folder, steps=2)
    config.unlock()
    config.loss.update(perceptual=0.0, adversarial=0.0)  # of these the test above
    if count == 1:
        with pytest.raises(UserError, match=r"too few pictures \(1\) to divide") as raised:
            train_run.train(config, workdir)
        assert "\n" not in str(raised.value)
        return
    assert train_run.train(config, workdir) == 0
    out = capsys.readouterr().out
    assert "VGG16 Frechet distance needs at least 2 frames" in out
    report = json.loads((workdir / "evaluation.json").read_text())
    assert "frechet_vgg16" not in report["results"]["raw"]
