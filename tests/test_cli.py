"""The command line as a whole. Oracle: statuses and lines written by hand, and real processes."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import tomllib

import jax.numpy as jnp
import pytest

import bsq_jax
from bsq_jax import cli
from bsq_jax.cli import inputs, outputs
from bsq_jax.cli.command import Command, exit_status
from bsq_jax.core.errors import RUN_AGAIN, UserError
from bsq_jax.training.starter import starter_folder

COMMANDS = (
    *("train", "evaluate", "encode", "decode", "info", "rd", "generate", "score", "tokenize"),
    *("convert", "plan", "studies", "export", "push", "reconstruct", "demo", "plot"),
)
TINY = str(pathlib.Path(__file__).parent / "tiny.py")


def raising(error):
    def run(*_):
        raise error

    return run


def command_of(run, **more):
    return Command("help", "description", lambda parser: None, run, **more)


@pytest.mark.smoke
def test_the_table_has_a_line_for_each_command(capsys):
    assert set(cli.COMMANDS) == set(COMMANDS)
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in COMMANDS:
        (line,) = (line for line in lines if line.split()[:1] == [name])
        assert cli.COMMANDS[name].help in line
        assert len(line) <= 80
    examples = lines[lines.index("examples:") + 1 :]
    assert examples[0].startswith("  bsq-jax train --config quickstart ")


@pytest.mark.smoke
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main([name, "--help"])
    assert raised.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: bsq-jax {name} ")
    assert f"  bsq-jax {name} " in out  # an example


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give a command"),
        (("encod",), "unknown command 'encod': did you mean encode (compress a picture"),
        (("tokenise", "x"), "unknown command 'tokenise': did you mean tokenize ("),
        (("compress", "x"), "unknown command 'compress': did you mean encode ("),
        (("eval",), "did you mean evaluate ("),
        (("qqqq",), "unknown command 'qqqq': see --help"),
        (("--config", "x.py"), "give a command before --config"),
        (("encode",), "required: input, output"),
        (
            ("encode", "a", "b", "--bit", "3"),
            "unknown flag --bit: did you mean --bits",
        ),  # no abbreviation
        (("encode", "a", "b", "--foo"), "unknown flag --foo: see --help"),
        (("encode", "--modle", "x"), "unknown flag --modle: did you mean --mode or --model?"),
        (("studies", "vocabulary", "--workdri", "x"), "did you mean --workdir?"),
        (("train", "--wrokdir", "W"), "unknown flag --wrokdir: did you mean --workdir?"),
        (("train", "--config.train.steps", "3", "--wrokdir=W"), "did you mean --workdir?"),
        (("train", "--output-dir", "W"), "did you mean --workdir?"),
        (("train", "--lr=1"), "unknown flag --lr: did you mean --config.optimizer.learning_rate ("),
        (
            ("train", "--workdir", "W", "--batch-size", "8"),
            "did you mean --config.train.batch_size (examples a step",
        ),
        (("train", "--workdir", "W", "--config.train.steps", "--lr"), "give a config, by name"),
        (("info", "a", "b"), "unknown argument b"),
        (("info", "a", "--config.train.steps=3"), "unknown flag --config.train.steps=3"),
        (("train",), "--workdir"),
        (("train", "--workdir", "W"), "give a config, by name"),
        (("train", "--workdir", "W", "--config", "quickstrat"), "did you mean quickstart?"),
        (
            ("train", "--workdir", "W", "--config", "quickstart", "--mode=x"),
            "unknown flag --mode: ",
        ),
        (("train", "--workdir", "W", "--config", "quickstart", "--profile=3"), "such as 10:15"),
        (("evaluate", "--workdir", "W"), "W is not the workdir of a run"),
        (("evaluate", "--workdir", "W", "--profile=1:2"), "unknown flag --profile: "),
        (("studies", "variable"), "choose from "),
        (("generate", "--model", "m"), "where to?"),
        (("push", "W", "o/n"), "W does not exist or is not a folder"),
        (("push", "hf://o/n", "o/m"), "which is only read"),
        (("plan", "--config", TINY, "--mesh", "1x1x1", "--json", "no/x.json"), "make it first"),
        (("score", "x.npz", "--json", "no/x.json"), "make it first"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("x is wrong"), 2, "error: x is wrong\n"),
        (KeyboardInterrupt(), 130, "interrupted: half is left\n"),
        (FileNotFoundError(2, "No such file", "a.png"), 2, "error: a.png: No such file\n"),
        (OSError("disk"), 2, "error: disk\n"),
    ],
)
def test_errors_become_a_line_and_a_status(error, status, line, capsys):
    command = command_of(raising(error), interrupted="half is left")
    assert exit_status(raising(error), command) == status
    assert capsys.readouterr().err == line


def test_what_is_no_mistake_of_the_user_passes():
    with pytest.raises(ZeroDivisionError):
        exit_status(raising(ZeroDivisionError()), command_of(None))
    # Of a run of days an error of the disk is no mistake in its flags.
    with pytest.raises(OSError, match="disk"):
        exit_status(raising(OSError("disk")), command_of(None, os_errors=False))
    assert not cli.COMMANDS["train"].os_errors
    assert exit_status(lambda: RUN_AGAIN, command_of(None)) == RUN_AGAIN


def test_too_little_memory_is_a_line(capsys):
    """What JAX really raises: an array larger than any machine's address space."""

    def run():
        jnp.zeros(2**45, jnp.float32).block_until_ready()

    assert exit_status(run, command_of(run, memory="lower train.batch_size")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory: lower train.batch_size (RESOURCE_EXHAUSTED: ")
    with pytest.raises(RuntimeError, match="another"):
        exit_status(raising(RuntimeError("another")), command_of(run))


@pytest.mark.parametrize(
    ("command", "said"),
    [("train", "lower train.batch_size"), ("evaluate", "lower eval.batch_size")],
)
def test_too_little_memory_in_a_run(command, said, monkeypatch, capsys, tmp_path):
    def run(*_, **__):
        jnp.zeros(2**45, jnp.float32).block_until_ready()

    monkeypatch.setattr("bsq_jax.training.train_run.run", run)
    monkeypatch.setattr("bsq_jax.training.train_run.train", run)
    monkeypatch.setattr("bsq_jax.training.evaluate_run.evaluate", run)
    words = [command, "--config", TINY, "--workdir", str(tmp_path / "run")]
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith(f"error: out of memory: {said}")
    assert "RESOURCE_EXHAUSTED" in line


def test_ctrl_c_in_a_real_process(tmp_path):
    """Before training catches it: nothing is claimed that is not there."""
    code = (
        "import signal, sys, time; from bsq_jax import cli; from bsq_jax.training import train_run;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"  # ignored in the background
        "train_run.train = lambda *_, **__: (print('begun', flush=True), time.sleep(60));"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    words = ["train", "--config", TINY, "--workdir", str(tmp_path / "run")]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    said = "interrupted: no step was begun, nothing is lost: run the same command again\n"
    assert error == said


def test_ctrl_c_is_answered_where_python_cannot_stop():
    """As in XLA: a handler in Python runs only once the call has returned, which takes minutes."""
    code = (
        "import hashlib, signal, threading; from bsq_jax.core import signals;"
        "signals.ONE_PRESS, signals._PATIENCE = 1.0, 2.0;"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with signals.answered():\n"
        "  threading.Timer(0.2, print, ['begun'], {'flush': True}).start();"
        "  hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"
    )
    command = [sys.executable, "-c", code]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **streams) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)  # passed on by a launcher: the same press
        said = "Ctrl-C: stopping as soon as it can be; press it again to leave at once\n"
        assert process.stderr.readline() == said
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "left at once\n")


