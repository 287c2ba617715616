"""Every command of README and docs, run at tiny size. Oracle: each ends with status 0.

Commands run in one folder that has what they name: pictures, videos, models. Trainings have two
steps of a tiny network in place of the settings given (`TINY`), everything else stays as it stands
in the page. What is not run is skipped with its reason.
"""

import argparse
import dataclasses
import importlib
import io
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from checkpoint_files import checkpoint
from doc_commands import PAGES, ROOT, blocks, commands
from PIL import Image
from skimage import data
from torch_writer import save_zip

from bsq_jax import cli, main
from bsq_jax.config import load_config_file, set_overrides
from bsq_jax.media.videos import write_mp4

# What takes the place of settings in a training, whatever the page says.
TINY = {
    "tokenizer": {
        **{"model.width": 16, "model.heads": 2, "model.layers": 1, "model.encoder_layers": 1},
        **{"model.decoder_layers": 1, "model.decoder_width": 16, "model.dtype": "float32"},
        **{"loss.perceptual": 0, "loss.adversarial": 0, "optimizer.warmup_steps": 1},
    },
    "prior": {"prior.width": 16, "prior.layers": 1, "prior.heads": 2, "prior.hidden": 8},
    "masked_lm": {"masked_lm.width": 16, "masked_lm.layers": 1, "masked_lm.heads": 2},
}
ALWAYS = {
    **{"train.steps": 2, "train.batch_size": 2, "train.log_every": 1, "train.picture_every": 0},
    **{"train.checkpoint_every": 2, "train.evaluate_every": 0, "train.accumulate": 1},
    **{"eval.batch_size": 8, "eval.lpips": "false", "eval.frechet": "false", "eval.pictures": 1},
    **{"data.threads": 1, "data.cache_mb": 8, "eval.samples": 0, "eval.starter": "false"},
    "mesh.fsdp": 1,
}
# Data sets that are not in any package, and sizes of pictures that take long.
SMALLER = {
    "tokenizer": {"data.source": "synthetic", "model.image_size": "32x32", "data.resize": 32},
    "ucf101": {"data.source": "motion", "model.image_size": "32x32", "data.resize": 32},
}
# What pages write for files of the reader, longest first.
PLACES = {
    **{"/path/to/pictures": "pictures", "/path/to/videos": "videos", "/other/pictures": "pictures"},
    **{"/photographs": "pictures", "/pictures": "pictures", "/videos": "videos"},
    **{"PHOTOS/val": "pictures", "VIDEOS/val": "videos", "PHOTOS": "pictures"},
    **{"PICTURES": "pictures", "VIDEOS": "videos", "FOLDER": "pictures", "/data/": "shards/"},
    **{"/shared/runs": "runs", "bucket/runs": "runs"},
}
# How to make what a page takes from another one.
MODELS = {
    "quickstart": "--config configs/quickstart.py",
    "video": "--config configs/video.py --config.data.source=clips:videos",
    "prior": "--config configs/prior.py:any_size --config.prior.tokenizer=runs/quickstart",
    "prior_clips": "--config configs/prior.py --config.prior.tokenizer=runs/quickstart",
    "image": "--config configs/quickstart.py:adamw",
    "starter": "--config configs/starter.py",
    "starter_prior": "--config configs/starter.py:prior --config.prior.tokenizer=runs/starter",
    "digits": "--config configs/digits.py:tokenizer",
    "digits_lm": "--config configs/digits.py:masked_lm --config.masked_lm.tokenizer=runs/digits",
}
TOKENS = {"tokens": "quickstart", "digits_tokens": "digits"}  # sets of them, and whose
OF_PRIORS = ("prior", "any_prior", "prior_photos")
# Exports that a page takes from another one.
EXPORTS = {"my_tokenizer": "quickstart", "my_export": "quickstart", "my_codec": "prior"}
# What each training was run for.
TRAINED = {}
# Commands that would refuse to replace what another page wrote.
REPLACES = ("encode", "decode", "export", "reconstruct", "generate", "rd", "tokenize")
# Commands that are not run: a pattern, and why.
REASONS = {
    r"bash launch/(test|quickstart)\.sh|bash \.ci/run|python -m (ruff|mypy|build)|^mkdocs": (
        ".ci/run runs it"
    ),
    r"OWNER/NAME": "asks the hub: test_hub.py and test_push.py with a stand-in for it",
    r"^(pip install|source|export) ": "changes the environment of the reader",
    r"^(tail|tensorboard|cd|ls) ": "a program of others",
    r"my_(config|loss|metric)|runs/edges": "test_extending.py runs it with the files of the page",
    r"python -m bsq_jax plan --check$|plan --check --topology": (
        "compiles programs of all published configs for minutes: .ci/run and test_plan_check.py"
    ),
    r"bash .*\.\.\. ": "stands for several commands, which are run each where they stand complete",
    r"log\.wandb=": "needs `pip install wandb`: .ci/run runs test_wandb_offline.py with it",
    r"(COMMAND|WORKDIR|MODEL)( |$)|--config \.\.\.": "a pattern with names to be filled in",
    r"^(python -m bsq_jax|bsq-jax) [a-z]+( [a-z_-]+)?$": "the name of a command, without its flags",
    r"^python -m (bsq_jax\.main|benchmarks\.\w*)$": "the name of a command, without its flags",
    r"plan .*size=2b": "traces a model of two billion parameters for a minute: test_plan.py plans",
    r"plan .*--topology": "needs `pip install libtpu`: test_plan_check.py where it is installed",
    r"^(python -m bsq_jax|bsq-jax) demo( |$)": (
        "goes on until Ctrl-C: test_demo.py asks it for its page"
    ),
}
# Flags that make the rest small; the last of a flag that is given twice counts.
SMALL_FLAGS = {
    "rd": "--size 32 --frames 2 --force",
    "tokenize": "--examples 16",
    "generate": "--num 4",
    "score": "--split val",
}


