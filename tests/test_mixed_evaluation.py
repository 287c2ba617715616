"""Evaluation on several sizes. Oracle: a loop over pictures, each measured by itself in NumPy."""

import functools
import json

import chex
import jax
import numpy as np
import pytest
from PIL import Image
from shapes import data_config

from bsq_jax.core.sharding import batch_shards, jit_on, make_mesh, replicated
from bsq_jax.data.eval_pipeline import eval_batches, eval_examples
from bsq_jax.data.size_buckets import name
from bsq_jax.evaluation.comparison_pictures import KeptExamples, examples_picture
from bsq_jax.evaluation.frame_metrics import FrameMetrics, MeansBySize
from bsq_jax.evaluation.loop import EvaluationLoop, Validation
from bsq_jax.evaluation.metric import NetworkSettings
from bsq_jax.evaluation.tokenizer_table import tokenizer_table

SIZES = ((16, 16), (8, 24), (24, 16))
SHAPES = [(16, 16)] * 5 + [(8, 24)] * 4 + [(24, 16)] * 2


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in SHAPES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pictures):
    path = tmp_path_factory.mktemp("pictures")
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(path / f"{(7 * number) % 11:02d}.png")
    return path


def psnr(picture):
    """Of a picture without its lowest four bits."""
    error = np.mean((picture.astype(np.float64) - picture // 16 * 16) ** 2)
    return 10 * np.log10(255**2 / error)


@pytest.mark.parametrize("devices", [1, 4])
def test_every_picture_weighs_the_same_whatever_its_size(folder, pictures, devices):
    mesh = make_mesh(devices=jax.devices()[:devices])
    data = data_config(
        source="synthetic", val_source=f"folder:{folder}", image_size=16, resize=16,
        eval_resize=16, eval_crop="bucket", sizes=SIZES,
    )  # fmt: skip
    examples = eval_examples(data)
    assert examples.used_crops() == SIZES
    batches = functools.partial(eval_batches, data, examples=examples, multiple=batch_shards(mesh))
    loop = EvaluationLoop(Validation(batches, 1, len(examples.records)), mesh, 4)
    frames = FrameMetrics(NetworkSettings(), mesh, clip=(1, 8, 16), patch=8)
    assert [metric.row.key for metric in frames.metrics] == ["psnr"]
    assert [note.metric for note in frames.notes] == ["ssim", "ms_ssim"]
    run = jit_on(mesh, lambda x: (x, x // 16 * 16), out_shardings=replicated(mesh))

    def compute(batch):
        pixels, made = run(batch["pixels"])
        metrics = frames(batch["pixels"], made)
        return {"pixels": pixels, "reconstruction": made, "metrics": metrics}

    kept = KeptExamples(6, 11, spaced=True)
    by_size = MeansBySize(frames, clips=False)
    result = loop(compute, [frames.new_means(clips=False), by_size, kept])
    alone = np.array([psnr(picture) for picture in pictures])
    np.testing.assert_allclose(result["psnr"], alone.mean(), rtol=1e-5)
    assert result["count"] == 11
    wanted = {}
    for size in SIZES:
        mine = alone[[shape == size for shape in SHAPES]]
        wanted[name(size)] = {"count": len(mine), "psnr": mine.mean()}
    chex.assert_trees_all_close(result["by_size"], wanted, rtol=1e-5)
    assert list(result["by_size"]) == ["16x16", "8x24", "24x16"]
    shown = kept.kept()
    assert shown.originals.shape == (6, 1, 24, 24, 3)
    for clip in shown.originals[:, 0]:  # white where there is no picture
        inside = [size for size in SIZES if (clip[size[0] :] == 255).all()
                  and (clip[:, size[1] :] == 255).all()]  # fmt: skip
        cut = [clip[: size[0], : size[1]] for size in inside]
        assert any(np.array_equal(one, picture) for one in cut for picture in pictures)
    assert examples_picture(shown, 8).dtype == np.uint8


def test_a_single_size_has_no_table_of_its_own(folder):
    mesh = make_mesh(devices=jax.devices()[:1])
    frames = FrameMetrics(NetworkSettings(), mesh, clip=(1, 16, 16), patch=8)
    assert MeansBySize(frames, clips=False).result() == {}


def test_the_table_has_a_column_for_each_size():
    by_size = {"16x16": {"count": 5, "psnr": 20.0}, "8x24": {"count": 4, "psnr": 25.0}}
    report = {
        "name": "x", "step": 7, "notes": [], "judges": {},
        "oracle": {"name": "one color per patch", "psnr": 19.0},
        "results": {"raw": {"psnr": 22.2, "tokens": 32, "by_size": by_size}},
        "measured": {
            "source": "photos", "split": "val", "count": 9, "unreadable": [], "frames": 1,
            "shorter": 0, "stride": 1, "image_size": [16, 16], "sizes": [[16, 16], [8, 24]],
            "resize": "resized to cover the crop, lanczos", "crop": "bucket", "stages": 1,
            "codes": 64, "dtype": "float32",
        },
    }  # fmt: skip
    text = tokenizer_table(json.loads(json.dumps(report)))
    rows = [line.split() for line in text.splitlines()]
    assert ["by", "size", "16x16", "8x24"] in rows
    assert ["count", "5", "4"] in rows
    assert ["PSNR", "(dB)", "20.00", "25.00"] in rows
    assert "x, step 7: 9 crops of 2 sizes (bucket) from photos (val), resized to cover" in text
