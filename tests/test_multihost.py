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
from flax.traverse_util import flatten_dict

from bsq_jax import main
from bsq_jax.core import distributed
from bsq_jax.core.errors import UserError
from bsq_jax.workdir import open_checkpoints, read_config

TINY = str(pathlib.Path(__file__).parent / "tiny.py")
ROOT = pathlib.Path(main.__file__).parents[1]
# Every parameter of the generator lies over both processes. Two players, with R1 at every second
# step; pictures are just large enough for the frozen networks that judge.
FLAGS = [
    *("--config.train.steps=4", "--config.mesh.data=1", "--config.mesh.fsdp=8"),
    *("--config.loss.adversarial=0.1", "--config.loss.r1_every=2", "--config.optimizer.ema=0"),
    *("--config.discriminator.channel_base=64", "--config.model.image_size=32"),
    *("--config.data.resize=32", "--config.data.eval_resize=32"),
    *("--config.eval.lpips=true", "--config.eval.frechet=true", "--config.eval.batch_size=32"),
]
# A bit that flips at a tie moves the count of codes in use.
TOLERANCES = {"codes_used": 0.05, "usage": 0.05, "bit_means": 0.01, "group_entropies": 0.01}


def free_port():
    with socket.socket() as taken:
        taken.bind(("", 0))
        return taken.getsockname()[1]


def start(*words, devices=4):
    count = f"--xla_force_host_platform_device_count={devices}"
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {count}",  # the last one counts
        # Process 0 alone finds its programs again, and gives up on a process that compiles for more
        # than 30 seconds; without a cache the two keep pace.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "OPENBLAS_NUM_THREADS": "1",  # as many threads as cores in each process block each other
    }
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        **{"env": environment, "cwd": ROOT, "text": True},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE},
    )


def read(workdir):
    """The logged lines by step and kind, the report and the parameters, without times and paths."""
    lines = {}
    for text in (workdir / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        for name in ("time", "images_per_second", "clips_per_second", "data_wait"):
            line.pop(name, None)
        lines[f"{line.pop('prefix')} {line['step']}"] = line
    report = json.loads((workdir / "evaluation.json").read_text())
    del report["path"], report["pictures"], report["videos"]
    both = read_config(workdir).loss.adversarial > 0
    with open_checkpoints(workdir) as checkpoints:
        _, state, _ = checkpoints.restore_partial(["params", "adversary"] if both else ["params"])
    if both:
        del state["adversary"]["opt_state"]
    return {"lines": lines, "report": report, "state": flatten_dict(state, sep="/")}


def same(one, two, name=""):
    """All texts are equal, and all numbers nearly."""
    if isinstance(one, dict):
        assert one.keys() == two.keys(), name
        for key in one:
            same(one[key], two[key], key)
    elif isinstance(one, list):
        assert len(one) == len(two), name
        for pair in zip(one, two, strict=True):
            same(*pair, name)
    elif isinstance(one, float) or name in TOLERANCES:
        np.testing.assert_allclose(two, one, TOLERANCES.get(name, 1e-3), 1e-6, err_msg=name)
    else:
        assert one == two, name


def compare(tmp_path, words):
    """Runs a command in two processes and in this one; what both wrote, and the two's output."""
    port = free_port()
    command = ["-m", "bsq_jax.main", "--workdir", tmp_path / "two", *words]
    flags = ["--coordinator", f"localhost:{port}", "--processes", 2, "--process"]
    processes = [start(*command, *flags, index) for index in range(2)]
    assert main.run(["--workdir", str(tmp_path / "one"), *words]) == 0
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    one, two = (read(tmp_path / name) for name in ("one", "two"))
    assert one["lines"].keys() == two["lines"].keys()
    assert one["state"].keys() == two["state"].keys()
    for name, value in one["state"].items():
        # Four steps move a parameter by up to four thousandths.
        np.testing.assert_allclose(two["state"][name], value, 1e-4, 1e-5, err_msg=name)
    for kind in ("lines", "report"):
        same(one[kind], two[kind])
    for kind in ("pictures", "videos"):
        names = (
            sorted(p.name for p in tmp_path.glob(f"{name}/{kind}/*")) for name in ("one", "two")
        )
        assert len(set(map(tuple, names))) == 1
    return one, outputs


def test_two_processes_do_what_one_does(tmp_path):
    one, outputs = compare(tmp_path, ["--config", TINY, *FLAGS])
    assert "mesh 1x8x1" in outputs[0][1]
    # Process 1 computes and is silent; but Gloo's threads write there too, in the middle of lines.
    for written in ("PSNR (dB)", "Frechet", "tokens", "report: ", "picture: "):
        assert written in outputs[0][0]
        assert written not in outputs[1][0]
    assert "step" not in outputs[1][1]
    assert {name.split("/")[0] for name in one["state"]} == {"params", "adversary"}
    assert one["report"]["judges"]["frechet_vgg16"]["samples"] == 64
    assert {"lpips", "frechet_vgg16", "precision"} <= one["report"]["results"]["raw"].keys()
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1


def test_two_processes_train_a_model_of_tokens(tmp_path):
    """A masked language model: the frozen tokenizer, classes, and samples from all devices."""
    words = ["--config", TINY, "--workdir", str(tmp_path / "tokenizer"), "--config.train.steps=1"]
    assert main.run([*words, "--config.data.source=digits"]) == 0
    words = ["--config", f"{TINY}:masked_lm={tmp_path / 'tokenizer'}", "--config.train.steps=2"]
    words += ["--config.optimizer.ema=0"]
    _, outputs = compare(tmp_path, [*words, "--config.mesh.data=1", "--config.mesh.fsdp=8"])
    assert "cross entropy" in outputs[0][0]
    assert "cross entropy" not in outputs[1][0]
    assert (tmp_path / "two" / "pictures" / "samples_0000002.png").is_file()


def test_two_processes_have_one_length_of_clips_at_a_step(tmp_path):
    words = ["--config", f"{TINY}:clips", "--config.train.steps=4", "--config.optimizer.ema=0"]
    one, outputs = compare(tmp_path, [*words, "--config.data.image_share=0.5"])
    for length in ("single frames", "clips of 4 frames"):
        assert f"compiling for {length}" in outputs[0][1]
    assert one["report"]["measured"]["frames"] == 4
    assert len(list((tmp_path / "two" / "videos").iterdir())) == 2


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
