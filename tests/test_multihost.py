"""Two processes of two devices each. Oracle: one process of four; environments by hand.

One pair of processes trains all the models that are compared, one after the other: starting a
process and connecting it takes longer than such a run.
"""

import http.server
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from small_codec import make_codec
from stand_ins import takes_ctrl_c

from bsq_jax import main
from bsq_jax.core import distributed
from bsq_jax.core.errors import INTERRUPTED, MISTAKE, RUN_AGAIN, UNAVAILABLE, UserError
from bsq_jax.training.workdir import open_checkpoints, read_config

DEVICES = 4

TINY = str(pathlib.Path(__file__).parent / "tiny.py")
ROOT = pathlib.Path(main.__file__).parents[1]
# Every parameter of the generator lies over both processes. Two players, with R1 at every second
# step; pictures are just large enough for the frozen networks that judge.
FLAGS = [
    *("--config.train.steps=4", "--config.mesh.data=1", "--config.mesh.fsdp=4"),
    *("--config.loss.adversarial=0.1", "--config.loss.r1_every=2", "--config.optimizer.ema=0"),
    *("--config.discriminator.name=patchgan", "--config.discriminator.layers=1"),
    *("--config.discriminator.width=4", "--config.model.image_size=32"),
    *("--config.data.resize=32", "--config.data.eval_resize=32"),
    *("--config.eval.lpips=true", "--config.eval.frechet=true", "--config.eval.batch_size=8"),
    # A dozen pictures are enough for them, and what most of the time would go into.
    "--config.data.source=folder:{folder}/pictures",
]
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# A bit that flips at a tie moves the count of codes in use.
TOLERANCES = {
    **dict.fromkeys(("codes_used", "usage", "perplexity", "codes_dead"), 0.05),
    **dict.fromkeys(("bit_means", "group_entropies"), 0.01),
}


def free_port():
    with socket.socket() as taken:
        taken.bind(("", 0))
        return taken.getsockname()[1]


started = []


@pytest.fixture(autouse=True)
def nothing_stays_behind():
    """Processes that a failed test has left."""
    yield
    for process in started:
        process.kill()
        process.communicate()
    started.clear()


def start(*words, devices=2, more=()):
    count = f"--xla_force_host_platform_device_count={devices}"
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {count}",  # the last one counts
        # Process 0 alone finds its programs again, and gives up on a process that compiles for more
        # than 30 seconds; without a cache the two keep pace.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "OPENBLAS_NUM_THREADS": "1",  # as many threads as cores in each process block each other
        **dict(more),
    }
    with takes_ctrl_c():
        process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            **{"env": environment, "cwd": ROOT, "text": True},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE},
        )
    started.append(process)
    return process


def read(workdir):
    """The logged lines by step and kind, the report and the parameters, without times and paths."""
    lines = {}
    for text in (workdir / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        timed = ("images_per_second", "clips_per_second", "data_wait", "tflops_per_device", "mfu")
        for name in ("time", *timed):
            line.pop(name, None)
        lines[f"{line.pop('prefix')} {line['step']}"] = line
    report = json.loads((workdir / "evaluation.json").read_text())
    assert report.pop("name") == workdir.name
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


# What the pair trains, by name: arguments, in which {folder} is one that all runs may use.
RUNS = {
    "tokenizer": ["--config", TINY, *FLAGS],
    "masked_lm": [
        *("--config", f"{TINY}:masked_lm={{folder}}/tokenizer", "--config.train.steps=2"),
        *("--config.optimizer.ema=0", "--config.mesh.data=1", "--config.mesh.fsdp=4"),
    ],
    "clips": [
        *("--config", f"{TINY}:clips", "--config.train.steps=4", "--config.optimizer.ema=0"),
        "--config.data.image_share=0.5",
    ],
}
TRAINS = """
import json, sys
from bsq_jax import main
from bsq_jax.core.distributed import initialize

coordinator, index, *runs = sys.argv[1:]
initialize(coordinator, 2, int(index))
for words in runs:
    for stream in (sys.stdout, sys.stderr):
        print("=== next run", file=stream, flush=True)
    assert main.run(json.loads(words)) == 0
"""


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """By name of `RUNS` what one process wrote, and standard output and error of both of the two.

    What the two wrote has been compared with it.
    """
    folder = tmp_path_factory.mktemp("runs")
    random = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 12)):
        (folder / "pictures" / split).mkdir(parents=True)
        for number, coarse in enumerate(random.integers(0, 256, (count, 5, 5, 3), np.uint8)):
            picture = Image.fromarray(coarse).resize((32, 32))
            picture.save(folder / "pictures" / split / f"{number:02d}.png")
    make_codec(prior=False).tokenizer.save(folder / "tokenizer")
    commands = {name: [word.format(folder=folder) for word in run] for name, run in RUNS.items()}
    texts = [
        json.dumps(["--workdir", str(folder / name / "two"), *run])
        for name, run in commands.items()
    ]
    address = f"localhost:{free_port()}"
    pair = [start("-c", TRAINS, address, index, *texts) for index in range(2)]
    for name, run in commands.items():
        assert main.run(["--workdir", str(folder / name / "one"), *run]) == 0
    ends = [process.communicate(timeout=400) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], ends
    parts = [[text.split("=== next run\n")[1:] for text in both] for both in ends]
    found = {}
    for number, name in enumerate(commands):
        outputs = [(out[number], err[number]) for out, err in parts]
        found[name] = compare(folder / name), outputs, folder / name / "two"
    return found


