"""`bsq-jax plot`. Oracle: values and messages written by hand; colours counted in the picture."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from bsq_jax import cli
from bsq_jax.cli.plotting import choice
from bsq_jax.cli.plotting.runs import read_run, run_names
from bsq_jax.media import curves
from bsq_jax.training.writers.json_lines import JsonLines

ROOT = pathlib.Path(__file__).parents[1]
BLUE, RED = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


def write(folder, lines):
    folder.mkdir(parents=True)
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)


def line(step, prefix="train", **values):
    return {"step": step, "time": 1.0, "prefix": prefix, **values}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Of a tokenizer with evaluations, and of a masked language model."""
    monkeypatch.chdir(tmp_path)
    steps = range(10, 110, 10)
    write(
        tmp_path / "runs" / "a",
        [
            *(line(step, loss=10 / step, psnr=step / 10, bit_mean=[0.5, 1]) for step in steps),
            *(line(100, f"val_{kind}", psnr=9.0, codes_used=3) for kind in ("raw", "ema")),
        ],
    )
    write(tmp_path / "runs" / "b", [line(step, loss=1.0, accuracy=0.5) for step in steps])
    return tmp_path / "runs"


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def has(picture, colour):
    return int((picture == colour).all(axis=-1).sum()) > 50


def test_the_colour_of_a_run_is_in_the_panels_that_it_has(runs, capsys):
    words = ["runs/a", "runs/b", "--metrics", "psnr,loss,accuracy", "--out", "three.png"]
    assert cli.main(["plot", *words]) == 0
    out, error = capsys.readouterr()
    assert out == ""
    assert error.splitlines() == [
        "b has no psnr",
        "a has no accuracy",
        "figure: three.png (psnr, loss, accuracy)",
    ]
    picture = pixels("three.png")
    height, width = picture.shape[:2]
    assert width == 2070
    thirds = np.split(picture[: int(0.8 * height)], 3, axis=1)  # without the legend of runs
    assert [has(third, BLUE) for third in thirds] == [True, True, False]
    assert [has(third, RED) for third in thirds] == [False, True, True]


def test_one_run_with_what_is_usual(runs, capsys):
    assert cli.main(["plot", "runs/a/metrics.jsonl"]) == 0
    assert capsys.readouterr().err == "figure: metrics.png (psnr, loss)\n"
    first = pixels("metrics.png")
    assert cli.main(["plot", "runs/a/", "--series", "train"]) == 0  # replaced
    assert not np.array_equal(first.shape, pixels("metrics.png").shape) or (
        (first != pixels("metrics.png")).any()
    )


def test_runs_of_different_tasks_need_no_remarks(runs, capsys):
    assert cli.main(["plot", "runs/a", "runs/b"]) == 0
    assert capsys.readouterr().err == "figure: metrics.png (psnr, accuracy, loss)\n"


def test_what_is_drawn(runs, monkeypatch):
    """The points of each curve, in place of their picture."""
    drawn = {}
    monkeypatch.setattr(
        curves,
        "curve_figure",
        lambda path, panels, runs, groups: drawn.update(panels=panels, runs=runs, groups=groups),
    )
    words = ["runs/a", "runs/b", "--metrics", "psnr,loss", "--smooth", "2"]
    assert cli.main(["plot", *words]) == 0
    psnr, loss = drawn["panels"]
    assert (drawn["runs"], drawn["groups"]) == (["a", "b"], ["train", "val_ema", "val_raw"])
    assert (psnr.title, loss.title) == ("psnr (dB)", "loss")
    assert [(curve.run, curve.group) for curve in psnr.curves] == [
        *((0, "train"), (0, "val_ema"), (0, "val_raw")),
    ]
    assert [(curve.run, curve.group) for curve in loss.curves] == [(0, "train"), (1, "train")]
    assert psnr.curves[0].behind == {step: step / 10 for step in range(10, 110, 10)}
    assert psnr.curves[0].points == pytest.approx(psnr.curves[0].behind)  # of a straight line
    assert loss.curves[0].points[30] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 5)
    assert psnr.curves[1].points == {100: 9.0}
    assert psnr.curves[1].behind is None
    assert not psnr.logarithmic
    assert cli.main(["plot", "runs/a", "--metrics=loss", "--series=train", "--scale=log"]) == 0
    (loss,) = drawn["panels"]
    assert loss.logarithmic
    assert (loss.curves[0].behind, drawn["groups"]) == (None, ["train"])


