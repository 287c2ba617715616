"""Scripts for one machine, Slurm and Kubernetes. Oracle: commands written down by stand-ins."""

import hashlib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
import venv

import pytest
import yaml
from stand_ins import ROOT, StandIns, takes_ctrl_c

import bsq_jax

# In place of the Python of a virtual environment, whose pip installs what an editable one leaves.
INSTALLER = """\
#!/bin/bash
if [ "$2" != pip ]; then exec {folder}/bin/python3 "$@"; fi
printf '%s\\n' "$*" >> {folder}/asked
if [ -f {folder}/broken ]; then echo 'ERROR: no network' >&2; exit 1; fi
for word in "$@"; do repository=$word; done
printf '%s\\n' "$repository" > {site}/editable.pth
printf '#!/bin/sh\\n' > {folder}/bin/bsq-jax
chmod +x {folder}/bin/bsq-jax
"""
ARGUMENTS = ["--config", "my configs/a.py:bits=18", "--workdir", 'it\'s $HOME & "co"']
SLURM = {
    "--partition": "BSQ_PARTITION",
    "--nodes": "BSQ_NODES",
    "--gpus-per-node": "BSQ_GPUS_PER_NODE",
}
SLURM_GIVEN = ["--partition", "gpu", "--nodes", "2", "--gpus-per-node", "8"]
K8S = {
    "--name": "",
    "--image": "BSQ_IMAGE",
    "--nodes": "BSQ_NODES",
    "--gpus-per-node": "BSQ_GPUS_PER_NODE",
    "--claim": "BSQ_CLAIM",
}
K8S_GIVEN = ["--name", "run-1", "--image", "registry/bsq:1", "--nodes", "4"]
K8S_GIVEN += ["--gpus-per-node", "8", "--claim", "runs"]

# In place of the Python of the environment. As bsq_jax.main it writes its arguments and variables
# to a file and ends with the next of the statuses; otherwise it is the real one.
PYTHON = """\
#!/bin/bash
if [ "$2" != bsq_jax.main ]; then exec {python} "$@"; fi
index=0
for word in "$@"; do last=$word; done
case "$*" in *--process\\ *) index=$last ;; esac
line=$({python} -c 'import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))' "$@")
printf '%s\\n' "$line" >> {folder}/python.$index
echo "process $index speaks"
echo "process $index warns" >&2
times=$(wc -l < {folder}/python.$index)
statuses=()
if [ -f {folder}/status.$index ]; then mapfile -t statuses < {folder}/status.$index; fi
status=${{statuses[times - 1]}}
trap 'exit 75' TERM
trap 'exit 130' INT
if [ "$status" = wait ]; then while true; do sleep 0.05; done; fi
exit "${{status:-0}}"
"""


@pytest.fixture
def commands(tmp_path):
    return StandIns(tmp_path, "sbatch", "srun", "scontrol", "kubectl")


