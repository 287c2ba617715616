"""Training from Python. Oracle: the command in a process of its own, and runs nobody stopped."""

import copy
import json
import os
import pathlib
import pickle
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from user_errors import message_of

import bsq_jax
from bsq_jax import Codec, Generator, Tokenizer, load_config, train
from bsq_jax.api import train as api
from bsq_jax.config import default_config, finalize, load_config_file
from bsq_jax.core import signals
from bsq_jax.core.errors import UserError
from bsq_jax.core.trees import leaves
from bsq_jax.training.workdir import open_checkpoints

ROOT = pathlib.Path(bsq_jax.__file__).parents[1]
TINY = str(pathlib.Path(__file__).parent / "tiny.py")
PARTS = ["params", "ema", "opt_state"]
CLOCKS = ("time", "images_per_second", "data_wait", "tflops_per_device")
NUMBERS = (signal.SIGINT, signal.SIGTERM)
# The command with one of eight devices, as this process has.
COMMAND = """
import jax
found = jax.devices
jax.devices = lambda *_: found()[:1]
jax.device_count = lambda *_: 1
from bsq_jax.main import main
main()
"""


def tiny(argument="", **settings):
    config = load_config(f"{TINY}:{argument}" if argument else TINY)
    config.train.update(settings)
    return config


def records(workdir):
    """The lines of the log without what clocks wrote."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [without_clocks(json.loads(line)) for line in lines]


def without_clocks(record):
    return {key: value for key, value in record.items() if key not in CLOCKS}


def saved(workdir):
    """Step and arrays of the newest checkpoint."""
    with open_checkpoints(workdir) as checkpoints:
        step, state, _ = checkpoints.restore_partial(PARTS)
    return step, {name: np.asarray(leaf) for name, leaf in leaves(state).items()}


def assert_same(one, other):
    assert records(one) == records(other)
    (step, arrays), (other_step, other_arrays) = saved(one), saved(other)
    assert step == other_step
    assert arrays.keys() == other_arrays.keys()
    for name, array in arrays.items():
        assert array.tobytes() == other_arrays[name].tobytes(), name


@pytest.fixture(autouse=True)
def handlers():
    """Ctrl-C as in a terminal or a notebook; all handlers must be the same afterwards."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    found = [signal.getsignal(number) for number in NUMBERS]
    yield
    assert [signal.getsignal(number) for number in NUMBERS] == found
    assert signal.set_wakeup_fd(-1) == -1
    signal.signal(signal.SIGINT, before)