def compare(folder):
    """What one process wrote, after a look whether the two wrote the same."""
    one, two = (read(folder / name) for name in ("one", "two"))
    assert one["lines"].keys() == two["lines"].keys()
    assert one["state"].keys() == two["state"].keys()
    for name, value in one["state"].items():
        # Four steps move a parameter by up to four thousandths.
        np.testing.assert_allclose(two["state"][name], value, 1e-4, 1e-5, err_msg=name)
    for kind in ("lines", "report"):
        same(one[kind], two[kind])
    for kind in ("pictures", "videos"):
        names = (sorted(p.name for p in folder.glob(f"{name}/{kind}/*")) for name in ("one", "two"))
        assert len(set(map(tuple, names))) == 1
    return one


def test_two_processes_do_what_one_does(compared):
    one, outputs, two = compared["tokenizer"]
    assert "mesh 1x4x1" in outputs[0][1]
    # Process 1 computes and is silent; but Gloo's threads write there too, in the middle of lines.
    for written in ("PSNR (dB)", "Frechet", "tokens", "report: ", "picture: "):
        assert written in outputs[0][0]
        assert written not in outputs[1][0]
    assert "step" not in outputs[1][1]
    assert {name.split("/")[0] for name in one["state"]} == {"params", "adversary"}
    assert one["report"]["judges"]["frechet_vgg16"]["samples"] == 12
    assert {"lpips", "frechet_vgg16", "precision"} <= one["report"]["results"]["raw"].keys()
    assert len(list((two / "tensorboard").iterdir())) == 1


def test_two_processes_train_a_model_of_tokens(compared):
    """A masked language model: the frozen tokenizer, classes, and samples from all devices."""
    _, outputs, two = compared["masked_lm"]
    assert "cross entropy" in outputs[0][0]
    assert "cross entropy" not in outputs[1][0]
    assert (two / "pictures" / "samples_0000002.png").is_file()


def test_two_processes_have_one_length_of_clips_at_a_step(compared):
    one, outputs, two = compared["clips"]
    for length in ("single frames", "clips of 4 frames"):
        assert f"compiling for {length}" in outputs[0][1]
    assert one["report"]["measured"]["frames"] == 4
    assert len(list((two / "videos").iterdir())) == 2


def two_processes(*words, devices=2):
    """Two processes that run the same command, and the words after ``--process``."""
    flags = ["--coordinator", f"localhost:{free_port()}", "--processes", 2, "--process"]
    return [
        start("-m", "bsq_jax.main", *words, *flags, index, devices=devices) for index in range(2)
    ]


def wait_for_steps(metrics, count, processes):
    give_up = time.monotonic() + 120
    while all(process.poll() is None for process in processes) and time.monotonic() < give_up:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= count:
            return
        time.sleep(0.01)


