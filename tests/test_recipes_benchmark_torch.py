"""A whole training in plain PyTorch for `benchmarks.recipes`.

Oracles: weights that never move, and the best single color.
"""

import dataclasses
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks.peer import Peer, torch_command  # noqa: E402
from benchmarks.recipe_kinds import RECIPES  # noqa: E402
from benchmarks.recipes import Trainings  # noqa: E402
from benchmarks.torch_tokenizer import TorchTokenizer  # noqa: E402
from benchmarks.torch_training import TrainingStep, initialize, train  # noqa: E402
from benchmarks.work import Schedule, Work  # noqa: E402

from test_recipes_benchmark import SMALL, write_photographs  # isort: skip # noqa: E402

pytestmark = pytest.mark.torch
WORK = Work(8, 16, 16, channels=32, layers=1, heads=2, mlp=64, bits=8, head=0, train=True)
WORK = dataclasses.replace(WORK, loss="l2", entropy=0.0, clip="global", ema=0.9)


def schedule(steps, peak=5e-3):
    return Schedule(steps=steps, peak=peak, warmup_steps=5, warmup_start=0.1, final=0.01)


def write_flat(folder, count):
    """Files of pictures of one color each: ``count`` for training, 4 others."""
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, (count + 4, 1, 1, 3), np.uint8)
    pixels = np.broadcast_to(colors, (count + 4, 16, 16, 3))
    (folder / "crops").write_bytes(pixels[4:].tobytes())
    (folder / "pictures").write_bytes(pixels[:4].tobytes())
    (folder / "made").write_bytes(bytes(pixels[:4].size))
    names = ("crops", "pictures")
    files = {name: str(folder / name) for name in names}
    return pixels[:4], files | {"reconstructions": str(folder / "made")}


def test_it_learns_colors(tmp_path):
    pictures, files = write_flat(tmp_path, 8 * 150)
    found = train(WORK, schedule(150), seed=0, **files)
    made = np.fromfile(tmp_path / "made", np.uint8).reshape(pictures.shape)
    error = np.square(np.float64(made) - pictures).mean()
    assert error < 0.5 * np.var(pictures, axis=(0, 1, 2)).mean()  # that of the best single color
    assert found["seconds"] > 0
    assert found["parameters"] == sum(x.numel() for x in TorchTokenizer(WORK).parameters())


def test_the_seed_decides_and_the_rate_moves(tmp_path):
    made = []
    for seed, peak in ((0, 0.0), (0, 0.0), (1, 0.0), (0, 5e-3)):
        _, files = write_flat(tmp_path, 8 * 4)
        train(WORK, schedule(4, peak), seed=seed, **files)
        made.append((tmp_path / "made").read_bytes())
    assert made[0] == made[1]
    assert made[0] != made[2]
    assert made[0] != made[3]


def test_weights_begin_as_published():
    torch.manual_seed(0)
    model = TorchTokenizer(dataclasses.replace(WORK, channels=128, mlp=512))
    initialize(model)
    weight = model.encoder.blocks[0].up.weight
    assert weight.abs().max() <= 0.04
    # The deviation of a normal distribution that is cut at two of its own.
    assert weight.std().item() == pytest.approx(0.02 * 0.8796, rel=0.02)
    assert not model.encoder.blocks[0].up.bias.any()


def test_the_average_follows_as_ours():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 1.0)
    step = TrainingStep(dataclasses.replace(WORK, ema=0.99, weight_decay=0.0), model)
    expected, average = [1.0], 1.0
    step.set_rate(0.1)
    for number in range(3):
        step(lambda: model.weight.sum())
        expected.append(model.weight.item())
        keep = min(0.99, (1 + number) / (10 + number))
        average = keep * average + (1 - keep) * expected[-1]
    step.use_average()
    assert model.weight.item() == pytest.approx(average, rel=1e-6)
    assert expected[-1] == pytest.approx(0.7, abs=1e-3)  # Adam goes one rate a step


def test_the_process_trains_a_recipe(tmp_path):
    folder = write_photographs(tmp_path, [(64, 64)])
    trainings = Trainings(tmp_path, folder, sys.executable, SMALL)
    tiles = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    found, made = trainings.pytorch(RECIPES["pytorch"], 4, 0, tiles)
    assert made.shape == tiles.shape
    assert made.std() > 0
    assert found["seconds"] > 0
    found, made = trainings.pytorch(RECIPES["pytorch"], 4, 0)  # the speed alone
    assert (found["seconds"] > 0, made.size) == (True, 0)


def test_a_mistake_in_the_process_is_told(tmp_path):
    peer = Peer(torch_command(sys.executable))
    with pytest.raises(RuntimeError, match="No such file"):
        peer.ask(
            **{"do": "train", "work": dataclasses.asdict(WORK), "seed": 0, "pictures": ""},
            **{"schedule": dataclasses.asdict(schedule(4)), "reconstructions": ""},
            crops=str(tmp_path / "absent"),
        )
    peer.close()
