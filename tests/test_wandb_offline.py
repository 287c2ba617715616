"""W&B itself, offline. Oracle: its record, read by its format, against ``metrics.jsonl``.

The package is no requirement of the tests, as it is large: `.ci/run` installs it for this file.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("wandb", reason="W&B is not installed: pip install wandb")

ROOT = pathlib.Path(__file__).parents[1]
# Two runs in one process: the first ends at step 4, the second goes on from its checkpoint at 2.
RUNS = """
import sys
import numpy as np
from bsq_jax.config import default_config, finalize
from bsq_jax.training.monitor import Monitor

config = default_config()
for start in (0, 2):
    config.train.steps += start
    options = {"total_steps": 4, "batch_size": 1, "start_step": start, "bar": False}
    with Monitor(sys.argv[1], wandb="digits", **options) as monitor:
        monitor.describe(finalize(config))
        for step in range(start + 1, start + 5):
            values = {"loss": 1 / (step + start), "bits": np.linspace(0, 1, step + 1)}
            monitor.log(step, values)
        monitor.log(step, {"psnr": 10 + step / 7}, prefix="val_ema")
        monitor.image(step, "grid", np.full((2, 4, 3), 50 * start, np.uint8))
"""


# As in a notebook, where W&B asks though nothing is a terminal: by `input`, which is the kernel's.
NOTEBOOK = """
import builtins, getpass, sys
def ask(*_):
    print("ASKED", file=sys.stderr, flush=True)
    return "3"
builtins.input = getpass.getpass = ask
import wandb.errors.term as term
term._in_jupyter = lambda: True
from bsq_jax.training.writers import open_record

record = open_record(__import__("pathlib").Path(sys.argv[1]), wandb="digits")
record.write(1, "train", {"loss": 1.0})
record.close()
"""


def run_python(code, workdir, **variables):
    """Output and errors of a program in a process of its own, where nobody has logged in."""
    folder = workdir.parent
    environment = {name: text for name, text in os.environ.items() if name[:5] != "WANDB"}
    environment |= {"HOME": str(folder), "PYTHONPATH": str(ROOT), **variables}
    environment["PYTHONPATH"] += os.pathsep + os.environ.get("PYTHONPATH", "")
    done = subprocess.run(
        [sys.executable, "-c", code, str(workdir)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def records(path):
    """The records of a .wandb file: blocks of 32 kB as LevelDB's log, behind seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, held = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place < len(data):
        left = -place % 32768
        if 0 < left < 7:  # no room for a header: padding
            place += left
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        held += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(held)
            held = b""


def rows(found):
    """What was logged, as dictionaries by full name; what W&B adds is left out."""
    logged = []
    for record in found:
        if record.WhichOneof("record_type") == "history":
            items = [
                (item.key or ".".join(item.nested_key), item.value_json)
                for item in record.history.item
            ]
            row = {key: json.loads(text) for key, text in items}
            logged.append({key: value for key, value in row.items() if key[0] != "_"})
    return logged


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("wandb") / "run"
    _, error = run_python(RUNS, workdir, WANDB_MODE="offline")
    files = sorted(
        workdir.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime
    )
    return workdir, [(path, list(records(path))) for path in files], error


def test_the_record_is_that_of_the_lines(ran):
    workdir, ((_, first), (_, second)), _ = ran
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 6]
    logged = [row for row in rows(first) if row["step"] <= 2] + rows(second)
    metrics = [row for row in logged if "grid.path" not in row]
    assert len(metrics) == len(lines)
    for row, line in zip(metrics, lines, strict=True):
        prefix = line["prefix"]
        scalars = {k: v for k, v in line.items() if isinstance(v, float) and k != "time"}
        found = {
            name: float(f"{value:.7g}")
            for name, value in row.items()
            if name != "step" and "." not in name
        }
        assert found == {f"{prefix}/{name}": value for name, value in scalars.items()}
        assert row["step"] == line["step"]
        if prefix == "train":
            assert row["train/bits._type"] == "histogram"
            assert sum(row["train/bits.values"]) == len(line["bits"])
    # What was done again after the checkpoint is there from both, over the same axis.
    assert [row["step"] for row in rows(first)] == [1, 2, 3, 4, 4, 4]


def test_pictures_and_settings(ran):
    _, both, _ = ran
    for number, (path, found) in enumerate(both):
        (row,) = [row for row in rows(found) if "grid.path" in row]
        picture = np.asarray(Image.open(path.parent / "files" / row["grid.path"]))
        assert (picture == 100 * number).all()
        assert picture.shape == (2, 4, 3)
        settings = {}
        for record in found:
            if record.WhichOneof("record_type") == "config":
                for item in record.config.update:
                    settings[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        assert settings["train"]["steps"] == 1_000_000 + 2 * number


def test_a_resumed_run_has_the_same_id_and_axis(ran):
    workdir, both, error = ran
    kept = json.loads((workdir / "wandb_run.json").read_text())
    for path, found in both:
        assert path.name == f"run-{kept['id']}.wandb"
        (run,) = [record.run for record in found if record.WhichOneof("record_type") == "run"]
        assert (run.run_id, run.project, run.display_name) == (kept["id"], "digits", "run")
        axes = {
            record.metric.glob_name: record.metric.step_metric
            for record in found
            if record.WhichOneof("record_type") == "metric"
        }
        assert axes["*"] == "step"
    told = [line for line in error.splitlines() if "W&B" in line]
    assert told == [f"W&B: offline, in {workdir}/wandb"] * 2
    assert "wandb:" not in error


def test_a_notebook_without_a_login_records_offline_and_asks_nothing(tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    out, error = run_python(NOTEBOOK, workdir, TERM="xterm")
    assert "ASKED" not in error
    assert "warning: W&B: No API key configured" in out
    assert f"the run is recorded offline in {workdir}/wandb" in out
    (path,) = workdir.glob("wandb/offline-run-*/*.wandb")
    assert rows(records(path)) == [{"step": 1, "train/loss": 1.0}]
