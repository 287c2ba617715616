"""The studies of resolutions and positions. Oracles: sizes and PSNR in closed form, loops."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from bsq_jax import cli
from bsq_jax.cli.studies import measured, settings
from bsq_jax.cli.studies.positions import comparison as positions
from bsq_jax.cli.studies.resolution import comparison as resolution
from bsq_jax.cli.studies.resolution import shapes
from bsq_jax.config import load_config_file
from bsq_jax.core.errors import INTERRUPTED, UserError
from bsq_jax.core.pixels import to_float, to_uint8
from bsq_jax.data.factory import make_data_config
from bsq_jax.data.sources.embedded import SyntheticSource
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.training import train_run

TINY = (
    *("model.width=8", "model.layers=1", "model.heads=1", "model.head_channels=0", "model.bits=6"),
    *("train.batch_size=4", "eval.batch_size=4", "optimizer.ema=0", "data.cache_mb=8"),
)
PICTURES = (*TINY, "model.image_size=16", "data.source=synthetic", "data.threads=0")
CLIPS = (*TINY, "model.image_size=16", "data.eval_resize=16", "data.eval_clips=1")


def words(overrides):
    return [word for setting in overrides for word in ("--set", setting)]


def results_of(workdir):
    return json.loads((workdir / "results.json").read_text())


def table_of(workdir):
    lines = (workdir / "table.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [rows[0], *rows[2:]]


# --- sizes ---


def test_sizes_in_pixels():
    found = {shape.title: shape.size for shape in shapes.shapes(64, (8, 8))}
    assert found == {
        "32x32 (0.5x)": (32, 32),
        "64x64 (1x)": (64, 64),
        "96x96 (1.5x)": (96, 96),
        "128x128 (2x)": (128, 128),
        "56x72 (4:3)": (56, 72),  # 55.4 x 73.9
        "48x88 (16:9)": (48, 88),  # 48 x 85.3
        "88x48 (1:2)": (88, 48),  # 90.5 x 45.3
    }
    for shape in shapes.shapes(6000, (1, 1))[4:]:
        ((width, height),) = shape.aspects
        assert shape.size[0] * shape.size[1] == pytest.approx(6000**2, rel=3e-4)
        assert shape.size[1] / shape.size[0] == pytest.approx(width / height, rel=3e-4)


def test_sizes_that_the_patch_makes_equal_are_one():
    found = shapes.shapes(16, (16, 8))
    assert [shape.size for shape in found] == [(16, 8), (16, 16), (32, 24), (32, 32), (16, 24)]
    titles = ["16x8 (0.5x, 1:2)", "16x16 (1x, 4:3)", "32x24 (1.5x)", "32x32 (2x)", "16x24 (16:9)"]
    assert [shape.title for shape in found] == titles


# --- configs ---


def test_models_learn_as_the_quickstart_does():
    own, quickstart = settings.muon_config(10, 0), load_config_file("configs/quickstart.py:whole")
    for key in ("name", "learning_rate", "muon_learning_rate", "clip", "ema", "final"):
        assert own.optimizer[key] == quickstart.optimizer[key]
    for key in ("image_size", "width", "layers", "heads", "head_hidden", "head_channels"):
        assert own.model[key] == quickstart.model[key]
    assert own.quantizer == quickstart.quantizer
    assert own.loss == quickstart.loss


def test_configs_of_the_resolutions():
    of = {
        (model, training): resolution.point_config(
            resolution.Point(model, training, 3), 10, 2, ("train.batch_size=4",)
        )
        for model in resolution.KINDS
        for training in ("one", "mixed")
    }
    for (model, training), config in of.items():
        assert (config.seed, config.train.batch_size, config.train.steps) == (3, 4, 10)
        assert config.model.spatial_window == (2 if model.startswith("windows") else 0)
        data = make_data_config(config)
        if training == "one":
            assert (data.sizes, data.eval_crop) == ((), "center")
        else:
            assert data.sizes == tuple(shape.size for shape in shapes.shapes(64, (8, 8)))
            assert data.eval_crop == "bucket"
    kinds = {model: of[model, "one"].model.positions for model in resolution.KINDS}
    assert list(kinds.values()) == ["learned", "sincos", "rotary", "window", "sincos"]
    # The data is laid out for the size, and sizes of one's own are those of the mixed trainings.
    overrides = ("model.image_size=128", "data.sizes=64x64,96x128")
    one, mixed = (
        make_data_config(
            resolution.point_config(resolution.Point("sincos", training, 0), 1, 4, overrides)
        )
        for training in ("one", "mixed")
    )
    assert (one.sizes, mixed.sizes) == ((), ((64, 64), (96, 128)))
    assert (one.cover, one.eval_resize, one.scale) == (4, 128, (1, 4))


# --- what is measured ---


class Off:
    """Reconstructs pictures with a known error, and keeps what it was given."""

    def __init__(self):
        self.given = []

    def reconstruct(self, pixels, dtype):
        self.given.append(pixels)
        return np.where(pixels < 128, pixels + 3, pixels - 3).astype(np.uint8)


@pytest.mark.parametrize("size", [(24, 40), (40, 24), (32, 32)])
def test_whole_pictures_are_resized(size):
    config = resolution.point_config(resolution.Point("learned", "one", 0), 1, 2, PICTURES)
    at = resolution.at_size(make_data_config(config), size)
    model = Off()
    found = resolution.picture_psnr(at, 4, model)
    assert found == pytest.approx([20 * np.log10(255 / 3)] * 64, abs=1e-9)
    (shape,) = {given.shape[1:] for given in model.given}
    assert shape == (1, *size, 3)
    source, side = SyntheticSource("val"), max(size)
    given = np.concatenate([given[:, 0] for given in model.given])
    top, left = (side - size[0]) // 2, (side - size[1]) // 2
    for number in (0, 63):
        picture = Image.fromarray(source[number].content).resize((side, side), 1)  # Lanczos
        wanted = np.asarray(picture)[top : top + size[0], left : left + size[1]]
        np.testing.assert_array_equal(given[number], wanted)


class Brighter:
    """Stands for a model of clips whose error grows with the number of the frame."""

    def reconstruct(self, pixels, dtype):
        off = np.arange(1, pixels.shape[1] + 1, dtype=np.uint8)[None, :, None, None, None]
        return np.where(pixels < 128, pixels + off, pixels - off)


def test_clips_of_all_lengths_against_the_closed_form(monkeypatch):
    each = 20 * np.log10(255 / np.arange(1, 7))
    for kind, known in (("learned", 3), ("sincos", 6)):
        config = positions.point_config(positions.Point(kind, 0, 0), 3, 1, CLIPS)
        found = positions.measure(config, 6, Brighter())
        assert list(found["psnr"]) == ["1", "2", "3", "4", "6"]
        for length, value in found["psnr"].items():
            if int(length) > known:
                assert value is None
            else:
                assert value == pytest.approx(each[: int(length)].mean(), abs=1e-9)
        assert found["per_frame"] == pytest.approx(each[:known], abs=1e-9)
    batch = {"pixels": np.zeros((2, 6, 16, 16, 3), np.uint8), "mask": np.ones(2)}
    short = [batch | {"frames": np.array([5, 3])}]
    monkeypatch.setattr(positions, "eval_batches", lambda data, **_: iter(short))
    with pytest.raises(UserError, match="motion has no validation clip of 6 frames: choose fewer"):
        positions.measure(config, 6, Brighter())


def test_psnr_against_the_definition():
    random = np.random.default_rng(0)
    pixels, made = random.integers(0, 256, (2, 2, 3, 4, 5, 3), dtype=np.uint8)
    found = measured.frame_psnr(pixels, made)
    for clip in range(2):
        for frame in range(3):
            pairs = zip(pixels[clip, frame].ravel(), made[clip, frame].ravel(), strict=True)
            error = sum((int(a) - int(b)) ** 2 for a, b in pairs) / 60
            assert found[clip, frame] == pytest.approx(10 * np.log10(65025 / error), abs=1e-9)


# --- tables ---


def test_the_table_of_resolutions_against_a_loop(tmp_path, monkeypatch, capsys):
    runs = {}

    def measured_(config, folder, measure):
        random = np.random.default_rng(len(runs))
        psnr = {shape.name: random.uniform(20, 30) for shape in shapes.shapes(64, (8, 8))}
        trained = ["64x64", "32x32"] if config.data.sizes else ["64x64"]
        runs[folder.name] = {"psnr": psnr, "trained": trained, "pictures": 3}
        return runs[folder.name]

    monkeypatch.setattr(resolution, "measured", measured_)
    flags = ["--workdir", str(tmp_path), "--seeds", "0", "5", "--models", "rotary", "learned"]
    assert cli.main(["studies", "resolution", *flags]) == 0
    titles, *rows = table_of(tmp_path)
    assert titles[:3] == ["model", "trained at", "32x32 (0.5x)"]
    wanted = []
    for model in ("rotary", "learned"):
        for training in ("one", "mixed"):
            row = [model, {"one": "64x64", "mixed": "mixed sizes"}[training]]
            for name in ("32x32", "64x64", "96x96", "128x128", "56x72", "48x88", "88x48"):
                a, b = (runs[f"{model}_{training}_{seed}"]["psnr"][name] for seed in (0, 5))
                star = name == "64x64" or (name == "32x32" and training == "mixed")
                spread = abs(a - b) / np.sqrt(2)
                row.append(f"{(a + b) / 2:.2f} +- {spread:.2f}" + "*" * star)
            wanted.append(row)
    assert rows == wanted
    assert [row["seed"] for row in results_of(tmp_path)] == [0, 5] * 4
    assert "of 3 whole pictures" in capsys.readouterr().out
    for name in (resolution.FIGURE, resolution.ASPECTS_FIGURE):
        assert (tmp_path / name).stat().st_size > 1000


def test_the_table_of_positions_against_a_loop(tmp_path, monkeypatch):
    runs = {}

    def measured_(config, folder, measure, **asked):
        assert asked == {"longest": 8}
        random = np.random.default_rng(len(runs))
        beyond = config.model.positions != "learned"
        psnr = {n: random.uniform(20, 30) if n < 8 or beyond else None for n in (1, 2, 4, 8)}
        psnr = {str(length): value for length, value in psnr.items()}
        runs[folder.name] = {"psnr": psnr, "per_frame": [20.0] * (8 if beyond else 4)}
        return runs[folder.name]

    monkeypatch.setattr(positions, "measured", measured_)
    flags = ["--workdir", str(tmp_path), "--longest", "8", "--windows", "0", "1", "2"]
    assert cli.main(["studies", "positions", *flags]) == 0
    titles, *rows = table_of(tmp_path)
    assert titles == ["positions", "a token sees", "1", "2", "4 (trained)", "8"]
    wanted = []
    for window, sees in ((0, "all frames before"), (1, "its own frame"), (2, "2 frames")):
        for kind in ("learned", "sincos", "rotary"):
            psnr = runs[f"{kind}_{window}_0"]["psnr"]
            each = [f"{psnr[n]:.2f}" for n in ("1", "2", "4")]
            beyond = "none" if kind == "learned" else f"{psnr['8']:.2f}"
            wanted.append([kind, sees, *each, beyond])
    assert rows == wanted
    assert (tmp_path / positions.FIGURE).stat().st_size > 1000


# --- runs ---


def apply(tokenizer, pixels):
    return jax.jit(tokenizer.model.apply)({"params": tokenizer.params}, pixels)


def test_resolutions_in_small_go_on_after_an_interruption(tmp_path, monkeypatch):
    """The second of two trainings is interrupted; the first is not done again."""
    monkeypatch.setattr(shapes, "FACTORS", (0.5, 1.0))
    monkeypatch.setattr(shapes, "ASPECTS", ((1, 2),))  # 24x8
    trained, train = [], train_run.train

    def interrupted(config, folder):
        trained.append(folder.name)
        return INTERRUPTED if folder.name.startswith("windows") else train(config, folder)

    monkeypatch.setattr(train_run, "train", interrupted)
    flags = ["--workdir", str(tmp_path), "--steps", "1", "--window", "2"]
    flags += ["--models", "learned", "windows-sincos", "--trainings", "mixed"]
    flags += words((*PICTURES, "data.sizes=8x8,16x16"))
    with pytest.raises(SystemExit, match=str(INTERRUPTED)):
        cli.main(["studies", "resolution", *flags])
    assert not (tmp_path / "results.json").exists()
    names = ["learned_mixed_0", "windows-sincos_mixed_0"]
    assert trained == names
    monkeypatch.setattr(
        train_run, "train", lambda *given: trained.append(given[1].name) or train(*given)
    )
    assert cli.main(["studies", "resolution", *flags]) == 0
    assert trained == [*names, names[1]]
    rows = results_of(tmp_path)
    for name, row in zip(names, rows, strict=True):
        assert row["pictures"] == 64
        assert list(row["psnr"]) == ["8x8", "16x16", "24x8"]
        assert sorted(row["trained"]) == ["16x16", "8x8"]
        # Picture by picture, through the network itself.
        tokenizer, source = Tokenizer.load(tmp_path / name), SyntheticSource("val")
        pictures = [Image.fromarray(source[n].content).resize((24, 24), 1) for n in range(64)]
        given = np.stack([np.asarray(picture)[None, :, 8:16] for picture in pictures])
        made = to_uint8(apply(tokenizer, to_float(given)).pixels)
        error = np.mean((given - np.asarray(made, np.float64)) ** 2, axis=(1, 2, 3, 4))
        wanted = np.mean(10 * np.log10(255**2 / error))
        assert row["psnr"]["24x8"] == pytest.approx(wanted, abs=1e-3)
    assert cli.main(["studies", "resolution", *flags]) == 0  # nothing is left to do
    assert trained == [*names, names[1]]
    assert results_of(tmp_path) == rows


def test_positions_in_small(tmp_path):
    """Frames of a causal model are the same in clips of all lengths: so are the means of them."""
    flags = ["--workdir", str(tmp_path), "--steps", "1", "--frames", "2", "--longest", "4"]
    flags += ["--kinds", "rotary", "--windows", "2", *words(CLIPS)]
    assert cli.main(["studies", "positions", *flags]) == 0
    (row,) = results_of(tmp_path)
    assert list(row["psnr"]) == ["1", "2", "4"]
    for length, value in row["psnr"].items():
        assert value == pytest.approx(np.mean(row["per_frame"][: int(length)]), abs=1e-6)
    assert len(row["per_frame"]) == 4


def test_what_is_kept(tmp_path, monkeypatch):
    calls = []

    class Model:
        @staticmethod
        def load(folder):
            return folder

    monkeypatch.setattr(train_run, "train", lambda config, folder: calls.append(folder) or 0)
    monkeypatch.setattr(measured, "Tokenizer", Model)
    config = resolution.point_config(resolution.Point("sincos", "one", 0), 1, 2, PICTURES)

    def measure(folder):
        assert folder == tmp_path
        return {"calls": len(calls), 4: 5}

    assert measured.measured(config, tmp_path, measure) == {"calls": 1, "4": 5}
    assert measured.measured(config, tmp_path, measure) == {"calls": 1, "4": 5}
    assert measured.measured(config, tmp_path, measure, longest=4) == {"calls": 2, "4": 5}
    other = resolution.point_config(resolution.Point("sincos", "one", 0), 2, 2, PICTURES)
    with pytest.raises(UserError, match=r"other settings \(train.steps: 1 -> 2\): give another"):
        measured.measured(other, tmp_path, measure)


def test_mistakes_in_flags_are_one_line(tmp_path, capsys):
    for study, flags, message in (
        ("resolution", ["--window", "3"], "--window 3: give an even number of tokens"),
        ("resolution", ["--models", "learnt"], "invalid choice: 'learnt'"),
        ("resolution", ["--set", "model.image_size=64,96"], "model.image_size is 64x96"),
        ("resolution", ["--set", "model.positions=rotary"], "chooses model.positions, use --mo"),
        ("resolution", ["--set", "data.eval_crop=tiles"], "each picture is measured as a whole"),
        ("resolution", ["--set", "data.sizes=60x60"], "no multiples of model.patch_size"),
        ("positions", ["--frames", "1"], "--frames 1: give 2 or more"),
        ("positions", ["--longest", "3"], "--longest 3: give --frames, 4, or more"),
        ("positions", ["--windows", "0", "-2"], "--windows 0 -2: give 0 or more"),
        ("positions", ["--set", "model.window=1"], "the study chooses model.window, use --windows"),
        ("positions", ["--set", "bananas"], "write KEY=VALUE"),
    ):
        assert cli.main(["studies", study, "--workdir", str(tmp_path), *flags]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1