class Machine(StandIns):
    """With an environment whose Python stands in for runs of bsq_jax.main."""

    def __init__(self, folder):
        super().__init__(folder)
        self.environment = folder / "my env"
        (self.environment / "bin").mkdir(parents=True)
        python = self.environment / "bin" / "python"
        real = shlex.quote(os.path.realpath(os.sys.executable))
        python.write_text(PYTHON.format(python=real, folder=shlex.quote(str(folder))))
        python.chmod(0o755)
        # As left by an installation of these very requirements.
        stamp = self.environment / ".bsq-jax-requirements.txt.sha256"
        text = f"""
import hashlib, sys
with open({str(ROOT / "requirements.txt")!r}, "rb") as file:
    print(hashlib.sha256(file.read() + sys.version.encode()).hexdigest())
"""
        done = subprocess.run([str(python), "-c", text], capture_output=True, check=True)
        stamp.write_bytes(done.stdout)

    def statuses(self, process, *values):
        (self.folder / f"status.{process}").write_text("".join(f"{value}\n" for value in values))

    def runs(self, process):
        """``(arguments, environment)`` of each run of a process."""
        file = self.folder / f"python.{process}"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def local(self, *words):
        return self.run("local.sh", *words, VIRTUAL_ENV=str(self.environment))


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_processes_of_one_machine(machine):
    status, out, err = machine.local("--processes", 3, "--gpus-per-process", 2, "--", *ARGUMENTS)
    assert status == 0, err
    assert "process 0 speaks\n" in out
    assert {"[1] process 1 speaks", "[2] process 2 speaks"} <= set(out.splitlines())
    assert "[2] process 2 warns\n" in err
    addresses = set()
    for index in range(3):
        ((words, environment),) = machine.runs(index)
        assert words[: 2 + len(ARGUMENTS)] == ["-m", "bsq_jax.main", *ARGUMENTS]
        flags = words[2 + len(ARGUMENTS) :]
        assert flags[2:] == ["--processes", "3", "--process", str(index)]
        addresses.add(flags[1])
        assert environment["CUDA_VISIBLE_DEVICES"] == f"{2 * index},{2 * index + 1}"
    (address,) = addresses
    assert address.startswith("localhost:")


def test_cpu_devices_and_a_single_process(machine):
    words = ("--processes", 1, "--cpu-devices", 4, "--", "--workdir", "w")
    assert machine.local(*words)[0] == 0
    ((words, environment),) = machine.runs(0)
    assert words == ["-m", "bsq_jax.main", "--workdir", "w"]
    assert environment["XLA_FLAGS"] == "--xla_force_host_platform_device_count=4"
    assert environment["JAX_PLATFORMS"] == "cpu"


def test_what_was_saved_or_lost_is_run_again(machine):
    machine.statuses(0, 75, 1, 0)
    machine.statuses(1, 75, 0, 0)
    status, _, err = machine.local("--", "--workdir", "w")
    assert status == 0
    assert "ended with status 75: running again (1 of 3)" in err
    assert "ended with status 1: running again (2 of 3)" in err
    assert len(machine.runs(0)) == len(machine.runs(1)) == 3
    ports = {words[words.index("--coordinator") + 1] for words, _ in machine.runs(0)}
    assert len(ports) == 3


def test_a_mistake_is_not_run_again_and_restarts_end(machine):
    machine.statuses(0, 75)
    machine.statuses(1, 2)
    assert machine.local("--", "--workdir", "w")[0] == 2
    assert len(machine.runs(0)) == 1
    machine.statuses(0, *[75] * 9)
    machine.statuses(1, *[0] * 9)
    status, _, err = machine.local("--restarts", 1, "--", "--workdir", "w")
    assert status == 75
    assert err.splitlines()[-1] == "error: ended with status 75, and ran again 1 times already"


def test_what_was_interrupted_is_not_run_again(machine):
    machine.statuses(0, 130)
    machine.statuses(1, 130)
    assert machine.local("--", "--workdir", "w")[0] == 130
    assert len(machine.runs(0)) == 1


def test_who_does_not_end_after_a_failure_is_told_to(machine):
    machine.statuses(0, 1)
    machine.statuses(1, "wait")
    status, _, err = machine.local("--restarts", 0, "--patience", 1, "--", "--workdir", "w")
    assert status == 1
    assert err.splitlines()[-1] == "error: ended with status 1, and ran again 0 times already"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_goes_to_all_and_ends_it(machine, number, status):
    machine.statuses(0, "wait")
    machine.statuses(1, "wait")
    environment = {**os.environ, "VIRTUAL_ENV": str(machine.environment)}
    with takes_ctrl_c():
        started = subprocess.Popen(
            ["bash", str(ROOT / "launch" / "local.sh"), "--", "--workdir", "w"],
            **{"env": environment, "cwd": machine.folder},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE},
            start_new_session=True,  # a terminal sends Ctrl-C to a group of processes
        )
    give_up = time.monotonic() + 20
    while not (machine.runs(0) and machine.runs(1)) and time.monotonic() < give_up:
        time.sleep(0.05)
    time.sleep(0.3)  # until they listen
    os.killpg(started.pid, number)
    out, err = started.communicate(timeout=20)
    assert started.returncode == status, err
    assert sorted(out.splitlines()) == [b"[1] process 1 speaks", b"process 0 speaks"]
    assert len(machine.runs(0)) == len(machine.runs(1)) == 1


