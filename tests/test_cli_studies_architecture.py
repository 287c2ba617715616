"""The study of architectures. Oracles: closed forms of parameters, the trainings' own reports."""

import json

import numpy as np
import pytest

from bsq_jax import cli
from bsq_jax.cli.studies import trained
from bsq_jax.cli.studies.architecture import comparison, points
from bsq_jax.config import default_config
from bsq_jax.core.errors import UserError
from bsq_jax.training.useful_flops import picture_cost

TINY = (
    *("model.image_size=16", "model.width=8", "model.layers=1", "model.heads=2", "model.bits=4"),
    *("data.source=synthetic", "data.resize=16", "data.eval_resize=16", "data.threads=0"),
    *("data.cache_mb=8", "train.batch_size=8", "eval.batch_size=8", "optimizer.ema=0"),
)
FLAGS = [word for setting in TINY for word in ("--set", setting)]


def all_points(**changes):
    wanted = {"widths": [64, 256], "layers": [1, 4], "heads": [1, 4], "halves": [(1, 3), (2, 4)]}
    return points.points((), **(wanted | {"seeds": [0]} | changes))


def test_one_change_at_a_time():
    found = [point[:-1] for point in all_points()]
    assert found == [
        ("base", 128, 2, 2, 2),
        ("width", 64, 2, 2, 1),  # heads of 64 channels, as in the base
        ("width", 256, 2, 2, 4),
        ("layers", 128, 1, 1, 2),
        ("layers", 128, 4, 4, 2),
        ("heads", 128, 2, 2, 1),
        ("heads", 128, 2, 2, 4),
        ("halves", 128, 1, 3, 2),
        ("halves", 128, 2, 4, 2),
    ]


def test_equal_networks_are_trained_once():
    found = all_points(
        widths=[128, 64, 64], layers=[2], heads=[2], halves=[(2, 2), (4, 4), (4, 4)], seeds=[3, 5]
    )
    assert [point.title for point in found[::2]] == ["base", "width 64", "encoder 4, decoder 4"]
    assert [point.seed for point in found] == [3, 5] * 3
    # Of layers of both halves, and as halves, the first counts.
    assert [p.change for p in all_points(halves=[(4, 4)])][-1] == "heads"


def test_parameters_in_closed_form():
    """A block has 12 w^2 + 13 w: attention, MLP of 4 w, two norms, with their biases."""
    config = {point.title: points.point_config(point, 10, ()) for point in all_points()}
    cost = {title: picture_cost(each) for title, each in config.items()}
    block = 12 * 128**2 + 13 * 128
    base = cost["base"].parameters
    assert cost["layers 4+4"].parameters - base == 4 * block
    assert cost["encoder 2, decoder 4"].parameters - base == 2 * block
    assert cost["encoder 1, decoder 3"].parameters == base
    assert cost["heads 4"] == cost["base"]
    tokens = 8 * 8  # layer norms have small products of their own
    flops = 2 * tokens * 12 * 128**2 + 4 * tokens**2 * 128
    deeper = cost["encoder 1, decoder 3"]
    assert cost["base"].encode_flops - deeper.encode_flops == pytest.approx(flops, rel=3e-3)
    assert deeper.decode_flops - cost["base"].decode_flops == pytest.approx(flops, rel=3e-3)
    assert config["width 256"].model.heads == 4
    assert config["base"].loss.entropy == default_config().loss.entropy  # published
    shared = [(each.quantizer.to_dict(), each.data.to_dict()) for each in config.values()]
    assert all(each == shared[0] for each in shared)


def in_this_process(command, log, seconds):
    return trained.main(log.parent)


