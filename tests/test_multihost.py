"""Two processes of four devices each. Oracle: one process of eight; environments by hand."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from bsq_jax import main
from bsq_jax.core import distributed
from bsq_jax.core.errors import UserError
from bsq_jax.workdir import open_checkpoints

TINY = str(pathlib.Path(__file__).parent / "tiny.py")
ROOT = pathlib.Path(main.__file__).parents[1]
# Every parameter lies over both processes.
FLAGS = ["--config.train.steps=4", "--config.mesh.data=1", "--config.mesh.fsdp=8"]


def free_port():
    with socket.socket() as taken:
        taken.bind(("", 0))
        return taken.getsockname()[1]


def start(*words, devices=4):
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        **{"env": environment, "cwd": ROOT, "text": True},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE},
    )


def test_two_processes_do_what_one_does(tmp_path):
    port = free_port()
    command = ["-m", "bsq_jax.main", "--config", TINY, "--workdir", tmp_path / "two", *FLAGS]
    flags = ["--coordinator", f"localhost:{port}", "--processes", 2, "--process"]
    processes = [start(*command, *flags, index) for index in range(2)]
    assert main.run(["--config", TINY, "--workdir", str(tmp_path / "one"), *FLAGS]) == 0
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "mesh 1x8x1" in outputs[0][1]
    assert "PSNR (dB)" in outputs[0][0]
    own = [line for line in outputs[1][0].splitlines() if not line.startswith("[Gloo]")]
    assert own == []  # process 1 computes and is silent
    assert "step" not in outputs[1][1]

    def read(name):
        workdir = tmp_path / name
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        return lines, json.loads((workdir / "evaluation.json").read_text())

    (lines, report), (other_lines, other_report) = read("one"), read("two")
    assert [line["step"] for line in lines] == [line["step"] for line in other_lines]
    for line, other in zip(lines, other_lines, strict=True):
        for name in line.keys() - {"time", "prefix", "images_per_second", "data_wait"}:
            # A bit that flips at a tie moves the count of codes in use.
            tolerance = {"codes_used": 0.05, "usage": 0.05}.get(name, 1e-3)
            np.testing.assert_allclose(line[name], other[name], tolerance, 1e-6, err_msg=name)
    assert report["measured"] == other_report["measured"]
    assert report["oracle"] == other_report["oracle"]
    names = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").glob("pictures/*"))
    assert names == sorted(p.relative_to(tmp_path / "two") for p in tmp_path.glob("two/pictures/*"))
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1


def test_sigterm_stops_both_processes_at_the_same_step(tmp_path):
    metrics = tmp_path / "metrics.jsonl"

    def logged():
        return [json.loads(line)["step"] for line in metrics.read_text().splitlines()]

    command = ["--config", TINY, "--workdir", str(tmp_path), "--config.train.checkpoint_every=1000"]
    flags = ["--coordinator", f"localhost:{free_port()}", "--processes", 2, "--process"]
    more = ["-m", "bsq_jax.main", *command, "--config.train.steps=1000", *flags]
    processes = [start(*more, index, devices=1) for index in range(2)]
    give_up = time.monotonic() + 120
    while all(process.poll() is None for process in processes) and time.monotonic() < give_up:
        if metrics.exists() and len(logged()) >= 5:
            break
        time.sleep(0.01)
    for process in processes:  # as a scheduler does
        process.send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    with open_checkpoints(tmp_path) as checkpoints:
        step = checkpoints.latest_step()
    assert 5 <= step < 1000
    assert f"stopped by a signal after step {step}: saved" in outputs[0][1]
    assert logged() == list(range(1, step + 1))
    # One process goes on with what two have saved together.
    assert main.run([*command, f"--config.train.steps={step + 2}"]) == 0
    assert logged()[: step + 2] == list(range(1, step + 3))


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"SLURM_NTASKS": "8"}, False),  # a shell inside an allocation
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "3"}, True),
        ({"SLURM_NTASKS": "8", "SLURM_STEP_ID": "0"}, True),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
    ],
)
def test_what_the_environment_says(environment, several):
    assert distributed.several_processes(environment) is several


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("coordinator", "processes", "process", "words"),
    [
        ("localhost:1234", None, None, "give all or none"),
        (None, 2, 0, "give all or none"),
        ("localhost", 2, 0, "it must be HOST:PORT"),
        ("localhost:x", 2, 0, "it must be HOST:PORT"),
        ("localhost:99999", 2, 0, "it must be HOST:PORT"),
        ("localhost:1234", 2, 2, "it must be 0 or more and below 2"),
        ("localhost:1234", 2, -1, "it must be 0 or more and below 2"),
        ("no-such-host.invalid:1234", 2, 1, "no-such-host.invalid is unknown"),
    ],
)
def test_flags_that_cannot_be(coordinator, processes, process, words):
    with pytest.raises(UserError, match=words) as raised:
        distributed.initialize(coordinator, processes, process)
    assert "\n" not in str(raised.value)


def test_a_port_in_use():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on port {port} .*another port"):
            distributed.initialize(f"localhost:{port}", 2, 0)


@pytest.mark.parametrize("index", [0, 1])
def test_who_waits_in_vain_says_so_in_one_line(index):
    program = (
        "from bsq_jax.core.distributed import initialize; "
        f"initialize('localhost:{free_port()}', 2, {index}, timeout=1)"
    )
    process = start("-c", program)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert out == ""
    assert err.startswith("error: waited 1 s for all 2 processes with --coordinator localhost:")
    assert err.count("\n") == 1


def test_one_process_alone_stays_alone(monkeypatch):
    for name in ("TPU_WORKER_HOSTNAMES", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    distributed.initialize()
    assert jax.process_count() == 1
