"""Where metrics go. Oracle: bytes written by hand; a stand-in for W&B that notes its calls."""

import io
import json
import sys
import types

import numpy as np
import pytest

from bsq_jax.config import default_config, finalize, to_json
from bsq_jax.core.errors import Interrupted, NonFiniteError, UserError
from bsq_jax.training import train_run
from bsq_jax.training.monitor import Monitor
from bsq_jax.training.stop_signal import _Stopped as Stopped
from bsq_jax.training.writers import Record, check_wandb, json_lines, open_record, record
from bsq_jax.training.writers.json_lines import JsonLines

PICTURE = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


class StandIn(types.ModuleType):
    """Stands for the package ``wandb``; fails where it is told to."""

    def __init__(self, failing=()):
        super().__init__("wandb")
        self.__version__ = "0.27.0"
        self.failing, self.calls, self.questions, self.rows = set(failing), [], [], []
        self.run, self.offline, self.url = None, False, "https://wandb.ai/team/digits/runs/1"
        self.config = types.SimpleNamespace(update=self._update)

    def _call(self, called, **more):
        self.calls.append((called, more))
        if called in self.failing:
            raise RuntimeError(f"{called} failed,\n  again.")

    def init(self, **options):
        self.questions.append(sys.stdin.read())  # of a terminal this would wait for an answer
        self.offline = options.get("mode") == "offline"
        self._call("init offline" if self.offline else "init", **options)
        return self

    def Settings(self, **settings):  # noqa: N802 - as in wandb
        return settings

    def Image(self, picture):  # noqa: N802
        return ("image", picture.shape)

    def Histogram(self, values):  # noqa: N802
        return ("histogram", values.tolist())

    def teardown(self):
        self._call("teardown")

    def define_metric(self, name, **more):
        self._call("define", metric=name, **more)

    def _update(self, values, **more):
        self._call("config", values=values, **more)

    def log(self, row):
        self._call("log")
        self.rows.append(row)

    def finish(self, exit_code):
        self._call("finish", exit_code=exit_code)

    def names(self):
        return [name for name, _ in self.calls]


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("2\n"))
    monkeypatch.delenv("WANDB_NAME", raising=False)

    def install(*failing):
        stand_in = StandIn(failing)
        monkeypatch.setitem(sys.modules, "wandb", stand_in)
        return stand_in

    return install


def test_the_bytes_of_the_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "time", types.SimpleNamespace(time=lambda: 12.34567))
    record = open_record(tmp_path)
    record.write(100, "train", {"loss": 1 / 3, "bit_mean": np.float32([0.1, 1])})
    record.picture(100, "grid", PICTURE)
    record.write(100, "val_ema", {"psnr": float("nan"), "l2": float("inf"), "tokens": 1152.0})
    record.describe(finalize(default_config()))
    record.close()
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 100, "time": 12.346, "prefix": "train", "loss": 0.3333333, '
        '"bit_mean": [0.1, 1.0]}\n'
        '{"step": 100, "time": 12.346, "prefix": "val_ema", "psnr": null, "l2": null, '
        '"tokens": 1152.0}\n'
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_a_record_hands_everything_to_each_writer(tmp_path):
    seen = []

    class Noting:
        def __getattr__(self, name):
            return lambda *values, **more: seen.append((name, *values, *more.items()))

    record = Record(JsonLines(tmp_path / "metrics.jsonl"), [Noting(), Noting()])
    record.describe("settings")
    record.write(1, "train", {"loss": 2.0})
    record.picture(1, "grid", PICTURE)
    record.flush()
    record.close()
    once = [
        ("describe", "settings"),
        ("write", 1, "train", {"loss": 2.0}),
        ("picture", 1, "grid", PICTURE),
        ("flush",),
        ("close", ("failed", False)),
    ]
    assert seen == [call for call in once for _ in range(2)]
    assert [line["loss"] for line in record.history()] == [2.0]


