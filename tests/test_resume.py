"""Runs that are stopped go on as if they had not been. Oracle: the run that was never stopped."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest

from bsq_jax import main
from bsq_jax.config import finalize
from bsq_jax.core.errors import INTERRUPTED, RUN_AGAIN
from bsq_jax.core.sharding import make_mesh
from bsq_jax.core.trees import leaves
from bsq_jax.training.tasks.tokenizer import make_tokenizer_task
from bsq_jax.training.workdir import open_checkpoints, read_config

TINY = str(pathlib.Path(__file__).parent / "tiny.py")
# Killed at 14, when the checkpoint of 8 is complete: saving that of 12 has waited for it.
STEPS, EVERY, STOP = 24, 4, 14
FLAGS = [f"--config.train.steps={STEPS}", f"--config.train.checkpoint_every={EVERY}"]
FLAGS += [f"--config.train.keep={STEPS}"]
# Both players, and all that the second one keeps.
FLAGS += ["--config.loss.adversarial=0.1", "--config.loss.r1_every=3", "--config.loss.lecam=0.01"]
FLAGS += ["--config.discriminator.name=patchgan", "--config.discriminator.width=4"]
FLAGS += ["--config.discriminator.layers=1"]
# A codebook of moving averages, most of whose codes are replaced now and then.
FLAGS += ["--config.quantizer.name=vq", "--config.quantizer.codes=64"]
FLAGS += [
    "--config.quantizer.learning=ema",
    "--config.quantizer.restart=0.9",
    "--config.optimizer.name=muon",
]

PARTS = ["params", "ema", "opt_state", "adversary", "codebooks"]  # of the state
PICTURES = ["--config", TINY, *FLAGS]
# Clips of several lengths, without a second player and without a codebook.
CLIP_STEPS, CLIP_EVERY = 15, 5
CLIPS = ["--config", f"{TINY}:clips", f"--config.train.checkpoint_every={CLIP_EVERY}"]
CLIPS += [f"--config.train.{key}={CLIP_STEPS}" for key in ("steps", "keep")]
CLIP_PARTS = ["params", "ema", "opt_state"]


# The command with one of eight devices, as this process has: the number of all of them decides on
# the number of threads, and that on the order of sums.
ON_ONE_DEVICE = """
import jax
found = jax.devices
jax.devices = lambda *_: found()[:1]
jax.device_count = lambda *_: 1
from bsq_jax.main import main
"""
RUNS = "main()"
# A terminal's process takes Ctrl-C, also where these tests run in the background.
CTRL_C = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
"""
# Says when a step begins, the first one by being compiled.
TELLS = """
import sys
from bsq_jax.training.stop_signal import StopSignal
begins = StopSignal.begins
def tell(self, step, **more):
    begins(self, step, **more)
    print("begins", step, file=sys.stderr, flush=True)
StopSignal.begins = tell
main()
"""


def start(workdir):
    """The run in a process of its own, on as many devices."""
    words = ["-c", CTRL_C + ON_ONE_DEVICE + RUNS, "--workdir", str(workdir), *PICTURES]
    root = pathlib.Path(main.__file__).parents[1]
    return subprocess.Popen([sys.executable, *words], cwd=root, stderr=subprocess.PIPE, text=True)


