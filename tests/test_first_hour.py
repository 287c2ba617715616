"""The first hour of a newcomer: one story of real commands, real signals and own photographs.

Train, press Ctrl-C, go on, code photographs, train to the end, decode, and use the model from
Python. Oracle: what each command promises, Pillow, JSON, and event files read record by record.
"""

import contextlib
import io
import json
import math
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from small_codec import picture
from tensorboardX.proto import event_pb2

import bsq_jax
from bsq_jax import cli

ROOT = pathlib.Path(bsq_jax.__file__).parents[1]
TINY = pathlib.Path(__file__).parent / "tiny.py"
BITS, SIDE = 6, 16  # of a token, and of the model's pictures
# The later pictures take longer, so that coding them can be interrupted.
SIZES = [(16, 16), (40, 24), (24, 40), (60, 60), *[(320, 320)] * 20]
FOLDERS = ("", "garden", "garden/roses", "sea")
# The last step is far away: the run is stopped before.
TRAIN = ["train", "--config", str(TINY), "--workdir", "runs/first"]
TRAIN += ["--config.data.source=folder:photographs"]
FLAGS = ["--config.train.steps=1000000", "--config.train.checkpoint_every=200"]
PATIENCE = 300  # seconds, of a machine that does other work too


class Process:
    """A command in a process of its own; what it writes goes to files."""

    def __init__(self, *words, cache=True, **more):
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=1",
            "JAX_ENABLE_COMPILATION_CACHE": str(cache).lower(),
            "OPENBLAS_NUM_THREADS": "1",
            **more,
        }
        self._files = open("out.txt", "w+"), open("err.txt", "w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"import signal; {CATCHES}; {MAIN}", *map(str, words)],
            **{"env": environment, "stdout": self._files[0], "stderr": self._files[1]},
        )

    @property
    def err(self):
        return pathlib.Path("err.txt").read_text()

    def wait(self, due, patience=PATIENCE):
        """Until ``due(standard error)``, or until it ends by itself: whether it was due."""
        give_up = time.monotonic() + patience
        while self._process.poll() is None and time.monotonic() < give_up:
            if due(self.err):
                return True
            time.sleep(0.01)
        return False

    def rest(self, seconds):
        """Ctrl-Z, and on after some time."""
        self._process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self._process.send_signal(signal.SIGCONT)

    def press(self):
        """Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def end(self):
        """``(status, output, standard error)``."""
        try:
            status = self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            for file in self._files:
                file.close()
        return status, pathlib.Path("out.txt").read_text(), self.err


# As in a terminal; a suite in the background of a script ignores Ctrl-C, and so would its children.
CATCHES = "signal.signal(signal.SIGINT, signal.default_int_handler)"
MAIN = "from bsq_jax.cli import run_and_leave; run_and_leave()"


def run(*words):
    """A command in this process, which begins sooner: ``(status, output, standard error)``."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main([str(word) for word in words])
        except SystemExit as ended:
            status = ended.code
    return status, out.getvalue(), err.getvalue()


def steps_saved(workdir="runs/first"):
    """Steps of the complete checkpoints."""
    tables = pathlib.Path(workdir, "checkpoints").glob("*/checksums.json")
    return sorted(int(path.parent.name) for path in tables)


