"""The study of clips of any length. Oracles: sums by hand, PSNR in float64 numpy."""

import json

import numpy as np
import pytest

from bsq_jax import cli
from bsq_jax.cli.studies import report
from bsq_jax.cli.studies.variable_length import comparison as variable_length
from bsq_jax.data.clip_lengths import Schedule
from bsq_jax.data.factory import make_data_config

TINY = (
    *("model.image_size=16", "model.width=8", "model.layers=1", "model.heads=1", "model.bits=4"),
    *("data.eval_resize=16", "data.eval_clips=1", "train.batch_size=8", "eval.batch_size=8"),
    "data.cache_mb=8",
)
FLAGS = [word for setting in TINY for word in ("--set", setting)]


def test_both_models_compute_the_same_number_of_frames():
    causal = variable_length.arm_config("block-causal", 8, 100, 0, ())
    full = variable_length.arm_config("full", 8, 100, 0, ())
    assert full.train.steps == 100
    schedule = Schedule(make_data_config(causal))
    frames = [schedule.step(step).frames for step in range(causal.train.steps + 1)]
    assert sum(frames[:-1]) <= 800 < sum(frames)
    assert {"block_causal", "full"} == {causal.model.causality, full.model.causality}


def test_lengths_are_powers_of_two_and_the_longest():
    assert variable_length.lengths(8) == [1, 2, 4, 8]
    assert variable_length.lengths(6) == [1, 2, 4, 6]
    assert variable_length.lengths(1) == [1]


class Brighter:
    """Stands for a model whose reconstruction is off by a known error that grows with time."""

    def __init__(self):
        self.given = []

    def reconstruct(self, pixels, dtype):
        assert dtype == "uint8"
        self.given.append(pixels)
        off = np.arange(1, pixels.shape[1] + 1, dtype=np.uint8)[None, :, None, None, None]
        return np.where(pixels < 128, pixels + off, pixels - off)


def test_measuring_against_the_closed_form():
    config = variable_length.arm_config("full", 4, 1, 0, TINY)
    model = Brighter()
    found = variable_length.measure(config, model, fill=4)
    each = 20 * np.log10(255 / np.arange(1, 5))
    assert found == pytest.approx({n: float(np.mean(each[:n])) for n in (1, 2, 4)}, abs=1e-9)
    assert all(given.shape[1] == 4 for given in model.given)
    np.testing.assert_array_equal(model.given[0][:, 1], model.given[0][:, 0])
    assert found.keys() == variable_length.measure(config, model).keys()


def test_the_whole_study_in_small(tmp_path, capsys):
    flags = ["--workdir", str(tmp_path), "--frames", "2", "--steps", "2", *FLAGS]
    assert cli.main(["studies", "variable_length", *flags]) == 0
    said = capsys.readouterr().out
    assert "full, filled up" in said
    (result,) = json.loads((tmp_path / "results.json").read_text())
    assert set(result["psnr"]) == {"block-causal", "full", "full, filled up"}
    assert result["psnr"]["full"]["2"] == result["psnr"]["full, filled up"]["2"]
    assert all(3 < value < 60 for values in result["psnr"].values() for value in values.values())
    assert (tmp_path / "variable_length.png").stat().st_size > 1000


def test_mistakes_are_one_line(tmp_path, capsys):
    for flags, message in (
        (["--set", "banana"], "write KEY=VALUE"),
        (["--set", "train.bananas=3"], "train.bananas"),
        (["--frames", "0"], "--frames 0: give 1 or more"),
    ):
        assert cli.main(["studies", "variable_length", "--workdir", str(tmp_path), *flags]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1


def test_the_table_gives_mean_and_spread():
    results = [{"psnr": {"a": {1: 20.0, 2: 21.0}}}, {"psnr": {"a": {1: 22.0, 2: 21.0}}}]
    assert variable_length.table_rows(results[:1]) == [
        ["frames", "a"],
        ["1", "20.00"],
        ["2", "21.00"],
    ]
    rows = variable_length.table_rows(results)
    assert rows[1:] == [["1", "21.00 +- 1.41"], ["2", "21.00 +- 0.00"]]
    assert report.text_table(rows).splitlines()[0] == "frames              a"
    assert report.markdown_table(rows).splitlines()[:2] == ["| frames | a |", "| --- | --- |"]