def interrupt(workdir, due, number):
    """Starts a run, sends it a signal when `due()`: ``(status, standard error)``."""
    process = start(workdir)
    give_up = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < give_up:
        if due():
            process.send_signal(number)
            break
        time.sleep(0.005)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def answer(workdir, *presses, flags=()):
    """Starts a run and presses Ctrl-C at lines with the words of `presses`, one after the other.

    Returns the status and the lines of standard error.
    """
    code = CTRL_C + ON_ONE_DEVICE + TELLS
    words = ["-c", code, "--workdir", str(workdir), "--config", TINY, *flags]
    root = pathlib.Path(main.__file__).parents[1]
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}  # compiling takes time
    waiting, lines = list(presses), []
    with subprocess.Popen(
        [sys.executable, *words], cwd=root, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr:
            lines.append(line.rstrip("\n"))
            if waiting and waiting[0] in line:
                if len(waiting) < len(presses):
                    time.sleep(0.5)  # at once it would be the same press
                process.send_signal(signal.SIGINT)
                del waiting[0]
    assert not waiting, lines
    return process.returncode, lines


def logged(workdir, step):
    """Whether a run has logged `step`, to ask again and again."""
    metrics = workdir / "metrics.jsonl"
    return lambda: metrics.exists() and metrics.read_text().count("\n") >= step


def finish(workdir, *flags, run=PICTURES):
    assert main.run(["--workdir", str(workdir), *run, *flags]) == 0


def result(workdir, steps=STEPS, parts=PARTS):
    """All arrays of the last checkpoint by name, and the log without what clocks wrote."""
    with open_checkpoints(workdir) as checkpoints:
        step, state, _ = checkpoints.restore_partial(parts)
    assert step == steps
    arrays = {name: np.asarray(leaf) for name, leaf in leaves(state).items()}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    clocks = ("time", "images_per_second", "clips_per_second", "data_wait", "tflops_per_device")
    return arrays, [{k: v for k, v in line.items() if k not in clocks} for line in lines]


def assert_same(one, other):
    (arrays, lines), (other_arrays, other_lines) = one, other
    assert arrays.keys() == other_arrays.keys()
    for name, array in arrays.items():
        assert array.tobytes() == other_arrays[name].tobytes(), name
    assert lines == other_lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def uninterrupted(folder):
    finish(folder / "whole")
    found = result(folder / "whole")
    assert [line["step"] for line in found[1]] == [*range(1, STEPS + 1), STEPS, STEPS]
    return found


@pytest.fixture(scope="module")
def killed(folder, uninterrupted):
    """The workdir of a run that was killed."""
    workdir = folder / "killed"
    status, _ = interrupt(workdir, logged(workdir, STOP), signal.SIGKILL)
    assert status == -signal.SIGKILL
    return workdir


def copy(killed, tmp_path):
    shutil.copytree(killed, tmp_path / "run")
    return tmp_path / "run"


def test_kill_and_resume_end_in_the_same_bits(killed, tmp_path, uninterrupted):
    workdir = copy(killed, tmp_path)
    finish(workdir)
    assert_same(result(workdir), uninterrupted)


def test_a_run_on_clips_of_several_lengths_goes_on_as_if_never_killed(tmp_path, capsys):
    finish(tmp_path, run=CLIPS)
    err = capsys.readouterr().err
    assert "attention (auto): dense for single frames; blocked for clips of 4 frames" in err
    assert "compiling for single frames" in err
    whole = result(tmp_path, CLIP_STEPS, CLIP_PARTS)
    # What a kill between two checkpoints leaves: an old checkpoint, and a log that is longer.
    for step in range(2 * CLIP_EVERY, CLIP_STEPS + 1, CLIP_EVERY):
        shutil.rmtree(tmp_path / "checkpoints" / str(step))
    finish(tmp_path, run=CLIPS)
    assert f"; resuming at step {CLIP_EVERY} of {CLIP_STEPS}, workdir " in capsys.readouterr().err
    assert_same(result(tmp_path, CLIP_STEPS, CLIP_PARTS), whole)


def test_a_flipped_bit_in_the_newest_checkpoint(killed, tmp_path, uninterrupted, caplog):
    workdir = copy(killed, tmp_path)
    with open_checkpoints(workdir) as checkpoints:
        newest = checkpoints.latest_step()
    assert 2 * EVERY <= newest < STEPS
    largest = max(
        (p for p in (workdir / "checkpoints" / str(newest) / "state").rglob("*") if p.is_file()),
        key=lambda path: path.stat().st_size,
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    finish(workdir)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any(f"checkpoints/{newest} is not used" in warning for warning in warnings)
    assert_same(result(workdir), uninterrupted)


def test_a_run_stopped_by_ctrl_c_and_by_sigterm_goes_on(tmp_path, uninterrupted):
    """In training it is saved; after the last step all is saved, and it ends at once."""
    workdir = tmp_path / "run"
    status, err = interrupt(workdir, logged(workdir, STOP), signal.SIGINT)
    assert status == INTERRUPTED, err
    with open_checkpoints(workdir) as checkpoints:
        saved = checkpoints.latest_step()
    assert f"Ctrl-C: finishing step {saved} and saving; press it again to leave at once\n" in err
    assert f"stopped by Ctrl-C after step {saved}: saved in " in err.splitlines()[-1]
    assert err.endswith(" s, run the same command again to go on\n")
    assert STOP <= saved < STEPS

    table = workdir / "checkpoints" / str(STEPS) / "checksums.json"
    status, err = interrupt(workdir, table.exists, signal.SIGTERM)
    assert status == RUN_AGAIN, err
    last = f"stopped by SIGTERM in the evaluation of step {STEPS}: the step is saved, run the same"
    assert err.endswith(f"{last} command again to evaluate\n")
    assert not (workdir / "evaluation.json").exists()
    finish(workdir)
    assert (workdir / "evaluation.json").exists()
    assert_same(result(workdir), uninterrupted)


def test_ctrl_c_twice_before_anything_is_saved_and_in_an_evaluation(tmp_path):
    """That which one press while compiling saves is in test_first_hour.py."""
    flags = ["--config.train.evaluate_every=2"]
    pressed = (
        "Ctrl-C: finishing step 1 (it is being compiled, which cannot be cut short) and saving"
    )
    status, lines = answer(tmp_path, "begins 1", "Ctrl-C", flags=flags)
    assert status == INTERRUPTED, lines
    assert lines[-2].startswith(pressed)
    assert lines[-1] == "left at once: no step had been saved, all are lost"
    assert not (tmp_path / "checkpoints").exists()

    status, lines = answer(tmp_path, "step 2/6  evaluating", flags=flags)
    assert status == INTERRUPTED, lines
    said = "in the evaluation of step 2"
    assert f"Ctrl-C {said}: leaving, the step is saved; press it again to leave at once" in lines
    last = f"stopped by Ctrl-C {said}: the step is saved, run the same command again to go on"
    assert lines[-1] == last
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 2


def test_looking_at_a_run_does_not_change_it(tmp_path, uninterrupted):
    finish(tmp_path, "--config.train.evaluate_every=8", "--config.train.picture_every=16")
    arrays, lines = result(tmp_path)
    own = [line for line in lines if line["prefix"] == "train" or line["step"] == STEPS]
    assert_same((arrays, own), uninterrupted)
    looked = [line["step"] for line in lines if line["prefix"] == "val_ema"]
    assert looked == [8, 16, STEPS]
    pictures = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert pictures == [
        *(f"crops_00000{step}.png" for step in (16, STEPS)),
        *(f"photographs_00000{step}.png" for step in (16, STEPS)),
    ]


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
@pytest.mark.usefixtures("eight_devices")
def test_another_mesh_gets_the_same_state(folder, uninterrupted, sizes):
    mesh = make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
    task = make_tokenizer_task(finalize(read_config(folder / "whole")))
    with open_checkpoints(folder / "whole") as checkpoints:
        step, state, _ = checkpoints.restore_latest(task.abstract_state(mesh))
    assert step == int(state.step) == STEPS
    found = leaves({name: getattr(state, name) for name in PARTS})
    assert found.keys() == uninterrupted[0].keys()
    for name, leaf in found.items():
        assert leaf.sharding.mesh.shape == mesh.shape, name
    chex.assert_trees_all_equal(found, {name: uninterrupted[0][name] for name in found})
    split = {tuple(leaf.sharding.spec) for leaf in found.values()}
    assert any("fsdp" in spec for spec in split)


def test_a_loss_that_is_not_finite_stops_the_run(killed, tmp_path, monkeypatch, capsys):
    workdir = copy(killed, tmp_path)
    with open_checkpoints(workdir) as checkpoints:
        newest = checkpoints.latest_step()
    words = ["bsq-jax", "--workdir", str(workdir), *PICTURES]
    monkeypatch.setattr(sys, "argv", [*words, "--config.optimizer.learning_rate=1e30"])
    with pytest.raises(SystemExit, match="2"):
        main.main()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: step ")
    assert " is NaN" in last or " is infinite" in last
    assert "try a lower learning rate" in last
    with open_checkpoints(workdir) as checkpoints:
        assert checkpoints.latest_step() == newest
        _, state, _ = checkpoints.restore_partial(["params"])
    chex.assert_tree_all_finite(state)