def log(workdir="runs/first"):
    text = pathlib.Path(workdir, "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def lines_with(text, *facts):
    return [line for line in text.splitlines() if all(re.search(fact, line) for fact in facts)]


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    """A folder of one's own, in which the commands run, with photographs."""
    folder = tmp_path_factory.mktemp("hour")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("BSQ_JAX_MODEL", raising=False)
        for number, (height, width) in enumerate(SIZES):
            place = folder / "photographs" / FOLDERS[number % len(FOLDERS)]
            place.mkdir(parents=True, exist_ok=True)
            frame = picture(height, width, seed=number)[0]
            Image.fromarray(frame).save(place / f"{number:02d}.png")
        yield folder


@pytest.fixture(scope="module")
def compiling(home):
    """Ctrl-C while the first step compiles: ``(result, steps saved)``."""
    process = Process(*TRAIN, *FLAGS, cache=False, JAX_LOG_COMPILES="1")
    assert process.wait(lambda err: "Compiling jit(train_step)" in err)
    process.press()
    return process.end(), steps_saved()


@pytest.fixture(scope="module")
def twice(compiling):
    """Ctrl-C twice while it compiles once more: ``(result, steps saved before and after)``."""
    before = steps_saved()
    process = Process(*TRAIN, *FLAGS, cache=False, JAX_LOG_COMPILES="1")
    assert process.wait(lambda err: "Compiling jit(train_step)" in err)
    process.press()
    process.wait(lambda err: "again" in err)
    time.sleep(0.5)  # a program that starts others passes one press on twice
    process.press()
    return process.end(), before, steps_saved()


@pytest.fixture(scope="module")
def training(twice):
    """The run goes on until it has said how long it takes, then Ctrl-C: result, steps logged."""
    process = Process(*TRAIN, *FLAGS)
    assert process.wait(lambda err: "step 15/" in err)
    # It says so after 5 seconds of steps, which need not compute for as long.
    process.rest(5.5)
    process.wait(lambda err: lines_with(err, ESTIMATE), patience=60)
    process.press()
    return process.end(), [line["step"] for line in log()]


ESTIMATE = r"about [\d.]+ (second|minute|hour)"


@pytest.fixture(scope="module")
def coded(training):
    """A photograph coded between two parts of the run, its pixels then, and an export."""
    found = run("encode", "photographs/sea/03.png", "early.bsq", "--model", "runs/first")
    exported = run(
        *("encode", "photographs/sea/03.png", "kept.bsq", "--model", "runs/first"),
        *("--export", "kept"),
    )
    assert run("decode", "early.bsq", "then.png", "--model", "runs/first")[0] == 0
    return found, exported, np.asarray(Image.open("then.png"))


@pytest.fixture(scope="module")
def ended(coded):
    """The run goes on to an end, with a table and pictures: result, and the step it began at."""
    first = steps_saved()[-1]
    flags = [*FLAGS[1:], f"--config.train.steps={first + 4}"]
    return run(*TRAIN, *flags), first


@pytest.mark.smoke
def test_the_version():
    assert run("--version")[:2] == (0, f"bsq-jax {bsq_jax.__version__}\n")
    assert re.fullmatch(r"\d+\.\d+\.\d+", bsq_jax.__version__)


@pytest.mark.smoke
def test_help_has_the_commands_and_an_example():
    status, out, _ = run("--help")
    assert status == 0
    for name, command in cli.COMMANDS.items():
        assert lines_with(out, rf"^ +{name} +{re.escape(command.help)}$")
    assert lines_with(out, r"^ +(bsq-jax|python -m bsq_jax) train .*--workdir")


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("optimizer.lr", "optimizer.learning_rate"),
        ("lr", "optimizer.learning_rate"),
        ("bs", "train.batch_size"),
        ("epochs", "train.steps"),
        ("L", "model.bits"),
        ("model.num_bits", "model.bits"),
        ("res", "model.image_size"),
        ("ckpt", "train.checkpoint_every"),
        ("wd", "optimizer.weight_decay"),
    ],
)
def test_a_setting_under_another_name(typed, meant):
    status, _, err = run(*TRAIN, f"--config.{typed}=1")
    assert status == 2
    assert meant in err
    assert err.count("\n") == 1


def test_ctrl_c_while_the_first_step_compiles(compiling):
    (status, _, err), saved = compiling
    assert saved == [1]
    assert status == 130
    (answer,) = lines_with(err, "Ctrl-C", "step 1", "saving", "again")
    # Answered at once, though no handler of Python runs while XLA compiles.
    assert err.index(answer) < err.index("Finished XLA compilation of jit(train_step)")
    last = err.splitlines()[-1]
    for fact in ("Ctrl-C", "step 1", "saved", r"\d s\b", "same command"):
        assert re.search(fact, last), fact


def test_a_second_ctrl_c_leaves_at_once(twice):
    (status, _, err), before, after = twice
    assert "resuming at step 1" in err
    assert before == after == [1]
    assert status == 130
    assert lines_with(err, "Ctrl-C", "step 2", "again")
    assert lines_with(err.splitlines()[-1], "at once", "lost")


def test_ctrl_c_in_training_and_the_same_command_goes_on(training):
    (status, _, err), logged = training
    assert "resuming at step 1" in err
    assert logged == list(range(1, logged[-1] + 1))
    assert status == 130
    last = err.splitlines()[-1]
    for fact in ("Ctrl-C", f"step {logged[-1]}", "saved", "same command"):
        assert fact in last


def test_what_is_said_at_the_start(compiling, training):
    """Steps, parameters, the workdir and devices, and then how long it takes."""
    facts = ("1,?000,?000 steps", "parameters", "runs/first", "1 cpu device")
    assert lines_with(compiling[0][2], *facts)
    assert lines_with(training[0][2], ESTIMATE)