PRINT = (
    "import sys; from bsq_jax import cli; from bsq_jax.cli import command;"
    "run = lambda: [print('x' * {}) for _ in range(9)] and 0;"
    "sys.exit(command.exit_status(run, cli.COMMANDS['info']))"
)


@pytest.mark.parametrize(
    "code",
    [
        PRINT.format(9),
        PRINT.format(99_999),
        "import sys; from bsq_jax import cli; sys.exit(cli.main(['--help']))",
    ],
    ids=["little", "much", "help"],
)
def test_a_reader_that_has_gone_is_no_traceback(code):
    """As of ``bsq-jax info a.bsq | head -0``; a little is written only at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    ) as process:
        process.stdout.close()
        error = process.stderr.read()
    assert (process.returncode, error) == (2, b"")


@pytest.mark.smoke
def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "bsq_jax", "inf"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean info (" in done.stderr


@pytest.mark.smoke
@pytest.mark.parametrize("module", ["bsq_jax", "bsq_jax.main"])
def test_the_version(module):
    words = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == f"bsq-jax {bsq_jax.__version__}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+", bsq_jax.__version__)
    # There is no second one.
    project = tomllib.loads((pathlib.Path(TINY).parents[1] / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "bsq_jax.__version__"}


@pytest.mark.smoke
def test_help_loads_neither_jax_nor_the_config():
    code = (
        "import sys; from bsq_jax import cli; cli.main(['--help']);"
        "import bsq_jax.main, bsq_jax.__main__;"
        "print([name for name in ('jax', 'numpy', 'ml_collections') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_model_is_named_by_the_flag_or_the_environment(monkeypatch, capsys):
    flags = type("flags", (), {"model": None})
    monkeypatch.delenv("BSQ_JAX_MODEL", raising=False)
    with pytest.raises(UserError, match="--model"):
        inputs.model_path(flags, starter=False)
    assert inputs.model_path(flags) == str(starter_folder())
    assert capsys.readouterr().err == "no model is named: the starter model of bsq_jax is taken\n"
    monkeypatch.setenv("BSQ_JAX_MODEL", "runs/a")
    assert inputs.model_path(flags) == "runs/a"
    flags.model = "runs/b"
    assert inputs.model_path(flags) == "runs/b"


@pytest.mark.smoke
def test_outputs_are_checked_before_the_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("old.npz").write_bytes(b"x")
    pathlib.Path("folder").mkdir()
    pathlib.Path("folder", "done.json").write_bytes(b"x")
    for check, words in (
        (lambda: outputs.check_output_file("old.npz", force=False), "add --force"),
        (lambda: outputs.check_output_file("folder", force=True), "folder is a folder"),
        (lambda: outputs.check_output_file("no/x", force=True), "make it first"),
        (lambda: outputs.check_output_file("gs://b/x", force=True), "mount the bucket"),
        (lambda: outputs.check_output_file("x.zip", force=True, suffix=".npz"), "end in .npz"),
        (lambda: outputs.check_output_folder("old.npz", (), force=True), "old.npz is a file"),
        (lambda: outputs.check_output_folder("folder", ["done.json"], force=False), "done.json"),
        (lambda: outputs.check_new_folder("folder", force=False), "folder exists"),
    ):
        with pytest.raises(UserError, match=words):
            check()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="cannot be written to"):
        outputs.check_output_file("new.npz", force=False)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with pytest.raises(UserError, match="terminal"):
        outputs.check_output_file("-", force=False)
    outputs.check_output_file("old.npz", force=True)
    outputs.check_output_folder("folder", ["done.json"], force=True)
    outputs.check_output_folder("new", ["done.json"], force=False)
    assert not pathlib.Path("new").exists()