def test_a_killed_process_ends_the_other_and_any_number_goes_on(tmp_path):
    """What is resumed on one process and on two is what a run without interruption does.

    A signal stops both processes at the same step, SIGTERM to both, as from a scheduler, and Ctrl-C
    to one of them.
    """
    flags = ["--config", TINY, "--config.mesh.data=1", "--config.mesh.fsdp=4"]
    flags += ["--config.optimizer.ema=0"]
    # A rate that does not depend on the number of steps.
    flags += ["--config.optimizer.warmup_steps=0", "--config.optimizer.final=1.0"]
    endless = [*flags, "--config.train.steps=1000000"]
    killed = two_processes(
        *endless, "--config.train.checkpoint_every=3", "--workdir", tmp_path / "one"
    )
    wait_for_steps(tmp_path / "one" / "metrics.jsonl", 8, killed)
    killed[1].kill()
    began = time.monotonic()
    _, err = killed[0].communicate(timeout=120)
    assert time.monotonic() - began < 60
    assert killed[0].returncode == RUN_AGAIN, err
    (told,) = (line for line in err.splitlines() if "error: " in line)
    assert "another process was lost, or a device failed (" in told or "not heard of for" in told
    steps = [int(path.name) for path in (tmp_path / "one" / "checkpoints").glob("[0-9]*")]
    assert told.rpartition(": the same command goes on from step ")[2] in map(str, steps)
    assert "Traceback" not in err
    killed[1].communicate()

    with open_checkpoints(tmp_path / "one") as checkpoints:
        step = checkpoints.latest_step()
    assert step >= 3
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    flags.append("--config.train.checkpoint_every=1000000")  # from now on a signal alone saves
    steps = f"--config.train.steps={step + 3}"
    assert main.run([*flags, steps, "--workdir", str(tmp_path / "one")]) == 0
    assert main.run([*flags, steps, "--workdir", str(tmp_path / "whole")]) == 0
    whole, one = (read(tmp_path / name) for name in ("whole", "one"))
    assert list(one["lines"]) == list(whole["lines"])
    for kind in ("lines", "report"):
        same(whole[kind], one[kind])

    endless = [*flags, "--config.train.steps=1000000", "--workdir", tmp_path / "two"]
    metrics = tmp_path / "two" / "metrics.jsonl"
    for number, whom, name, status in (
        (signal.SIGTERM, slice(2), "SIGTERM", RUN_AGAIN),
        (signal.SIGINT, slice(1, 2), "Ctrl-C", INTERRUPTED),
    ):
        before, logged = step, len(metrics.read_text().splitlines())
        processes = two_processes(*endless)
        wait_for_steps(metrics, logged + 4, processes)
        for process in processes[whom]:
            process.send_signal(number)
        outputs = [process.communicate(timeout=120) for process in processes]
        assert [process.returncode for process in processes] == [status] * 2, outputs
        assert f"resuming at step {before}" in outputs[0][1]
        with open_checkpoints(tmp_path / "two") as checkpoints:
            step = checkpoints.latest_step()
        assert before + 3 < step < 1000000
        assert f"stopped by {name} after step {step}: saved" in outputs[0][1]
        told = "Ctrl-C: all processes finish the same step and save; press it again to leave at"
        assert [told in err for _, err in outputs] == [False, number == signal.SIGINT]
    # One process goes on with what two have saved together.
    words = ["--workdir", str(tmp_path / "two"), f"--config.train.steps={step + 2}"]
    assert main.run([*flags, *words]) == 0
    two = read(tmp_path / "two")["lines"]
    assert list(two)[: step + 2] == [f"train {number}" for number in range(1, step + 3)]
    trained = {name: line for name, line in whole["lines"].items() if name.startswith("train")}
    same(trained, {name: two[name] for name in trained})