def test_a_file_says_what_coded_it_and_that_it_will_be_lost(coded, training):
    (status, _, said), _, _ = coded
    step = training[1][-1]
    assert status == 0
    assert len(lines_with(said, f"step {step}\\b", "first", "--export")) == 1
    status, out, _ = run("info", "early.bsq")
    assert status == 0
    assert lines_with(out, f"step {step}\\b", "first")


def test_decoding_finds_the_step_in_the_workdir(coded, ended):
    status, _, err = run("decode", "early.bsq", "later.png", "--model", "runs/first")
    assert status == 0, err
    np.testing.assert_array_equal(np.asarray(Image.open("later.png")), coded[2])


def test_a_step_that_is_gone_is_named(coded, ended, training):
    shutil.copytree("runs/first", "runs/other")
    step = training[1][-1]
    shutil.rmtree(f"runs/other/checkpoints/{ended[1]}")
    status, _, err = run("decode", "early.bsq", "gone.png", "--model", "runs/other")
    assert status == 2
    assert err.count("\n") == 1
    for fact in (f"step {step} of first", "keeps", "export"):
        assert fact in err


def test_the_model_is_kept_beside_the_file(coded, ended):
    assert coded[1][0] == 0
    status, _, err = run("decode", "kept.bsq", "beside.png", "--model", "kept")
    assert status == 0, err
    np.testing.assert_array_equal(np.asarray(Image.open("beside.png")), coded[2])


def test_the_time_left_is_that_to_the_end(ended):
    """Evaluation and pictures come after the last step, and show what they do."""
    (status, _, err), first = ended
    assert status == 0
    assert f"resuming at step {first}" in err
    (last,) = lines_with(err, f"^step {first + 4}/{first + 4} +loss")
    assert re.search(r"eta (?!0s)\d", last)
    after = err[err.index(last) :]
    assert lines_with(after, "evaluating")


def test_one_unit_of_information_and_the_learning_rate(ended, training):
    (_, _, err), first = ended
    lines = lines_with(err, f"^step {first + 2}/") + lines_with(training[0][2], "^step 3/")
    assert len(lines) == 2
    for line in lines:
        assert re.search(r"(lr|learning[_ ]rate) \d", line)
    for line in log():
        if line["prefix"] != "train":
            continue
        # The loss stays in nats, as published.
        bits = line["token_entropy"] - line["codebook_entropy"]
        assert math.isclose(line["quantizer_loss"], math.log(2) * bits, rel_tol=1e-4, abs_tol=1e-4)
        assert 0 < line["codebook_entropy"] <= BITS


def test_the_table_has_the_name_of_the_run(ended):
    table = ended[0][1].partition("report: ")[0]
    assert f"first, step {ended[1] + 4}" in table
    assert not re.search(r"\btiny\b", table)
    assert json.loads(pathlib.Path("runs/first/evaluation.json").read_text())["name"] == "first"


def events():
    """(step, tag, plugin) of all that the run has written for TensorBoard."""
    found = []
    for path in sorted(pathlib.Path("runs/first/tensorboard").rglob("events.*")):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = event_pb2.Event.FromString(data[place + 12 : place + 12 + length])
            place += 16 + length
            found += [(event.step, value) for value in event.summary.value]
    return found


def test_tensorboard(ended):
    values = events()
    images = {(step, value.tag) for step, value in values if value.WhichOneof("value") == "image"}
    assert {step for step, _ in images} == {ended[1] + 4}
    assert images
    assert not any(re.search(r"\d{3}", tag) for _, tag in images)
    plugins = {value.metadata.plugin_data.plugin_name for _, value in values}
    assert "hparams" in plugins
    texts = [
        b"".join(value.tensor.string_val)
        for _, value in values
        if value.metadata.plugin_data.plugin_name == "text"
    ]
    assert any(b"learning_rate" in text and b"image_size" in text for text in texts)


@pytest.fixture(scope="module")
def folder_coded(ended):
    """A folder coded, with Ctrl-C on the way, and again: results, and what was there between."""
    pathlib.Path("photographs/garden/broken.jpg").write_bytes(b"\xff\xd8\xff but no picture")
    words = ("encode", "photographs", "coded", "--model", "runs/first")
    process = Process(*words)
    done = pathlib.Path("coded")
    process.wait(lambda _: len(list(done.rglob("*.bsq"))) >= 3)
    process.press()
    stopped = process.end()
    between = {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file()}
    return stopped, between, run(*words), words