class Writer:
    """Notes whether it was closed; may fail then."""

    closed = None

    def __init__(self, problem=None):
        self.problem = problem

    def close(self, *, failed=False):
        self.closed = failed
        if self.problem is not None:
            raise self.problem


def test_a_writer_that_does_not_close_leaves_no_other_open(tmp_path):
    lines, bad, good = JsonLines(tmp_path / "metrics.jsonl"), Writer(OSError("full")), Writer()
    with pytest.raises(OSError, match="full"):
        Record(lines, [bad, good]).close(failed=True)
    assert (bad.closed, good.closed) == (True, True)
    with pytest.raises(ValueError, match="closed"):
        lines.write(1, "train", {"loss": 1.0})


@pytest.mark.parametrize("failing", ["TensorBoard", "WandbRun"])
def test_a_writer_that_does_not_open_leaves_no_other_open(tmp_path, monkeypatch, failing):
    opened = []

    class Noted(JsonLines):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            opened.append(self)

    def broken(*_):
        raise OSError("full")

    board = Writer()
    monkeypatch.setattr(record, "JsonLines", Noted)
    monkeypatch.setattr(record, "TensorBoard", lambda *_: board)
    monkeypatch.setattr(record, failing, broken)
    with pytest.raises(OSError, match="full"):
        open_record(tmp_path, wandb="digits")
    with pytest.raises(ValueError, match="closed"):
        opened[0].write(1, "train", {"loss": 1.0})
    assert board.closed == (False if failing == "WandbRun" else None)


def test_wandb_is_told_what_the_others_are(tmp_path, wandb):
    package, stream = wandb(), io.StringIO()
    config = finalize(default_config())
    folder = tmp_path / "first"
    options = {"total_steps": 9, "batch_size": 1, "stream": stream, "bar": False}
    with Monitor(folder, wandb="team/digits", **options) as monitor:
        monitor.describe(config)
        monitor.log(3, {"psnr": 20.5, "bits": np.float32([0.25, 0.5]), "l1": np.nan}, "val_raw")
        monitor.image(3, "grid", PICTURE)
    kept = json.loads((folder / "wandb_run.json").read_text())
    (_, given), *later = package.calls
    settings = given.pop("settings")
    assert given == {
        **{"project": "digits", "entity": "team", "id": kept["id"], "name": "first"},
        **{"dir": str(folder), "resume": "allow"},
    }
    assert (settings["console"], settings["silent"]) == ("off", True)
    assert (settings["finish_timeout"], settings["finish_timeout_raises"]) == (60.0, True)
    assert package.questions == [""]
    assert sys.stdin.read() == "2\n"  # what was there is there again
    assert later == [
        ("define", {"metric": "step", "hidden": True}),
        ("define", {"metric": "*", "step_metric": "step"}),
        ("config", {"values": to_json(config), "allow_val_change": True}),
        ("log", {}),
        ("log", {}),
        ("finish", {"exit_code": 0}),
    ]
    assert package.rows == [
        {"step": 3, "val_raw/psnr": 20.5, "val_raw/bits": ("histogram", [0.25, 0.5])},
        {"step": 3, "grid": ("image", (2, 4, 3))},
    ]
    assert stream.getvalue().splitlines()[0] == f"W&B: {package.url}"


def test_a_resumed_run_is_the_same_run_of_wandb(tmp_path, wandb):
    package = wandb()
    for start, project in ((0, "a"), (4, "a"), (6, "a"), (8, "b"), (0, "b"), (0, "b")):
        open_record(tmp_path, start_step=start, wandb=project).close()
    ids = [given["id"] for name, given in package.calls if name == "init"]
    assert ids[0] == ids[1] == ids[2]
    assert len(set(ids[2:])) == 4  # another project, and each training from step 0
    (tmp_path / "wandb_run.json").write_text("{")
    open_record(tmp_path, start_step=9, wandb="b").close()
    assert package.calls[-4][1]["id"] == json.loads((tmp_path / "wandb_run.json").read_text())["id"]