class Told(list):
    """A `progress` that keeps the records, and sends signals at a step of training."""

    def __init__(self, step=0, *numbers):
        super().__init__()
        self._step, self._numbers = step, numbers

    def __call__(self, record):
        self.append(record)
        if record["step"] == self._step and record["prefix"] == "train":
            for number in self._numbers:
                os.kill(os.getpid(), number)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run from Python, with what it returned, told and showed."""
    workdir = tmp_path_factory.mktemp("python") / "whole"
    config, told = tiny(), Told()
    run = train(config, workdir, progress=told)
    return workdir, config, run, told


def test_it_is_what_the_command_does_to_the_bit(whole, tmp_path):
    workdir, *_ = whole
    words = [sys.executable, "-c", COMMAND, "--config", TINY, "--workdir", tmp_path / "whole"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(words, check=True, env=environment, capture_output=True)
    assert_same(workdir, tmp_path / "whole")
    for content in (
        lambda folder: sorted(path.name for path in folder.iterdir()),
        lambda folder: json.loads((folder / "evaluation.json").read_text())["results"],
        lambda folder: json.loads((folder / "config.json").read_text()),
    ):
        assert content(workdir) == content(tmp_path / "whole")


def test_what_it_returns(whole):
    workdir, config, run, told = whole
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert run.history == told == [json.loads(line) for line in lines]
    assert [r["step"] for r in run.history if r["prefix"] == "train"] == [1, 2, 3, 4, 5, 6]
    steps, losses = run.curve("loss")
    assert steps == [1, 2, 3, 4, 5, 6]
    assert losses == [json.loads(line)["loss"] for line in lines[:6]]
    assert run.curve("no such") == ([], [])
    results = json.loads((workdir / "evaluation.json").read_text())["results"]
    assert run.report["results"]["ema"]["psnr"] == pytest.approx(results["ema"]["psnr"])
    step, arrays = saved(workdir)
    assert run.step == step == 6
    for name, part in (("raw", "params"), ("ema", "ema")):
        wanted = {k.removeprefix(f"{part}/"): a for k, a in arrays.items() if k.startswith(part)}
        found = leaves(run.weights[name])
        assert {k: np.asarray(a).tobytes() for k, a in found.items()} == {
            k: a.tobytes() for k, a in wanted.items()
        }
    assert repr(run) == f"<TrainedRun of a tokenizer, step 6, in {workdir}>"
    assert run.workdir == workdir
    assert run.config.train.steps == 6
    assert config == tiny()  # which stays as it was given
    assert load_config(workdir).to_dict() == run.config.to_dict()


def test_the_tokenizer_of_a_run(whole):
    workdir, _, run, _ = whole
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    for weights in ("auto", "raw"):
        made, loaded = run.tokenizer(weights=weights), Tokenizer.load(workdir, weights=weights)
        assert made.origin == loaded.origin
        np.testing.assert_array_equal(made.encode(pixels), loaded.encode(pixels))
    assert isinstance(run.codec(), Codec)
    assert "holds a tokenizer, which generates nothing" in message_of(run.generator)


def test_the_tokenizer_in_flax_code_as_the_page_has_it(whole):
    page = (ROOT / "docs" / "python_api.md").read_text()
    section = page.partition("## The tokenizer in your own Flax code")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    tokenizer = whole[2].tokenizer()
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    found = {"tokenizer": tokenizer, "picture": picture}
    exec(code, found)
    bits = tokenizer.encode(found["batch"])
    np.testing.assert_array_equal(found["bits"], bits)
    np.testing.assert_allclose(found["pixels"], tokenizer.decode(bits), atol=1e-5)


def test_ctrl_c_saves_and_the_same_call_goes_on(whole, tmp_path, capfd):
    told = Told(3, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as raised:
        train(tiny(), tmp_path / "run", progress=told)
    # Metrics come a step late.
    assert str(raised.value) == (
        "stopped by Ctrl-C after step 4: the step is saved, call train again to go on"
    )
    assert re.search(
        r"after step 4: saved in .* s, call train again to go on", capfd.readouterr().err
    )
    assert saved(tmp_path / "run")[0] == 4
    assert [record["step"] for record in told] == [1, 2, 3, 4]
    run = train(tiny(), tmp_path / "run")
    assert_same(tmp_path / "run", whole[0])
    assert [without_clocks(r) for r in run.history] == records(whole[0])  # from step 1 on


def test_ctrl_c_in_the_evaluation(whole, tmp_path):
    def stop(record):
        if record["prefix"] == "val_raw":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="in the evaluation of step 6: the step is saved"):
        train(tiny(), tmp_path / "run", progress=stop)
    run = train(None, tmp_path / "run")
    assert run.report["results"] == whole[2].report["results"]


def test_a_second_ctrl_c_leaves_without_saving_and_without_ending_the_process(
    whole, tmp_path, monkeypatch
):
    monkeypatch.setattr(signals, "ONE_PRESS", 0.0)
    told = Told(3, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"left at once.* lost"):
        train(tiny(), tmp_path / "run", progress=told)
    assert told[-1]["step"] == 3
    train(tiny(), tmp_path / "run")
    assert_same(tmp_path / "run", whole[0])


def test_sigterm_saves_and_then_does_what_it_would_have_done(tmp_path):
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(saved(tmp_path / "run")[0]))
    try:
        with pytest.raises(KeyboardInterrupt, match="stopped by SIGTERM after step 4"):
            train(tiny(), tmp_path / "run", progress=Told(3, signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [4]


def test_outside_the_main_thread(whole, tmp_path):
    made = []
    thread = threading.Thread(target=lambda: made.append(train(tiny(), tmp_path / "run")))
    thread.start()
    thread.join()
    assert made[0].step == 6
    assert_same(tmp_path / "run", whole[0])


def test_several_runs_in_one_process_are_as_if_each_were_alone(whole, tmp_path, caplog):
    """Another model, other data, and the first one again; each says what it has to."""
    from PIL import Image

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(9):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    (pictures / "drawing.svg").write_text("not read")
    other = tiny(steps=2)
    other.model.bits = 4
    other.data.source = f"folder:{pictures}"
    said = []
    for name in ("one", "two"):
        caplog.clear()
        run = train(other, tmp_path / name)
        assert run.step == 2
        assert run.tokenizer().shape.bits == 4
        said.append([line for line in caplog.messages if "skipped" in line])
    assert len(said[0]) == 1
    assert said[0] == said[1]
    assert_same(tmp_path / "one", tmp_path / "two")
    train(tiny(), tmp_path / "again")
    assert_same(tmp_path / "again", whole[0])


@pytest.mark.parametrize("kind", ["prior", "masked_lm"])
def test_models_of_tokens(whole, tmp_path, kind):
    config = tiny(f"{kind}={whole[0]}", steps=2)
    run = train(config, tmp_path / kind)
    assert (run.config.task, run.step) == (kind, 2)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    bits = whole[2].tokenizer().encode(pixels)
    np.testing.assert_array_equal(run.tokenizer().encode(pixels), bits)
    if kind == "prior":
        assert run.codec().has_prior
    else:
        assert isinstance(run.generator(), Generator)


def test_mistakes(whole, tmp_path):
    new, workdir = tmp_path / "new", whole[0]
    assert message_of(train, {"train": {}}, new).startswith("config is a dict: give what load_con")
    assert message_of(train, None, new) == (
        f"config is None, and there is no run in {new} to go on with"
    )
    assert "did you mean" in message_of(load_config, "quickstar")
    assert "variant 'nosuch' does not exist" in message_of(load_config, "quickstart:nosuch")
    missing = tiny()
    missing.data.source = "folder:/no/such/folder"
    assert "/no/such/folder" in message_of(train, missing, new)
    assert message_of(train, tiny(steps=0), new) == (
        "config: train.steps is 0: it must be positive"
    )
    other = tiny()
    other.model.bits = 4
    assert "holds a run of another model (model.bits: 6 -> 4" in message_of(train, other, workdir)
    assert "already: raise config.train.steps above 5" in message_of(train, tiny(steps=5), workdir)
    assert message_of(train, tiny(), workdir, profile=(3, 2)).startswith("profile=(3, 2): ")
    (tmp_path / "file").write_text("")
    assert "cannot write to workdir" in message_of(train, tiny(), tmp_path / "file" / "run")
    assert not new.exists() or not (new / "config.json").exists()


@pytest.mark.smoke
def test_what_load_config_takes_and_in_which_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read = []
    monkeypatch.setattr(api, "read_saved_config", lambda path: read.append(os.fspath(path)))
    pathlib.Path("mine.py").write_text(
        "from bsq_jax.config import default_config\n"
        "def get_config(argument):\n"
        "    config = default_config()\n"
        "    config.data.source = f'folder:{argument}'\n"
        "    return config\n"
    )
    for folder in ("quickstart", "run"):
        pathlib.Path(folder).mkdir()
        pathlib.Path(folder, "config.json").write_text("{}")
    # As --config takes them, whatever lies here, and whatever the argument looks like.
    assert load_config("mine.py:/data/x").data.source == "folder:/data/x"
    assert load_config(f"{tmp_path}/mine.py:gs://b/x").data.source == "folder:gs://b/x"
    assert load_config("quickstart") == load_config_file("quickstart")
    assert read == []
    for name in ("./quickstart", "run", "hf://owner/name", "hf://owner/name@v1"):
        load_config(name)
    load_config(tmp_path / "run")
    wanted = ["./quickstart", "run", "hf://owner/name", "hf://owner/name@v1", f"{tmp_path}/run"]
    assert read == wanted
    assert "gs://bucket/run is not a path" in message_of(load_config, "gs://bucket/run")
    assert "config file nothing/here does not exist" in message_of(load_config, "nothing/here")


def put(config, key, value):
    config[key] = value


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("mistake", "kinds", "line"),
    [
        (
            lambda config: setattr(config.train, "stepz", 3),
            (AttributeError, KeyError),
            "config.train.stepz does not exist: did you mean train.steps (training steps in all)?",
        ),
        (
            lambda config: config.optimizer.update(lr=0.1),
            (KeyError,),
            "config.optimizer.lr does not exist: did you mean optimizer.learning_rate (peak ",
        ),
        (
            lambda config: config.trian.steps,
            (AttributeError,),
            "config.trian does not exist: did you mean train (a group of settings)?",
        ),
        (
            lambda config: put(config, "model.bitz", 8),
            (KeyError,),
            "config.model.bitz does not exist: did you mean model.bits (",
        ),
        (
            lambda config: setattr(config.train, "steps", "many"),
            (TypeError,),
            "config.train.steps is 'many': it must be a whole number",
        ),
        (
            lambda config: setattr(config.optimizer, "learning_rate", "small"),
            (TypeError,),
            "config.optimizer.learning_rate is 'small': it must be a number or None",
        ),
        (
            lambda config: setattr(config, "train", 3),
            (TypeError,),
            "config.train is a group of settings: set one of train.accumulate, train.batch_size, ",
        ),
    ],
)
def test_mistakes_in_a_config_are_told_where_they_are_made(mistake, kinds, line):
    for config in (load_config("quickstart"), finalize(default_config())):
        before = config.to_dict()
        with pytest.raises(UserError) as raised:
            mistake(config)
        assert all(isinstance(raised.value, kind) for kind in kinds)
        assert str(raised.value).startswith(line)
        assert config.to_dict() == before


@pytest.mark.smoke
def test_a_config_is_changed_and_copied_as_a_config_dict():
    config = load_config("quickstart")
    config["train.steps"] = 7
    config.optimizer.learning_rate = None
    config.model.image_size = [32, 64]
    assert (config.train.steps, config.model.image_size) == (7, (32, 64))
    assert not hasattr(config, "nothing")
    assert not hasattr(config.train, "_repr_html_")
    assert config.train.get("nothing", 5) == 5
    for other in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert other == config
        with pytest.raises(UserError, match=r"config\.train\.stepz does not exist"):
            other.train.stepz = 3


@pytest.mark.smoke
def test_nothing_is_loaded_before_it_is_used():
    code = (
        "import sys, bsq_jax; assert {'train', 'load_config'} <= set(bsq_jax.__all__);"
        "assert not {'jax', 'numpy', 'ml_collections'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_default_config_is_one_to_begin_with():
    assert load_config("tokenizer").to_dict().keys() == default_config().to_dict().keys()