def test_a_mistake_on_one_process_ends_both_with_its_message(tmp_path):
    port = free_port()
    command = ["-m", "bsq_jax.main", "--config", TINY, "--workdir", tmp_path / "run"]
    flags = ["--coordinator", f"localhost:{port}", "--processes", 2, "--process"]
    missing = tmp_path / "nowhere"
    processes = [
        start(*command, *flags, 0),
        start(*command, f"--config.data.source=folder:{missing}", *flags, 1),
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [MISTAKE] * 2, outputs
    errors = [[line for line in err.splitlines() if "error: " in line] for _, err in outputs]
    assert [len(lines) for lines in errors] == [1, 1], outputs
    assert errors[0][0].endswith(errors[1][0].removeprefix("error: "))
    assert "error: process 1: " in errors[0][0]
    assert str(missing) in errors[1][0]


TOGETHER = """
import sys, time
import jax, numpy
from bsq_jax.config import default_config, finalize
from bsq_jax.core import distributed, failures
from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import make_mesh, replicate
from bsq_jax.data.sources import make_source
from bsq_jax.training.checkpoint import Checkpointer
from bsq_jax.training.recipes.same_data import check_same_data, check_same_model_read
from bsq_jax.training.saved_models import SavedModel

checkpoints, *folders = sys.argv[1:]
distributed.initialize()
print("the numbers:", jax.process_index(), jax.process_count(), jax.device_count())
for folder in folders:
    try:
        check_same_data([make_source(f"folder:{folder}", "train", divide=False)])
        print("the same")
    except UserError as error:
        print(error)
for step in 0, jax.process_index():
    weights = {"raw": {"layer": {"kernel": numpy.full([2, 2], step, numpy.float32)}}}
    saved = SavedModel(finalize(default_config()), weights, {"step": step, "name": "run"})
    try:
        check_same_model_read(saved, "hf://maker/run@v1")
        print("the same model")
    except UserError as error:
        print("the error:", error)
sys.stdout.flush()
with failures.shared(), Checkpointer(checkpoints) as checkpointer:
    checkpointer.save(1, replicate({"w": 1.0}, make_mesh()), {})
    if jax.process_index():
        raise UserError("a mistake")
    time.sleep(120)
"""


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes do: their statuses, and of each the lines it wrote and its errors."""
    folder = tmp_path_factory.mktemp("together")
    for name, files in {"one": "abc", "other": "abd"}.items():
        (folder / name).mkdir()
        for file in files:
            Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / name / f"{file}.png")
    where = {VARIABLES[0]: f"localhost:{free_port()}", VARIABLES[1]: "2"}
    words = ["-c", TOGETHER, folder / "checkpoints", folder / "one"]
    processes = [
        start(*words, folder / name, more={**where, VARIABLES[2]: str(index)})
        for index, name in enumerate(("one", "other"))
    ]
    outputs = [process.communicate(timeout=100) for process in processes]
    lines = [  # Gloo writes lines of its own
        [line for line in out.splitlines() if line.startswith("the ")] for out, _ in outputs
    ]
    statuses = [process.returncode for process in processes]
    return statuses, lines, [err for _, err in outputs], folder


def test_variables_take_the_place_of_flags(together):
    assert [lines[0] for lines in together[1]] == ["the numbers: 0 2 4", "the numbers: 1 2 4"]


def test_processes_with_other_files_are_told_apart(together):
    _, ((_, first, second, *_), (_, _, third, *_)), _, folder = together
    assert first == "the same"
    assert second == third
    assert "the processes do not see the same data" in second
    assert f"folder:{folder / 'one'} (3 records" in second
    assert f"folder:{folder / 'other'} (3 records" in second


def test_processes_with_other_models_are_told_apart(together):
    _, ((*_, first, second), (*_, third)), *_ = together
    assert first == "the same model"
    assert second == third
    assert "hf://maker/run@v1: the processes read different models (" in second
    assert "step 0 of run, " in second
    assert "step 1 of run, " in second
    assert second.endswith("name a commit, hf://maker/run@COMMIT")


def test_who_fails_waits_for_nobody(together):
    """Neither for the other's part of a checkpoint, nor for its step, which never ends."""
    statuses, _, errors, _ = together
    assert statuses == [MISTAKE] * 2, errors
    assert "error: process 1: a mistake" in errors[0]


def test_a_mistake_on_all_is_told_once(tmp_path):
    (tmp_path / "file").write_text("")
    processes = two_processes("--config", TINY, "--workdir", tmp_path / "file" / "run")
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [MISTAKE] * 2, outputs
    assert outputs[0][1].count("error: ") == 1
    assert "error: " not in outputs[1][1]


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_PROCESS_ADDRESSES": "a:8476,b:8476"}, True),
        ({"MEGASCALE_NUM_SLICES": "1"}, False),
        ({"MEGASCALE_NUM_SLICES": "2"}, True),
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
        ("no-such-host.invalid:1234", 2, 1, "no-such-host.invalid:1234: the host is unknown"),
    ],
)
def test_flags_that_cannot_be(coordinator, processes, process, words):
    with pytest.raises(UserError, match=words) as raised:
        distributed.initialize(coordinator, processes, process)
    assert "\n" not in str(raised.value)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (("localhost:1234", "2", ""), "JAX_PROCESS_ID=: it must be a number"),
        (("localhost:1234", "two", "0"), "JAX_NUM_PROCESSES=two: it must be a number"),
        (("localhost:1234", "2", None), "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROC"),
        (("localhost", "2", "1"), "it must be HOST:PORT"),
    ],
)
def test_variables_that_cannot_be(monkeypatch, variables, words):
    for name, value in zip(VARIABLES, variables, strict=True):
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words):
        distributed.initialize()