def test_a_run_that_goes_on_is_drawn_as_far_as_it_is(runs, capsys):
    with (runs / "a" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 110, "time": 1.0, "prefix": "tr')
    run = read_run("runs/a")
    assert max(run.series["psnr"]["train"]) == 100
    assert run.problems == ()  # it is being written
    file = JsonLines(runs / "a" / "metrics.jsonl", start_step=50)  # resumed
    file.write(60, "train", {"psnr": 7.5, "loss": float("nan")})
    series = read_run("runs/a").series
    file.close()
    assert list(series["psnr"]["train"].items()) == [
        *((step, step / 10) for step in (10, 20, 30, 40, 50)),
        (60, 7.5),
    ]
    assert np.isnan(series["loss"]["train"][60])
    assert cli.main(["plot", "runs/a", "--metrics", "loss"]) == 0
    assert capsys.readouterr().err == "figure: metrics.png (loss)\n"


def test_damaged_lines_are_named_and_left_out(runs, capsys):
    good = [line(30, loss=3.0), line(10, loss=1.0), line(30, loss=4.0)]
    bad = ["{\n", "[1]\n", '{"step": "x", "prefix": "train"}\n', '{"step": 1}\n', "\0\n"]
    write(runs / "c", [good[0], bad[0], good[1], *bad[1:], good[2]])
    run = read_run("runs/c")
    assert list(run.series["loss"]["train"].items()) == [(10, 1.0), (30, 4.0)]  # the later counts
    assert cli.main(["plot", "runs/c"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "runs/c/metrics.jsonl: lines 2, 4, 5, 6, 7 are damaged and left out"
    write(runs / "d", bad)
    assert cli.main(["plot", "runs/d"]) == 2
    assert capsys.readouterr().err == "error: runs/d/metrics.jsonl is damaged\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no"], "there is no folder no: give the workdir of a run"),
        (["runs"], "runs has no metrics.jsonl; there are runs/a, runs/b"),
        (["runs/empty"], "runs/empty has no metrics.jsonl: give the workdir of a run"),
        (["runs/new"], "runs/new/metrics.jsonl has no metrics yet"),
        (["runs/a", "--metrics=psrn"], "--metrics psrn: no run has it: did you mean psnr?"),
        (["runs/a", "--metrics=xyz"], "there are loss, psnr, codes_used"),
        (["runs/a", "--metrics=,"], "--metrics ',': name one, of codes_used, loss, psnr"),
        (["runs/a", "--metrics=bit_mean"], "it is a list of values, which plot does not draw"),
        (["runs/a", "--series=val"], "--series val: there are train, val_ema, val_raw"),
        (["runs/b", "--series=val_ema"], "--series val_ema: there are train"),
        (["runs/a", "--smooth=-1"], "--smooth -1: it must be 0 or more"),
        (["runs/a", "--out=x.pdf"], "x.pdf: the name must end in .png"),
        (["runs/a", "--out=no/x.png"], "make it first"),
        (["runs/a", "--metric=psnr"], "did you mean --metrics"),
        ([], "required: RUN"),
    ],
)
def test_a_mistake_is_one_line(runs, capsys, words, said):
    (runs / "empty").mkdir()
    write(runs / "new", ['{"step": 1'])
    assert cli.main(["plot", *words]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
    assert not list(runs.parent.glob("*.png"))


def test_the_usual_metrics_follow_from_the_runs(runs):
    both = [read_run("runs/a"), read_run("runs/b")]
    assert choice.choose(both, "") == ["psnr", "accuracy", "loss"]
    assert choice.choose(both, "loss, psnr,loss") == ["loss", "psnr"]
    many = dict.fromkeys(("fid", "usage", "psnr", "ssim", "lpips", "loss", "saved", "x"), 1.0)
    write(runs / "c", [line(1, **many)])
    usual = ["psnr", "lpips", "ssim", "loss", "saved", "fid"]
    assert choice.choose([read_run("runs/c")], "") == usual
    write(runs / "d", [line(1, mine=1.0)])
    assert choice.choose([read_run("runs/d")], "") == ["mine"]


def test_means_of_neighbours():
    nan = float("nan")
    points = {1: 2.0, 2: 4.0, 5: 9.0, 6: 2.0, 7: 3.0}
    assert choice.smoothed(points, 0) == points
    assert choice.smoothed(points, 1) == {1: 2.0, 2: 5.0, 5: 5.0, 6: 14 / 3, 7: 3.0}
    assert choice.smoothed(points, 9) == {1: 2.0, 2: 5.0, 5: 4.0, 6: 14 / 3, 7: 3.0}
    found = choice.smoothed({1: 2.0, 2: 3.0, 3: nan, 4: 7.0, 5: 1.0}, 1)
    assert np.isnan(found.pop(3))
    assert found == {1: 2.0, 2: 2.5, 4: 4.0, 5: 1.0}


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("loss", [0.1, 2.0], True),
        ("loss", [0.1, float("nan"), 2.0], True),
        ("loss", [0.1, 0.9], False),
        ("loss", [-0.1, 2.0], False),
        ("loss", [0.0, 2.0], False),
        ("loss", [float("nan")], False),
        ("psnr", [1.0, 30.0], False),
    ],
)
def test_where_powers_of_ten_serve(name, values, expected):
    assert choice.serves_logarithm(name, values) == expected


def test_names_tell_runs_apart(tmp_path):
    paths = [tmp_path / name / "metrics.jsonl" for name in ("x/a", "y/a", "y/b")]
    assert run_names(paths[1:]) == ["a", "b"]
    assert run_names(paths) == ["x/a", "y/a", "y/b"]


def test_plot_loads_no_jax(runs):
    code = (
        "import sys; from bsq_jax import cli; status = cli.main(['plot', *sys.argv[1:]]);"
        "print(status, [name for name in ('jax', 'tensorboardX') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(runs / "a"), "--out", str(runs / "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "0 []\n"


def test_noise_does_not_fill_a_panel(tmp_path, monkeypatch):
    """A hundredth of the values is on the axis, and what varies more is as matplotlib has it."""
    limits = []
    narrow = curves._not_too_narrow

    def seen(axes):
        narrow(axes)
        limits.append(axes.get_ylim())

    monkeypatch.setattr(curves, "_not_too_narrow", seen)
    panels = [
        curves.Panel("ssim", [curves.Curve(0, "val_raw", {1: 0.7612, 2: 0.7613})]),
        curves.Panel("psnr", [curves.Curve(0, "val_raw", {1: 20.0, 2: 25.0})]),
    ]
    curves.curve_figure(tmp_path / "a.png", panels, ["run"], ["val_raw"])
    (low, high), (least, most) = limits
    assert high - low == pytest.approx(0.01 * 0.7613, rel=1e-2)
    assert (low + high) / 2 == pytest.approx(0.76125)
    assert (least, most) == pytest.approx((19.75, 25.25))
