"""Every command of README and docs, run at tiny size. Oracle: each ends as it should, with status 0.

Commands run in one folder that has what they name: pictures, videos, models. Trainings have two
steps of a tiny network in place of the settings given (`TINY`), everything else stays as it stands
in the page. What is not run is skipped with its reason.
"""

import argparse
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
from bsq_jax.media.videos import write_mp4

# What takes the place of settings in a training, whatever the page says.
TINY = {
    "tokenizer": {
        **{"model.width": 16, "model.heads": 2, "model.layers": 1, "model.encoder_layers": 1},
        **{"model.decoder_layers": 1, "model.decoder_width": 16, "model.dtype": "float32"},
        **{"loss.perceptual": 0, "loss.adversarial": 0, "optimizer.warmup_steps": 1},
        "eval.clips": None,
    },
    "prior": {"prior.width": 16, "prior.layers": 1, "prior.heads": 2, "prior.hidden": 8},
    "masked_lm": {"masked_lm.width": 16, "masked_lm.layers": 1, "masked_lm.heads": 2},
}
ALWAYS = {
    **{"train.steps": 2, "train.batch_size": 2, "train.log_every": 1, "train.picture_every": 0},
    **{"train.checkpoint_every": 2, "train.evaluate_every": 0, "train.accumulate": 1},
    **{"eval.batch_size": 8, "eval.lpips": "false", "eval.frechet": "false", "eval.pictures": 1},
    **{"data.threads": 1, "data.cache_mb": 8, "eval.samples": 0, "eval.starter": "false"},
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
    "digits": "--config configs/digits.py:tokenizer",
    "digits_lm": "--config configs/digits.py:masked_lm --config.masked_lm.tokenizer=runs/digits",
}
OF_PRIORS = ("prior", "any_prior", "prior_photos", "starter_prior")
# Commands that are not run: a pattern, and why.
REASONS = {
    r"bash launch/(test|quickstart)\.sh|bash \.ci/run|python -m (ruff|mypy)": ".ci/run runs it",
    r"pip install|source \.venv|export CLOUDSDK": "changes the environment of the reader",
    r"tail -f|tensorboard|cd deployed": "a program of others",
    r"python -m bsq_jax plan --check$|plan --check --topology": (
        "compiles programs of all published configs for minutes: .ci/run and test_plan_check.py"
    ),
    r"bash .*\.\.\. ": "stands for several commands, which are run each where they stand complete",
    r"COMMAND|WORKDIR|MODEL": "a pattern with names to be filled in",
    r"demo": "goes on until Ctrl-C: test_demo.py asks it for its page",
}
SMALL_STUDY = (
    *("model.width=8", "model.layers=1", "model.heads=1", "train.batch_size=8"),
    *("data.eval_clips=1", "eval.batch_size=8", "data.cache_mb=8"),
)
# Flags that make the rest small; the last of a flag that is given twice counts.
SMALL_FLAGS = {
    "rd": "--size 32 --frames 2",
    "tokenize": "--examples 16",
    "generate": "--num 4",
    "score": "--no-frechet",
    "vocabulary": "--bits 4 --kinds bsq fsq --steps 2",
    "quantization_error": "--bits 8 --codebooks 16 --tokens 64",
    "entropy": "--groups 3 --tokens 64 --runs 1 --steps 2",
    "resolution": "--steps 2",
    "positions": "--steps 2 --longest 4",
    "variable_length": "--steps 2 --frames 2",
}


def _photographs():
    for name in ("astronaut", "coffee", "chelsea", "rocket"):
        picture = getattr(data, name)()
        for row in range(3):
            yield f"{name}{row}.jpg", Image.fromarray(picture[80 * row :, 60:]).resize((72, 64))


