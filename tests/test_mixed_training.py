"""Runs on mixed sizes, from pictures of any size. Oracle: the same run without a break."""

import json
import pathlib

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from bsq_jax import main
from bsq_jax.training.workdir import open_checkpoints

TINY = str(pathlib.Path(__file__).parent / "tiny.py")
SHAPES = [(20, 20), (24, 24), (10, 22), (9, 16), (1, 1), (1, 6000), (6000, 100), (30, 20)]
FLAGS = (
    *("--config.data.sizes=16x16,8x16", "--config.data.eval_crop=bucket"),
    *("--config.model.positions=sincos", "--config.optimizer.ema=0", "--config.data.threads=2"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (path / split).mkdir()
        for number, shape in enumerate(SHAPES):
            picture = Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8))
            picture.save(path / split / f"{number}.png")
    return path


def run(folder, workdir, steps, *more):
    words = ["--config", TINY, "--workdir", str(workdir), *FLAGS, *more]
    words += [f"--config.data.source=folder:{folder}", f"--config.train.steps={steps}"]
    assert main.run(words) == 0
    with open_checkpoints(workdir) as checkpoints:
        (path,) = (workdir / "checkpoints").glob(str(checkpoints.latest_step()))
        meta = checkpoints.read_meta()
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return path, meta, [line for line in lines if line["prefix"] == "train"]


def test_a_run_resumes_at_the_right_size_and_examples(folder, tmp_path, capsys):
    _, meta, whole = run(folder, tmp_path / "whole", 5)
    said = capsys.readouterr()
    assert meta["batch_sizes"] == [[0, 8, jax.device_count()]] or jax.device_count() == 1
    assert "training programs: 2 (2 sizes)" in said.err
    assert f"sizes of folder:{folder}/train: 16x16 (5 records, 8 a step), 8x16" in said.err
    assert "by size" in said.out
    run(folder, tmp_path / "parts", 2)
    _, _, parts = run(folder, tmp_path / "parts", 5)
    rates = ("images_per_second", "tokens_per_second", "data_wait", "tflops_per_device", "time")
    for one, other in zip(whole, parts, strict=True):
        kept = [{k: v for k, v in line.items() if k not in rates} for line in (one, other)]
        chex.assert_trees_all_equal(*kept)
    report = json.loads((tmp_path / "whole" / "evaluation.json").read_text())
    assert report["measured"]["sizes"] == [[16, 16], [8, 16]]
    by_size = report["results"]["raw"]["by_size"]
    assert {name: of["count"] for name, of in by_size.items()} == {"16x16": 5, "8x16": 3}
    mean = sum(of["count"] * of["psnr"] for of in by_size.values()) / 8
    np.testing.assert_allclose(report["results"]["raw"]["psnr"], mean, rtol=1e-6)
    # With another number of steps and batch size the same workdir goes on.
    _, meta, _ = run(folder, tmp_path / "parts", 6, "--config.train.batch_size=16")
    assert [part[:2] for part in meta["batch_sizes"]] == [[0, 8], [5, 16]]
    assert "the data of each go on after the examples seen so far" in capsys.readouterr().err