def _photographs():
    for name in ("astronaut", "coffee", "chelsea", "rocket"):
        picture = getattr(data, name)()
        for row in range(3):
            yield f"{name}{row}.jpg", Image.fromarray(picture[80 * row :, 60:]).resize((72, 64))


def _shards(folder, encoded):
    folder.mkdir()
    for name in (*(f"train-{number:03d}" for number in range(100)), "val-000"):
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for file, content in encoded.items():
                info = tarfile.TarInfo(f"{name}/{file}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    images = [{"bytes": content, "path": name} for name, content in encoded.items()]
    for name in ("train-0", "validation-0"):
        pyarrow.parquet.write_table(pyarrow.table({"image": images}), folder / f"{name}.parquet")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The folder in which commands run, with the files that pages name."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("configs", "launch"):
        (folder / name).symlink_to(ROOT / name)
    encoded = {}
    for name in ("pictures", "photos", "holiday", "val", "crops"):
        (folder / name).mkdir()
    for name, picture in _photographs():
        picture.save(folder / "pictures" / name)
        encoded[name] = (folder / "pictures" / name).read_bytes()
    for name in ("photos", "holiday", "val", "crops"):
        picture.save(folder / name / "a.jpg")
    picture.save(folder / "photo.jpg")
    for name in ("videos", "clips"):
        (folder / name).mkdir()
        for number in range(3):
            frames = np.stack([np.roll(np.asarray(picture), 2 * time, 1) for time in range(20)])
            write_mp4(folder / name / f"{number}.mp4", frames)
    _shards(folder / "shards", encoded)
    with np.load(ROOT / "tests/golden/vit_tiny_state.npz") as state:
        save_zip(folder / "checkpoint.pt", checkpoint(dict(state), ema=False))
    samples = np.random.default_rng(0).integers(256, size=(16, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "samples.npz", samples)
    Image.fromarray(samples[0]).save(folder / "digit.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", str(ROOT))  # studies and scripts start processes
        yield folder


def _kind(words):
    """Which of the tasks a training has."""
    text = " ".join(words)
    if "configs/prior" in text or "starter.py:prior" in text:
        return "prior"
    return "masked_lm" if "masked_lm" in text.split("--workdir")[0] else "tokenizer"


def tiny(words):
    """The words of a training with `TINY` in place of what they set."""
    config = next((words[at + 1] for at, word in enumerate(words) if word == "--config"), "")
    name = pathlib.PurePath(config.partition(":")[0]).stem
    changes = dict(ALWAYS)
    if config:  # else the network is that of the weights it begins from
        changes |= TINY[_kind(words)]
    if name == "tokenizer":
        changes |= SMALLER["ucf101" if "ucf101" in config else "tokenizer"]
        if "runlocal" in config:
            changes.pop("model.image_size")
    kept = [
        word for word in words if word.partition("=")[0].removeprefix("--config.") not in changes
    ]
    return [*kept, *(f"--config.{key}={value}" for key, value in changes.items())]


def replaced(word):
    for place, name in PLACES.items():
        if place in word:
            return word.replace(place, name)
    return word


def make(name):
    """A model of a few steps, unless it is there already."""
    folder = pathlib.Path("runs") / name
    if folder.exists():
        return
    if name in TOKENS:
        make(TOKENS[name])
        words = [str(folder), "--model", f"runs/{TOKENS[name]}", "--examples", "16"]
        assert cli.main(["tokenize", *words]) == 0
        return
    kind = "prior" if name in OF_PRIORS else name
    if kind not in MODELS:
        kind = "quickstart"
    if kind != name:
        make(kind)
        shutil.copytree(pathlib.Path("runs") / kind, folder)
        return
    words = shlex.split(MODELS[kind])
    for word in words:
        if found := re.search(r"=runs/(\w+)", word):
            make(found[1])
    assert main.run([*tiny(words), "--workdir", str(folder)]) == 0


def needed(words, own):
    """Models that are named and that the command does not make itself."""
    named = [match[1] for word in words for match in re.finditer(r"runs/(\w+)", word)]
    return [name for name in named if name != own]


def run_training(words):
    """A training, or an evaluation in the words of one."""
    if "--workdir" not in words:
        words = [*words, "--workdir", "runs/other"]
    own = words[words.index("--workdir") + 1].removeprefix("runs/")
    if "--config" not in words and "--config.train.init" not in shlex.join(words):
        make(own)  # it goes on
        return main.run(words)
    for name in needed(words, own):
        make(name)
    for name in EXPORTS:
        if f"={name}" in shlex.join(words):
            make_export(name)
    check_settings(words)
    words = tiny(words)
    key = shlex.join(word.replace(f"runs/{own}", "WORKDIR") for word in words)
    if key in TRAINED:
        pytest.skip(f"at this size the same as {TRAINED[key]}, which was run")
    TRAINED[key] = f"the training of runs/{own}"
    shutil.rmtree(pathlib.Path("runs") / own, ignore_errors=True)
    return main.run(words)


def check_settings(words):
    """Has the settings of a training read as they stand, before others take their place."""
    config = next((words[at + 1] for at, word in enumerate(words) if word == "--config"), "")
    if config:
        settings = [word for word in words if word.startswith("--config.")]
        set_overrides(load_config_file(config), settings)


def make_export(name):
    if not pathlib.Path(name).exists():
        make(EXPORTS[name])
        assert cli.main(["export", f"runs/{EXPORTS[name]}", name]) == 0


def run_package(words):
    """A command of the package, without ``python -m bsq_jax``."""
    command, *rest = words
    if command == "train":
        return run_training(rest)
    own = ""
    if command == "studies":
        read = dataclasses.replace(cli.COMMANDS[command], run=lambda flags: 0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(cli.COMMANDS, command, read)
            assert cli.main(words) == 0
        pytest.skip("its flags are right: test_cli_studies*.py run the studies at tiny size")
    if command == "tokenize":
        own = rest[0].removeprefix("runs/")
    elif command == "export":
        rest = [word.replace("pictures", "exported") for word in rest]
    elif command == "plot":
        rest = [word.replace("lpips", "ssim") for word in rest]  # `ALWAYS` leaves LPIPS out
    elif command == "convert":
        shutil.rmtree(rest[1], ignore_errors=True)
    if command in SMALL_FLAGS:
        rest += shlex.split(SMALL_FLAGS[command])
    if command in REPLACES and "--force" not in rest:
        rest.append("--force")
    for name in needed(rest, own):
        make(name)
    for name in EXPORTS:
        if name in rest[1:] and "--export" not in rest:
            make_export(name)
    if command in ("decode", "info"):
        # What it opens was coded by the model that it names.
        model = rest[rest.index("--model") + 1 :][:1] if "--model" in rest else []
        inputs = {"photo.bsq": "photo.jpg", "coded/": "photos/"}[rest[0]]
        flags = [word for name in model for word in ("--model", name)]
        assert cli.main(["encode", inputs, rest[0], "--force", *flags]) == 0
    return cli.main([command, *rest])


def parsed_only(module, words):
    """Has a benchmark read its words, and stops it there."""

    class Read(Exception):  # noqa: N818
        pass

    parse = argparse.ArgumentParser.parse_known_args

    def read_all(parser, *args, **kwargs):
        _, rest = parse(parser, *args, **kwargs)
        assert rest == []
        raise Read

    def read(*args, **kwargs):
        parse(*args, **kwargs)
        raise Read

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *words])
        patch.setattr(argparse.ArgumentParser, "parse_args", read_all)
        patch.setattr(argparse.ArgumentParser, "parse_known_args", read)
        with pytest.raises(Read):
            importlib.import_module(module).main()


def run(words):
    """Runs one command; returns its status."""
    match words:
        case ["python", "-m", "bsq_jax", *rest]:
            return run_package(rest)
        case ["python", "-m", "bsq_jax.main", *rest]:
            return run_training(rest)
        case ["bsq-jax", *rest]:
            return run_package(rest)
        case ["python", "-m", benchmark, *rest] if benchmark.startswith("benchmarks."):
            parsed_only(benchmark, rest)
            pytest.skip("a benchmark of minutes: its flags are right")
        case ["bash", script, *rest] if script.startswith("launch/"):
            at = rest.index("--") if "--" in rest else len(rest)
            dry = [*rest[:at], "--dry-run", *rest[at:]]
            names = ("CLOUDSDK_CORE_PROJECT", "CLOUDSDK_COMPUTE_ZONE", "BSQ_TPU_NAME")
            variables = dict.fromkeys(names, "x") | {"BSQ_BUCKET": "gs://x"}
            done = subprocess.run(["bash", script, *dry], env={**os.environ, **variables})
            return done.returncode
        case _:
            raise AssertionError(f"no way to run {shlex.join(words)}")


def unique():
    """Each command once, with the places where it stands."""
    places = {}
    for page in PAGES:
        for command in commands(page):
            places.setdefault(command.words, command.place)
    return [pytest.param(words, id=place) for words, place in places.items()]


def test_reasons_are_needed():
    texts = [shlex.join(command.words) for page in PAGES for command in commands(page)]
    for pattern in REASONS:
        assert any(re.search(pattern, text) for text in texts), pattern


@pytest.mark.parametrize("words", unique())
def test_command(words, world, request):
    text = shlex.join(words)
    for pattern, reason in REASONS.items():
        if re.search(pattern, text):
            pytest.skip(f"{text}: {reason}")
    if "plan" in words:
        request.getfixturevalue("eight_devices")
    words = [replaced(word) for word in words]
    if "..." in words:
        at = words.index("...")
        words[at : at + 1] = ["--config", "configs/quickstart.py", "--workdir", "runs/other"]
    assert run(words) == 0, text


# Of pages whose Python code takes something that a reader has.
BEFORE = {
    "docs/video.md": (
        "import numpy as np\n"
        "from bsq_jax import Tokenizer\n"
        "frames = np.zeros((3, 32, 32, 3), np.uint8)\n"
        "tokenizer = Tokenizer.load('runs/video')\n"
    ),
    "docs/deployment.md": (
        "import os\n"
        "from skimage import data\n"
        "picture = data.astronaut()[:61, :52]\n"
        "os.chdir('deployed')\n"
    ),
}
ELSEWHERE = {
    "docs/extending": "files that test_extending.py runs",
}
# Blocks that are left out: what is in them, and why.
LEFT_OUT = {
    "import torch": "test_given_torch.py gives tensors",
    "train(": "test_train_from_python.py trains",
    "tokenizer.params": "test_train_from_python.py trains with them",
}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python(page, world, monkeypatch):
    """The blocks of a page, one after the other, as a reader would paste them."""
    for beginning, reason in ELSEWHERE.items():
        if page.startswith(beginning):
            pytest.skip(f"{page}: {reason}")
    monkeypatch.chdir(world)  # a page may change to another folder
    code = BEFORE.get(page, "")
    for line, text in blocks(page, "python"):
        reasons = [reason for words, reason in LEFT_OUT.items() if words in text]
        if reasons:
            print(f"{page}:{line} is not run: {reasons[0]}")
        else:
            code += f"\n{text}"
    for name in needed([code], ""):
        make(name)
    if "deployed" in code and not pathlib.Path("deployed").exists():
        make("quickstart")
        words = ["runs/quickstart", "deployed", "--format", "stablehlo"]
        assert cli.main(["export", *words]) == 0
    exec(compile(code, page, "exec"), {})