def _shards(folder, encoded):
    folder.mkdir()
    for name in ("train-000", "train-099", "val-000"):
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for file, content in encoded.items():
                info = tarfile.TarInfo(f"{name}/{file}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    images = [{"bytes": content, "path": name} for name, content in encoded.items()]
    for name in ("train-0", "validation-0"):
        pyarrow.parquet.write_table(pyarrow.table({"image": images}), folder / f"{name}.parquet")


@pytest.fixture(scope="module")
def world(tmp_path_factory, request):
    """The folder in which commands run, with the files that pages name."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("configs", "launch", "bsq_jax", "tests"):
        (folder / name).symlink_to(ROOT / name)
    encoded = {}
    for name in ("pictures", "photos", "holiday", "val"):
        (folder / name).mkdir()
    for name, picture in _photographs():
        picture.save(folder / "pictures" / name)
        encoded[name] = (folder / "pictures" / name).read_bytes()
    for name in ("photos", "holiday", "val"):
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
    shutil.copy(ROOT / "docs/extending/examples/loss/my_config.py", folder)
    shutil.copy(ROOT / "docs/extending/examples/loss/my_loss.py", folder)
    previous = pathlib.Path.cwd()
    os.chdir(folder)
    request.addfinalizer(lambda: os.chdir(previous))
    return folder


def _kind(words):
    """Which of the tasks a training has."""
    text = " ".join(words)
    if "configs/prior" in text or "starter.py:prior" in text:
        return "prior"
    return "masked_lm" if "masked_lm" in text.split("--workdir")[0] else "tokenizer"


def tiny(words):
    """The words of a training with `TINY` in place of what they set."""
    kind = _kind(words)
    changes = {**ALWAYS, **TINY[kind]}
    config = next((words[at + 1] for at, word in enumerate(words) if word == "--config"), "")
    name = pathlib.PurePath(config.partition(":")[0]).stem
    given = {word.partition("=")[0].removeprefix("--config.") for word in words}
    if name == "tokenizer":
        changes |= SMALLER["ucf101" if "ucf101" in config else "tokenizer"]
        if "runlocal" in config:
            changes.pop("model.image_size")
    words = [word for word in words if word.partition("=")[0].removeprefix("--config.") not in changes]
    del given
    return [*words, *(f"--config.{key}={value}" for key, value in changes.items() if value is not None)]


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


def run_package(words):
    """A command of the package, without ``python -m bsq_jax``."""
    command, *rest = words
    if command in ("train", ".main"):
        own = rest[rest.index("--workdir") + 1].removeprefix("runs/")
        continued = "--config" not in rest and "--config.train.init" not in " ".join(rest)
        if continued:
            make(own)
        else:
            shutil.rmtree(pathlib.Path("runs") / own, ignore_errors=True)
        for name in needed(rest, own):
            if name != "tokens" and name != "digits_tokens":
                make(name)
        return main.run(rest if continued else tiny(rest))
    own = ""
    if command == "tokenize":
        own = rest[0].removeprefix("runs/")
        shutil.rmtree(rest[0], ignore_errors=True)
    if command == "studies":
        own = rest[rest.index("--workdir") + 1].removeprefix("runs/")
        shutil.rmtree(pathlib.Path("runs") / own, ignore_errors=True)
        rest += shlex.split(SMALL_FLAGS[rest[0]])
        if rest[0] != "quantization_error":
            rest += [word for setting in SMALL_STUDY for word in ("--set", setting)]
    elif command in SMALL_FLAGS:
        rest += shlex.split(SMALL_FLAGS[command])
    for name in needed(rest, own):
        make(name)
    return cli.main([command, *rest])


def parsed_only(module, words):
    """Has a benchmark read its words, and stops it there.

    Returns:
      Whether they were read.
    """

    class Read(Exception):  # noqa: N818
        pass

    class Stops(argparse.ArgumentParser):
        def parse_args(self, *args, **kwargs):
            super().parse_args(*args, **kwargs)
            raise Read

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *words])
        patch.setattr(argparse, "ArgumentParser", Stops)
        with pytest.raises(Read):
            importlib.import_module(module).main()


def run(words):
    """Runs one command; returns its status."""
    match words:
        case ["python", "-m", "bsq_jax", *rest]:
            return run_package(rest)
        case ["python", "-m", "bsq_jax.main", *rest]:
            return run_package([".main", *rest])
        case ["bsq-jax", *rest]:
            return run_package(rest)
        case ["python", "-m", benchmark, *rest] if benchmark.startswith("benchmarks."):
            parsed_only(benchmark, rest)
            pytest.skip("a benchmark of minutes: its flags are right")
        case ["bash", script, *rest] if script.startswith("launch/"):
            at = rest.index("--") if "--" in rest else len(rest)
            dry = [*rest[:at], "--dry-run", *rest[at:]]
            variables = {
                name: "x" for name in ("CLOUDSDK_CORE_PROJECT", "CLOUDSDK_COMPUTE_ZONE")
            } | {"BSQ_TPU_NAME": "x", "BSQ_BUCKET": "gs://x"}
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


@pytest.mark.parametrize("words", unique())
def test_command(words, world, monkeypatch):
    text = shlex.join(words)
    for pattern, reason in REASONS.items():
        if re.search(pattern, text):
            pytest.skip(f"{text}: {reason}")
    words = [replaced(word) for word in words]
    if "..." in words:
        at = words.index("...")
        words[at : at + 1] = ["--config", "configs/quickstart.py", "--workdir", "runs/other"]
    assert run(words) == 0, text