def test_a_dry_run_of_one_machine(machine):
    status, out, _ = machine.local("--dry-run", "--port", 1234, "--", *ARGUMENTS)
    assert status == 0
    assert machine.runs(0) == []
    lines = [shlex.split(line) for line in out.splitlines()]
    assert [line[-8 - len(ARGUMENTS) : -6] for line in lines] == [
        ["-m", "bsq_jax.main", *ARGUMENTS],
    ] * 2
    assert [line[-5:] for line in lines] == [
        ["localhost:1234", "--processes", "2", "--process", str(index)] for index in range(2)
    ]


def environment_without_the_package(folder):
    """A virtual environment that has the requirements, as its stamp says, and no pip."""
    venv.create(folder, symlinks=True)
    (folder / "bin" / "python").unlink()
    (site,) = folder.glob("lib/python*/site-packages")
    program = folder / "bin" / "python"
    program.write_text(
        INSTALLER.format(folder=shlex.quote(str(folder)), site=shlex.quote(str(site)))
    )
    program.chmod(0o755)
    text = (ROOT / "requirements.txt").read_bytes() + sys.version.encode()
    stamp = folder / ".bsq-jax-requirements.txt.sha256"
    stamp.write_text(hashlib.sha256(text).hexdigest())


def test_the_quickstart_installs_the_package_once(tmp_path):
    """Editable, from then on importable from any folder of that environment."""
    environment = tmp_path / "my env"
    environment_without_the_package(environment)
    commands = StandIns(tmp_path)

    def quickstart():
        return commands.run("quickstart.sh", "--version", VIRTUAL_ENV=str(environment))

    version = f"bsq-jax {bsq_jax.__version__}"
    (environment / "broken").touch()
    status, out, err = quickstart()
    assert (status, out.splitlines()[-1]) == (0, version)  # it goes on without
    assert "ERROR: no network\nwarning: bsq_jax was not installed into the environment" in err
    (environment / "broken").unlink()
    status, out, err = quickstart()
    assert (status, out.splitlines()[-1], err) == (0, version, "")
    asked = (environment / "asked").read_text().splitlines()
    assert len(asked) == 2
    assert asked[1].startswith("-m pip install ")
    assert "--no-deps" in asked[1]
    assert asked[1].endswith(f" --editable {ROOT}")
    found = subprocess.run(
        [environment / "bin" / "python3", "-c", "import bsq_jax; print(bsq_jax.__file__)"],
        **{"cwd": tmp_path, "capture_output": True, "text": True, "check": True},
    )
    assert found.stdout == f"{bsq_jax.__file__}\n"
    assert quickstart() == (0, f"{version}\n", "")
    assert len((environment / "asked").read_text().splitlines()) == 2
    (environment / "bin" / "bsq-jax").unlink()  # the command counts as well
    quickstart()
    assert len((environment / "asked").read_text().splitlines()) == 3