@pytest.mark.parametrize(
    ("failing", "said", "rows"),
    [
        (["init"], "the run is recorded offline in", 3),
        (["init", "init offline"], "training goes on without it", 0),
        (["define"], "define failed, again; training goes on without it", 0),
        (["config"], "config failed, again; training goes on without it", 0),
        (["log"], "log failed, again; training goes on without it", 0),
        (["finish"], "finish failed, again; it may lack the last of its data: `wandb sync`", 3),
    ],
)
def test_a_failing_wandb_ends_no_training(tmp_path, wandb, failing, said, rows):
    package, lines = wandb(*failing), []
    record = open_record(tmp_path, wandb="digits", say=lines.append)
    record.describe(finalize(default_config()))
    for step in (1, 2):
        record.write(step, "train", {"loss": 1.0})
    record.picture(2, "grid", PICTURE)
    record.close()
    warnings = [line for line in lines if line.startswith("warning: W&B: ")]
    assert len(warnings) == len([name for name in failing if name != "init offline"]) + (
        "init offline" in failing
    )
    assert said in warnings[-1]
    assert not any("\n" in line for line in lines)
    assert len(package.rows) == rows
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    if failing == ["init"]:
        assert package.names()[:3] == ["init", "teardown", "init offline"]
        assert "init failed, again" in warnings[0]
        assert "`wandb login`" in warnings[0]


def test_a_run_that_fails_is_one_at_wandb(tmp_path, wandb):
    package = wandb()
    monitor = Monitor(tmp_path, total_steps=1, batch_size=1, bar=False, wandb="a")
    monitor.push(1, {"loss": np.float32(np.nan)})
    with pytest.raises(NonFiniteError), monitor:
        monitor.flush()
    assert package.calls[-1] == ("finish", {"exit_code": 1})


@pytest.mark.parametrize(
    ("kind", "status"),
    [(KeyboardInterrupt, 0), (Interrupted, 0), (Stopped, 0), (OSError, 1), (UserError, 1)],
)
def test_a_run_that_a_signal_stops_has_not_failed(tmp_path, wandb, kind, status):
    package = wandb()
    with (
        pytest.raises(kind),
        Monitor(tmp_path, total_steps=1, batch_size=1, bar=False, wandb="a"),
    ):
        raise kind
    assert package.calls[-1] == ("finish", {"exit_code": status})


def test_processes_that_are_not_the_first_open_nothing(tmp_path, wandb):
    package = wandb()
    with Monitor(tmp_path / "x", total_steps=1, batch_size=1, is_main=False, wandb="a") as monitor:
        monitor.log(1, {"loss": 1.0})
    assert package.calls == []
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("found", [None, types.ModuleType("wandb")], ids=["missing", "a folder"])
def test_without_the_package_training_does_not_begin(tmp_path, monkeypatch, found):
    monkeypatch.setitem(sys.modules, "wandb", found)
    config = default_config()
    config.log.wandb = "digits"
    with pytest.raises(UserError, match=r"pip install 'wandb>=.*', or set log.wandb") as raised:
        train_run.train(finalize(config), tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert ("cannot be used" in str(raised.value)) == (found is not None)
    assert list(tmp_path.iterdir()) == []
    check_wandb("")  # nobody asks for it


@pytest.mark.parametrize(
    ("version", "enough"),
    [("0.26.1", False), ("0.9.7", False), ("0.27.0rc1", True), ("0.100.0", True), ("1.0", True)],
)
def test_a_package_that_does_not_know_all_settings_is_refused(wandb, version, enough):
    wandb().__version__ = version
    if enough:
        check_wandb("digits")
        return
    with pytest.raises(UserError) as raised:
        check_wandb("digits")
    assert str(raised.value) == (
        f"log.wandb needs wandb 0.27 or later, and this is {version}: "
        "pip install 'wandb>=0.27', or set log.wandb to nothing"
    )