def test_the_study_in_small(tmp_path, capsys, monkeypatch):
    """Its numbers are those of the trainings' evaluations; a second call trains nothing."""
    monkeypatch.setattr(trained, "run_apart", in_this_process)
    flags = ["--workdir", str(tmp_path), "--widths", "--layers", "--heads", "1", "--steps", "2"]
    flags += ["--halves", "1+2", *FLAGS]
    assert cli.main(["studies", "architecture", *flags]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["title"] for row in rows] == ["base", "heads 1", "encoder 1, decoder 2"]
    lines = (tmp_path / "table.md").read_text().splitlines()[2:]
    for row, line in zip(rows, lines, strict=True):
        layers = f"{row['encoder']}+{row['decoder']}"
        folder = tmp_path / f"width8_layers{layers}_heads{row['heads']}_0"
        report = json.loads((folder / "evaluation.json").read_text())["results"]["raw"]
        assert row["results"] == report
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        psnr, ssim = f"{report['psnr']:.2f}", f"{report['ssim']:.4f}"
        assert cells[:4] == [row["title"], "8", layers, str(row["heads"])]
        assert cells[6:8] == [psnr, ssim]
        assert cells[-1] == "done"
        assert row["pictures_per_second"] == pytest.approx(8e3 / row["ms"])
    assert rows[2]["parameters"] - rows[0]["parameters"] == 12 * 8**2 + 13 * 8
    assert rows[2]["decode_flops"] > rows[0]["decode_flops"]
    assert rows[2]["encode_flops"] == rows[0]["encode_flops"]
    for name in (comparison.FLOPS_FIGURE, comparison.PARAMETERS_FIGURE):
        assert (tmp_path / name).stat().st_size > 1000
    assert "encoder 1, decoder 2" in capsys.readouterr().out
    monkeypatch.setattr(trained, "run_apart", None)  # what is there is not computed again
    assert cli.main(["studies", "architecture", *flags]) == 0
    assert json.loads((tmp_path / "results.json").read_text()) == rows


def test_a_training_that_fails_is_a_row_and_seeds_are_together():
    cost = {"parameters": 2_000_000, "encode_flops": 1e9, "decode_flops": 2e9}
    rows = [
        {**point._asdict(), "title": point.title, **cost, "status": "done"}
        for point in all_points(widths=[], layers=[4], heads=[], halves=[], seeds=[0, 1])
    ]
    rows[0]["results"], rows[1]["results"] = {"psnr": 20.0}, {"psnr": 22.0}
    rows[2]["status"] = rows[3]["status"] = "out of memory"
    cells = comparison.table_rows(rows)
    assert cells[1][4:] == [
        *("2.00M", "1.000 + 2.000", f"21.00 +- {np.sqrt(2):.2f}", "-", "-", "-", "done")
    ]
    assert cells[2][6:] == ["-", "-", "-", "-", "out of memory"]


def test_lines_of_the_figure():
    base, *others = [
        point._asdict() for point in all_points(halves=[(1, 3), (2, 4), (4, 2), (4, 5)])
    ]
    assert len(comparison._lines_of(base, base)) == 6
    lines = [comparison._lines_of(row, base) for row in others if row["change"] == "halves"]
    assert lines == [["layers moved"], ["decoder alone"], ["encoder alone"], ["other halves"]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--widths", "100"], "--widths 100: heads of the base have 64 channels (128 in 2)"),
        (["--layers", "0"], "--layers 0: give numbers from 1"),
        (["--heads", "3"], "model.width 128 does not divide into model.heads 3"),
        (["--halves", "3"], "--halves 3: write layers of encoder and decoder, such as 1+3"),
        (["--set", "model.encoder_layers=2"], "the study chooses model.encoder_layers, use"),
        (["--set", "model.banana=2"], "model.banana"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, flags, message):
    assert cli.main(["studies", "architecture", "--workdir", str(tmp_path), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_widths_follow_the_base():
    with pytest.raises(UserError, match="12 channels"):
        points.points(("model.width=24",), [16], [], [], [], [0])
    (_, wide) = points.points(("model.width=24",), [48], [], [], [], [0])
    assert wide.heads == 4