@pytest.mark.smoke
@pytest.mark.parametrize("per", ["gpu", "node"])
def test_a_job_is_submitted_and_runs_what_was_asked(commands, per):
    words = [*SLURM_GIVEN, "--process-per", per, "--time", "12:00:00", "--account", "my group"]
    words += ["--sbatch-option=--constraint=h100 ib", "--", *ARGUMENTS]
    status, _, err = commands.run("slurm.sh", "--dry-run", *words)
    assert (status, commands.asked) == (0, []), err
    status, out, _ = commands.run("slurm.sh", "--dry-run", *words)
    folder, submitted = (shlex.split(line) for line in out.splitlines())
    assert folder == ["mkdir", "-p", str(commands.folder / "logs")]
    assert submitted[0] == "sbatch"
    assert {
        *("--partition=gpu", "--nodes=2", "--gpus-per-node=8", "--requeue", "--time=12:00:00"),
        *("--account=my group", "--constraint=h100 ib", "--open-mode=append"),
        f"--ntasks-per-node={8 if per == 'gpu' else 1}",
        "--signal=TERM@120",
    } <= set(submitted)
    # The job itself, as the shell of Slurm runs it.
    wrapped = submitted[-1].removeprefix("--wrap=")
    environment = {**os.environ, "SLURM_JOB_ID": "42"}
    environment["PATH"] = f"{commands.folder / 'bin'}:{environment['PATH']}"
    done = subprocess.run(["/bin/sh", "-c", wrapped], env=environment, check=False, timeout=20)
    assert done.returncode == 0
    (step,) = commands.asked
    assert step[:2] == ["srun", "--kill-on-bad-exit=1"]
    assert step[3:] == ["-m", "bsq_jax.main", *ARGUMENTS]
    visible = "JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7"
    assert (visible in shlex.split(wrapped)) == (per == "node")


@pytest.mark.parametrize(
    ("statuses", "again"),
    [
        ([0], [False]),
        ([2], [False]),
        ([75] * 5, [True] * 5),
        ([130], [False]),
        ([137, 75, 75, 1, 75, 1], [True, True, True, True, True, False]),
    ],
)
def test_what_is_queued_again(commands, statuses, again):
    """What was saved without limit, a crash twice here."""
    for status, expected in zip(statuses, again, strict=True):
        before = len(commands.asked)
        commands.answer((["srun"], "", status))
        found, _, err = commands.run(
            *("slurm.sh", "--inside", "python", commands.folder, 2, *ARGUMENTS), SLURM_JOB_ID="42"
        )
        assert found == status
        assert commands.asked[before + 1 :] == ([["scontrol", "requeue", "42"]] if expected else [])
    assert ("error: ended with status 1, and ran again 2 times" in err) == (len(again) == 6)


def test_a_preempted_job_outlives_its_processes(commands):
    """The signal goes to the script of the job as well."""
    began = commands.folder / "began"
    step = f"#!/bin/sh\ntouch {shlex.quote(str(began))}\nsleep 1\nexit 75\n"
    (commands.folder / "bin" / "srun").write_text(step)
    environment = {**os.environ, "SLURM_JOB_ID": "42"}
    environment["PATH"] = f"{commands.folder / 'bin'}:{environment['PATH']}"
    words = ["bash", ROOT / "launch" / "slurm.sh", "--inside", "python", commands.folder, "2"]
    script = subprocess.Popen(
        [*words, *ARGUMENTS], env=environment, stderr=subprocess.PIPE, text=True
    )
    while not began.exists():
        time.sleep(0.01)
    script.send_signal(signal.SIGTERM)
    _, err = script.communicate(timeout=20)
    assert (script.returncode, err) == (75, "stopped with everything saved: queued again\n")
    assert commands.asked == [["scontrol", "requeue", "42"]]