ON_A_SLICE = """
import os, jax
from jax._src.clusters import cloud_tpu_cluster
# As JAX does on a machine with TPUs.
cloud_tpu_cluster.running_in_cloud_tpu_vm = True
del os.environ["TPU_SKIP_MDS_QUERY"]
cloud_tpu_cluster.coordinator_port = {port}
from bsq_jax.core.distributed import initialize
initialize()
print(jax.process_index(), jax.process_count(), jax.device_count())
"""


CATCHING = """
try:
    initialize()
except ValueError as error:
    print(error)
    raise SystemExit
"""


class Metadata(http.server.BaseHTTPRequestHandler):
    """What the machines of a slice are told by Google Compute Engine, as JAX reads it."""

    def do_GET(self):
        asked = self.path.rpartition("/")[2]
        text = {
            "agent-worker-number": str(self.server.number),
            "worker-network-endpoints": self.server.endpoints,
            "tpu-env": "ACCELERATOR_TYPE: 'v5p-16'\n",
        }.get(asked)
        self.send_response(404 if text is None else 200)
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def metadata():
    """Starts a metadata server: its address, for a machine of a number and the slice's machines."""
    servers = []

    def make(number, endpoints):
        server = http.server.ThreadingHTTPServer(("localhost", 0), Metadata)
        server.number, server.endpoints = number, endpoints
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"localhost:{server.server_port}"

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


def test_machines_of_a_slice_find_each_other(metadata):
    """No variable names the others, as on a pod slice of Compute Engine."""
    program = ON_A_SLICE.format(port=free_port())
    processes = [
        start(
            *("-c", program),
            devices=2,
            more={"GCE_METADATA_IP": metadata(index, "x:y:localhost,x:y:localhost")},
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [out.splitlines()[-1:] for out, _ in outputs] == [["0 2 4"], ["1 2 4"]], outputs


@pytest.mark.parametrize("alone", [True, False])
def test_a_tpu_machine_alone_or_without_metadata(metadata, alone):
    program = ON_A_SLICE.format(port=free_port()).replace("initialize()\n", CATCHING)
    where = metadata(0, "x:y:localhost") if alone else "localhost:1"
    out, err = start("-c", program, devices=2, more={"GCE_METADATA_IP": where}).communicate()
    if alone:
        assert out.splitlines()[-1] == "0 1 2", err
    else:
        assert "cannot be read (" in out, err
        assert "set TPU_SKIP_MDS_QUERY=1" in out


STARTS_LATE = """
import socket
real, asked = socket.getaddrinfo, []
def late(host, *rest):
    asked.append(host)
    if host == "pod-0.run" and len(asked) > 2:
        print("known")
        raise SystemExit
    raise socket.gaierror(-2, "Name or service not known")
socket.getaddrinfo = late
from bsq_jax.core.distributed import initialize
initialize(timeout={timeout})
"""


@pytest.mark.parametrize("timeout", [1, 60])
def test_the_name_of_a_pod_may_come_later(timeout):
    """Of process 0, as other pods look for it: that is no mistake."""
    more = dict(zip(VARIABLES, ("pod-0.run:1234", "2", "1"), strict=True))
    process = start("-c", STARTS_LATE.format(timeout=timeout), more=more)
    out, err = process.communicate(timeout=60)
    if timeout == 60:
        assert (process.returncode, out, err) == (0, "known\n", "")
    else:
        assert (process.returncode, out) == (UNAVAILABLE, "")
        waited = "error: waited 1 s for all 2 processes with JAX_COORDINATOR_ADDRESS pod-0.run:1234"
        assert err.startswith(waited)


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
    assert process.returncode == UNAVAILABLE
    assert out == ""
    assert err.startswith("error: waited 1 s for all 2 processes with --coordinator localhost:")
    assert err.count("\n") == 1


def test_one_process_alone_stays_alone(monkeypatch):
    for name in ("TPU_WORKER_HOSTNAMES", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    distributed.initialize()
    assert jax.process_count() == 1