def test_a_folder_is_coded_and_what_is_done_is_kept(folder_coded):
    (status, _, err), between, again, _ = folder_coded
    assert status == 130
    assert "error" not in lines_with(err, "Ctrl-C|interrupted")[-1]
    assert 3 <= len(between) < len(SIZES)
    names = {path.relative_to("coded").with_suffix("") for path in between}
    wanted = {
        path.relative_to("photographs").with_suffix("")
        for path in pathlib.Path("photographs").rglob("*.png")
    }
    assert names < wanted
    # The same command leaves these as they are, and does the others.
    assert again[0] == 2  # because of the broken one
    assert {path: path.stat().st_mtime_ns for path in between} == between
    coded = {path.relative_to("coded") for path in pathlib.Path("coded").rglob("*.bsq")}
    assert {path.with_suffix("") for path in coded} == wanted
    assert len([path for path in pathlib.Path("coded").rglob("*") if path.is_file()]) == len(coded)
    assert len(lines_with(again[2], "broken.jpg")) == 1
    assert lines_with(again[1] + again[2], rf"\b{len(between)}\b", "skipped|already|before")


def test_a_coded_folder_opens_and_is_not_coded_again(folder_coded):
    words = folder_coded[-1]
    path = "photographs/garden/roses/02.png"
    assert run("encode", path, "one.bsq", "--model", "runs/first")[0] == 0
    (one,) = pathlib.Path("coded/garden/roses").glob("02*.bsq")
    assert one.read_bytes() == pathlib.Path("one.bsq").read_bytes()
    pathlib.Path("photographs/garden/broken.jpg").unlink()
    status, out, err = run(*words)
    assert status == 0
    total = sum(path.stat().st_size for path in pathlib.Path("coded").rglob("*.bsq"))
    assert f"{total:,d} bytes" in out + err
    assert lines_with(out + err, rf"\b{len(SIZES)}\b")


@pytest.fixture(scope="module")
def tokenizer(ended):
    return bsq_jax.Tokenizer.load("runs/first")


@pytest.fixture(scope="module")
def pixels(tokenizer):
    """A picture of the model's size, and its bits as a batch of one gives them."""
    found = picture(SIDE, SIDE, seed=0)
    return found[0], tokenizer.encode(found)[0]


class Tensor:
    """As PyTorch's, of bfloat16 with a gradient, as far as a tokenizer may use it."""

    __module__ = "torch"
    dtype, requires_grad, is_cuda = "torch.bfloat16", True, False

    def __init__(self, values, plain=False):
        self._values, self._plain = values, plain
        self.shape, self.ndim = values.shape, values.ndim

    def detach(self):
        return Tensor(self._values)

    cpu = detach

    def float(self):
        return Tensor(self._values, plain=True)

    def to(self, *_, **__):
        return self.float()

    def numpy(self, **_):
        if not self._plain:
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self._values

    def __array__(self, *_, **__):
        return self.numpy()


def test_one_picture_of_any_kind_has_the_same_bits(tokenizer, pixels):
    picture, bits = pixels
    image = Image.fromarray(picture)
    Image.fromarray(picture).save("own.png")
    floats = picture.astype(np.float32) / 255
    for given in ("own.png", pathlib.Path("own.png"), image, picture):
        np.testing.assert_array_equal(tokenizer.encode(given), bits)
    for given, scale in ((floats, (0, 1)), (floats * 2 - 1, (-1, 1))):
        found = tokenizer.encode(given, value_range=scale)
        assert np.mean(found != bits) < 0.1  # rounding
        assert found.shape == bits.shape
    chw = np.moveaxis(floats * 2 - 1, -1, 0)
    found = tokenizer.encode(Tensor(chw), value_range=(-1, 1), layout="CHW")
    np.testing.assert_array_equal(found, tokenizer.encode(floats * 2 - 1, value_range=(-1, 1)))
    with pytest.raises(ValueError, match="CHW"):
        tokenizer.encode(chw)


def test_a_list_of_pictures_of_several_kinds(tokenizer, pixels):
    picture, bits = pixels
    found = tokenizer.encode(["own.png", picture, Image.fromarray(picture)])
    assert len(found) == 3
    for one in found:
        np.testing.assert_array_equal(one, bits)


def test_integers_and_back(tokenizer, pixels):
    picture, bits = pixels
    ids = tokenizer.ids(bits)
    assert ids.shape == bits.shape[:-1]
    assert ids.dtype == np.int64
    np.testing.assert_array_equal(ids, bits @ 2 ** np.arange(BITS)[::-1])
    np.testing.assert_array_equal(tokenizer.bits(ids), bits)
    shown = tokenizer.decode(tokenizer.bits(ids), dtype="uint8")
    assert shown.shape == picture.shape