@pytest.mark.smoke
def test_a_jobset(commands):
    status, out, err = commands.run("k8s/submit.sh", *K8S_GIVEN, "--", *ARGUMENTS, "$(PATH) a\\b")
    assert status == 0, err
    assert "kubectl delete jobset -n default run-1" in out
    ((name, *words, text),) = commands.asked
    assert [name, *words] == ["kubectl", "apply", "-f", "-"]
    assert commands.run("k8s/submit.sh", *K8S_GIVEN, "--dry-run", "--", *ARGUMENTS)[0] == 0
    assert len(commands.asked) == 1
    jobset = yaml.safe_load(text)
    assert (jobset["kind"], jobset["metadata"]["name"]) == ("JobSet", "run-1")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 100
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["completions"], job["parallelism"], job["completionMode"]) == (4, 4, "Indexed")
    (rule,) = job["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [2, 130])
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    # Kubernetes gives a doubled dollar back as one, and expands nothing then.
    assert container["args"] == [*ARGUMENTS, "$$(PATH) a\\b"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    values = {each["name"]: each.get("value") for each in container["env"]}
    assert values == {
        "JAX_COORDINATOR_ADDRESS": "run-1-worker-0-0.run-1:8476",
        "JAX_NUM_PROCESSES": "4",
        "JAX_PROCESS_ID": None,
        "JAX_COMPILATION_CACHE_DIR": "/runs/.compiled",
    }
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "runs"
    assert "${" not in text


def test_the_example_is_yaml_as_it_stands():
    text = (ROOT / "launch" / "k8s" / "jobset.yaml").read_text()
    assert yaml.safe_load(text)["kind"] == "JobSet"


def test_what_kubectl_refuses(commands):
    commands.answer((["kubectl"], "no matches for kind JobSet", 1))
    status, _, err = commands.run("k8s/submit.sh", *K8S_GIVEN, "--", *ARGUMENTS)
    assert status == 2
    assert err.splitlines() == [
        "no matches for kind JobSet",
        "error: kubectl refused the manifest: see above (is JobSet installed in the cluster?)",
    ]


def without(given, flag):
    index = given.index(flag)
    return [*given[:index], *given[index + 2 :]]


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("script", "given", "flag", "variable"),
    [("slurm.sh", SLURM_GIVEN, *each) for each in SLURM.items()]
    + [("k8s/submit.sh", K8S_GIVEN, *each) for each in K8S.items()],
)
def test_a_missing_value_is_named(commands, script, given, flag, variable):
    words = [*without(given, flag), "--dry-run", "--", "--workdir", "w"]
    status, _, err = commands.run(script, *words)
    hint = f", or set {variable}" if variable else ""
    assert (status, err) == (2, f"error: {flag} is missing: give {flag} VALUE{hint}\n")
    if variable:
        value = given[given.index(flag) + 1]
        assert commands.run(script, *words, **{variable: value})[0] == 0


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("local.sh", ["--workdir", "w"], "--workdir is unknown: write the arguments of bsq_jax."),
        ("local.sh", [], "there is nothing to run"),
        ("local.sh", ["--processes", "0", "--", "x"], "--processes 0: it must be 1 or more"),
        ("local.sh", ["--processes", "two", "--", "x"], "--processes two: it must be a whole"),
        ("local.sh", ["--port"], "--port has no value"),
        (
            "local.sh",
            ["--gpus-per-process", "1", "--cpu-devices", "1", "--", "x"],
            "--gpus-per-process and --cpu-devices exclude each other",
        ),
        ("slurm.sh", [*SLURM_GIVEN, "--dry-run"], "there is nothing to run"),
        ("slurm.sh", [*SLURM_GIVEN, "--process-per", "rack", "--", "x"], "--process-per rack: it"),
        ("slurm.sh", ["--partition", "p", "--nodes", "n"], "--gpus-per-node is missing"),
        ("k8s/submit.sh", [*K8S_GIVEN, "--name", "Run 1", "--", "x"], "--name Run 1: it must be a"),
        ("k8s/submit.sh", K8S_GIVEN, "there is nothing to run"),
    ],
)
def test_mistakes_are_one_line(commands, script, words, message):
    status, _, err = commands.run(script, *words)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: {message}")
    assert commands.asked == []


@pytest.mark.smoke
@pytest.mark.parametrize("script", ["local.sh", "slurm.sh", "tpu_pod.sh", "k8s/submit.sh"])
def test_help_is_the_head_of_the_script(commands, script):
    status, out, _ = commands.run(script, "--help")
    assert status == 0
    assert f"bash launch/{script}" in out
    head = pathlib.Path(ROOT / "launch" / script).read_text().splitlines()[1]
    assert out.splitlines()[0] == head.removeprefix("# ")
