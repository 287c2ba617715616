"""The user's own parts. Oracle: the pages' example files, numpy, and lines written by hand."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from small_codec import make_codec
from user_errors import message_of

from bsq_jax import cli
from bsq_jax.coding.codec import Codec
from bsq_jax.config import (
    default_config,
    finalize,
    fingerprint_settings,
    from_json,
    load_config_file,
    set_value,
    to_json,
)
from bsq_jax.config.own_parts import BUILT_IN_SOURCES
from bsq_jax.data.sources import _PLACED, make_source
from bsq_jax.data.tokens import TOKENS_SCHEME
from bsq_jax.evaluation.own import make_own_metrics
from bsq_jax.inference.generator import Generator
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.losses import make_losses
from bsq_jax.losses.factory import TAKEN
from bsq_jax.models.factory import make_tokenizer
from bsq_jax.quantizers import make_quantizer
from bsq_jax.training.export import load_export
from bsq_jax.training.optimizer import decays, make_optimizer
from bsq_jax.training.saved_models import read_saved_config, with_tokenizer

PAGES = pathlib.Path(__file__).parent.parent / "docs" / "extending"
NAMES = sorted(path.name for path in (PAGES / "examples").iterdir())
# The quickstart at a size that trains in moments, as flags: the files run as they stand.
SMALL = [
    f"--config.{setting}"
    for setting in (
        *("model.image_size=16", "model.width=16", "model.layers=1", "model.head_channels=0"),
        *("data.resize=32", "data.scale=1", "data.eval_resize=16", "data.eval_crop=center"),
        *("data.cache_mb=8", "train.steps=2", "train.batch_size=4", "train.log_every=1"),
        *("eval.lpips=false", "eval.frechet=false", "eval.pictures=1", "eval.batch_size=32"),
        *("optimizer.ema=0", "loss.perceptual=0"),
    )
]
OWN_PART = """
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
from bsq_jax.data.records import Record
from bsq_jax.losses import ReconstructionLoss
from bsq_jax.models.own_positions import position_embedding
from bsq_jax.quantizers.base import Quantizer
NUMBER = 3
@position_embedding
def few(original):
    return original
@position_embedding
def broken(original, reconstruction, scale=1.0):
    return [][0]
def half(original, reconstruction, scale=1.0):
    return scale * jnp.abs(original - reconstruction).mean(axis=(2, 3, 4))
def l1(original, reconstruction):
    return half(original, reconstruction)
def psnr(original, reconstruction):
    return half(original, reconstruction)
def whole(original, reconstruction):
    return jnp.mean(original - reconstruction)
def one(original):
    return original
class Plain:
    pass
class Size(ReconstructionLoss):
    name = "size"
    def __call__(self, original, reconstruction, weights, frozen):
        return jnp.mean(jnp.square(reconstruction))
class Broken(Quantizer):
    channels = 2
    bits = 2
    def decode(self, bits):
        raise NotImplementedError
class Table(nn.Module):
    start: float = 0.0
    @nn.compact
    def __call__(self, frames, grid, width):
        start = nn.initializers.constant(self.start)
        table = self.param("table", start, (*grid, width))
        return jnp.broadcast_to(table, (len(frames), *grid, width))
@position_embedding
def flat(frames, grid, width):
    return np.zeros((len(frames), width))
def bad(split):
    raise FileNotFoundError("pictures.npz")
class Floats:
    name, videos = "floats", False
    def __init__(self, split): pass
    def __len__(self): return 1
    def __getitem__(self, index): return Record("0", np.zeros((4, 4)))
class Arrays(Floats):
    def __getitem__(self, index): return np.zeros((4, 4, 3), np.uint8)
def number(schedule):
    return 3
"""


@pytest.fixture(autouse=True)
def imports():
    """Leaves no folder and no module behind, as the end of a process does: `forget` does it."""
    path = list(sys.path)

    def forget():
        sys.path[:] = path
        for name in list(sys.modules):
            if name.startswith("my_") or name in ("part", "part_broken"):
                del sys.modules[name]

    yield forget
    forget()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trains an example in another folder, once each: ``(folder, workdir, last metrics)``."""
    done = {}

    def train(name):
        if name not in done:
            folder = tmp_path_factory.mktemp("mine") / name
            shutil.copytree(PAGES / "examples" / name, folder)
            workdir = folder / "run"
            with contextlib.chdir(folder):
                words = ["train", "--config", "my_config.py", "--workdir", "run", *SMALL]
                assert cli.main(words) == 0
            lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
            steps = [line for line in lines if "loss" in line]
            done[name] = folder, workdir, steps[-1]
        return done[name]

    return train


@pytest.fixture
def parts(tmp_path):
    """A module ``part`` in a folder, and a config that may name what is in it."""
    (tmp_path / "part.py").write_text(OWN_PART)
    (tmp_path / "part_broken.py").write_text("import part\n1 / 0\n")
    config = default_config()
    config.extensions = str(tmp_path)
    return config


@pytest.mark.smoke
@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_the_files_of_its_example(name):
    page = (PAGES / f"{name}.md").read_text()
    for path in sorted((PAGES / "examples" / name).glob("*.py")):
        assert f"`{path.name}`" in page
        assert f"```python\n{path.read_text()}```\n" in page, path
    assert f"({name}.md)" in (PAGES / "README.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_an_example_trains_as_it_stands(name, trained, capsys):
    folder, workdir, last = trained(name)
    shown = "".join(capsys.readouterr())
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["extensions"] == str(folder)
    report = json.loads((workdir / "evaluation.json").read_text())
    match name:
        case "loss":
            assert last["loss"] == pytest.approx(last["l2"] + 0.5 * last["edges"], rel=1e-5)
            assert re.search(r"step 2/2 .* edges 0\.\d", shown)
        case "quantizer":
            assert saved["model"]["bits"] == 18
        case "data_source":
            assert report["measured"]["source"].startswith("my_source:Disks(")
        case "metric":
            assert report["results"]["raw"]["colorfulness"] > 0
            assert "Colorfulness error (0 is best)" in shown
        case "optimizer":
            assert last["learning_rate"] < 5e-4


def test_resuming_evaluating_and_coding_with_the_workdir_alone(trained, tmp_path, imports):
    _, workdir, _ = trained("quantizer")
    imports()
    assert cli.main(["train", "--workdir", str(workdir), "--config.train.steps=3"]) == 0
    pixels = np.random.default_rng(0).integers(256, size=(2, 16, 16, 3), dtype=np.uint8)
    tokenizer = Tokenizer.load(workdir)
    bits = tokenizer.encode(pixels)
    assert bits.shape[-1] == 18
    # Oracle: the largest number of eleven ternary digits.
    number = bits.reshape(-1, 18).astype(np.int64) @ (1 << np.arange(17, -1, -1))
    assert number.max() < 3**11
    assert np.isfinite(tokenizer.decode(bits)).all()
    # A model of its tokens finds the quantizer by the tokenizer's workdir.
    config = load_config_file("prior")
    config.prior.tokenizer = str(workdir)
    config = finalize(with_tokenizer(config, tmp_path))
    assert make_quantizer(config).codes == 3**11

    export = tmp_path / "export"
    assert cli.main(["export", str(workdir), str(export)]) == 0
    saved = json.loads((export / "config.json").read_text())["config"]
    assert saved["extensions"] == ""
    imports()
    assert message_of(Tokenizer.load, export).endswith(
        "there is no module my_quantizer: give the folder it lies in as "
        "--config.extensions=FOLDER, or put it on PYTHONPATH"
    )
    sys.path.append(str(workdir.parent))
    assert (Tokenizer.load(export).encode(pixels) == bits).all()


def test_code_that_an_export_names_is_not_called(trained, tmp_path, caplog):
    _, workdir, _ = trained("quantizer")
    export = tmp_path / "export"
    assert cli.main(["export", str(workdir), str(export)]) == 0
    described = json.loads((export / "config.json").read_text())
    described["config"] |= {"extensions": str(tmp_path)}
    described["config"]["loss"]["terms"] = ["part:half"]
    described["config"]["eval"]["metrics"] = ["part:half"]
    described["config"]["optimizer"]["name"] = "part:number"
    described["config"]["data"] |= {"source": "part:bad", "val_source": "folder:here"}
    (export / "config.json").write_text(json.dumps(described))
    config, _, _ = load_export(export)
    assert (config.extensions, config.loss.terms, config.eval.metrics) == ("", (), ())
    assert (config.optimizer.name, config.data.source) == ("adamw", "")
    assert (config.data.val_source, config.quantizer.name) == (
        "folder:here",
        "my_quantizer:Ternary(digits=11)",
    )
    assert "loss.terms=part:half; eval.metrics=part:half; optimizer.name=part:number" in caplog.text
    assert "data.source is empty" in message_of(make_source, "", "val")
    config.quantizer.name = "subprocess:Popen(args='true')"
    config.model.bits = 0
    assert "subprocess is a module of Python itself" in message_of(finalize, config)


@pytest.mark.parametrize("where", ["tokenizer", "other"])
def test_an_export_does_not_lead_to_a_workdir_whose_code_is_called(where, tmp_path, capsys):
    export, ran = tmp_path / "export", tmp_path / "ran"
    make_codec().save(export)
    planted = export / where
    shutil.rmtree(export / "tokenizer")
    planted.mkdir()
    (planted / "my_planted.py").write_text(f"open({str(ran)!r}, 'w')\n")
    theirs = tiny.get_config()
    theirs.extensions, theirs.quantizer.name = str(planted), "my_planted:Q"
    (planted / "config.json").write_text(json.dumps(to_json(theirs)))
    described = json.loads((export / "config.json").read_text())
    described["config"]["prior"]["tokenizer"] = str(planted)
    (export / "config.json").write_text(json.dumps(described))
    line = f"error: {export / 'tokenizer'} is missing or no export"
    for words in (
        ["evaluate", "--workdir", str(export)],
        ["train", "--workdir", str(tmp_path / "run"), f"--config.train.init={export}"],
    ):
        assert cli.main(words) != 0
        assert line in capsys.readouterr().err
    for load in (Codec.load, Generator.load, with_tokenizer):
        arguments = [export] if load != with_tokenizer else [tiny.get_prior(planted), export]
        message_of(load, *arguments)
    assert not ran.exists()
    # The tokenizer in the export counts, not the path.
    make_codec().tokenizer.save(export / "tokenizer")
    if where == "other":
        assert read_saved_config(export).prior.tokenizer == str(export / "tokenizer")
        Codec.load(export)
        assert not ran.exists()


def test_a_function_that_is_installed_is_not_called_as_positions(parts, tmp_path):
    """As an export of other people may name it, with arguments that they chose."""
    ran = tmp_path / "ran"
    (tmp_path / "part.py").write_text(
        "def probe(frames, grid, width, path=''):\n    open(path, 'w')\n"
    )
    parts.model.positions = f"part:probe(path={str(ran)!r})"
    message = message_of(make_tokenizer(finalize(parts)).shape.frame_positions, 1)
    assert "probe is not marked as positions" in message
    assert not ran.exists()


def test_folders_of_a_model_of_tokens_and_of_its_tokenizer_are_joined(tmp_path):
    """Each has code of its own in another folder."""
    one, other, gone = tmp_path / "one", tmp_path / "other", tmp_path / "gone"
    workdir, run = tmp_path / "workdir", tmp_path / "run"
    for folder in (one, other, workdir, run):
        folder.mkdir()
    shutil.copy(PAGES / "examples" / "quantizer" / "my_quantizer.py", one)
    (other / "my_prior.py").write_text("def no(*_): raise NotImplementedError\n")
    tokenizer = tiny.get_config()
    tokenizer.quantizer.name, tokenizer.model.bits = "my_quantizer:Ternary(digits=5)", 0
    tokenizer.extensions = os.pathsep.join(map(str, (one, gone)))
    (workdir / "config.json").write_text(json.dumps(to_json(tokenizer)))
    config = tiny.get_prior(workdir)
    config.extensions, config.optimizer.name = str(other), "my_prior:no"
    made = finalize(with_tokenizer(config, run))
    assert made.extensions == os.pathsep.join(map(str, (other, one)))
    assert make_quantizer(made).codes == 3**5
    assert "NotImplementedError" in message_of(make_optimizer, made)
    # Later only the run's own config knows of both, its tokenizer is an export.
    make_codec().tokenizer.save(run / "tokenizer")
    (run / "config.json").write_text(json.dumps(to_json(made)))
    config.extensions = str(other)
    assert with_tokenizer(config, run).extensions == made.extensions


SOURCE = "unknown data source .* there must be a module nowhere"
LINES = [
    ("loss.terms", "nope:edges", "there is no module nope: give the folder .*--config.extensions="),
    ("loss.terms", "partt:edges", r"there is no module partt \(did you mean part\?\): give the"),
    ("loss.terms", "part.sub:edges", "there is no module part.sub: give the folder"),
    ("loss.terms", "part:haf", r"part.py has no haf: did you mean half\?"),
    ("loss.terms", "part:NUMBER", "NUMBER is of type int: it must be a function or class"),
    ("loss.terms", "part_broken:x", "part_broken.py, line 2: ZeroDivisionError: division by zero"),
    ("loss.terms", "part:half(size=2)", "unexpected keyword argument 'size': it takes .original,"),
    ("loss.terms", "part:one", r"too many positional arguments: it takes \(original\)"),
    ("loss.terms", "part:half(scale=x)", "scale=x is no literal: write a value such as 6"),
    ("loss.terms", "part:half(2)", r"give arguments by name: \(key=value\)"),
    ("loss.terms", "part:half(scale=)", "cannot be read: write"),
    ("loss.terms", "edges", "write module:attribute, or module:attribute"),
    ("loss.terms", "x*part:half", "'x' is no weight: write 0.5[*]module:attribute"),
    ("loss.terms", "-1*part:half", "'-1' is no weight"),
    ("loss.terms", "part:l1", "the name 'l1' of a term is that of another metric"),
    ("loss.terms", "part:psnr", "the name 'psnr' of a term is that of another metric"),
    ("loss.terms", "part:half,part:half", "the name 'half' of a term is that of another"),
    ("loss.terms", "part:Plain", "a class must inherit from bsq_jax.losses.base:Reconstruction"),
    ("quantizer.name", "part:half", "half must be a class that inherits from bsq_jax.quantizers"),
    ("quantizer.name", "part:Broken(digits=2)", "unexpected keyword argument 'digits': it takes"),
    ("model.positions", "part:Plain", "Plain must be a class that inherits from flax.linen"),
    ("model.positions", "part:few", r"too many positional arguments: it takes \(original\)"),
    ("model.positions", "part:half", "half is not marked as positions: write @position_embedding"),
    ("model.positions", "part:NUMBER", "NUMBER must be a class that inherits from flax.linen"),
    ("model.positions", "part:broken", r"part.py, line \d+: IndexError"),
    ("model.positions", "part:flat", r"shape \[1, 768\]: it must be .*, here \[1, 32, 32, 768\]"),
    ("optimizer.name", "part:number", "it returned int: it must be an optax.GradientTransform"),
    ("eval.metrics", "part:psnr", "there is another metric with the name 'psnr'"),
    ("eval.metrics", "part:one", "too many positional arguments"),
    ("data.source", "part:bad", "part.py, line .*: FileNotFoundError: pictures.npz"),
    ("data.source", "part:Floats", r"record 0 has pixels float64 \[4, 4\]: they must be uint8"),
    ("data.source", "part:Arrays", "record 0 is of type ndarray: it must be a bsq_jax.data.rec"),
    ("data.source", "part:whole(split=1)", "it takes"),
    ("data.source", "nowhere:pictures", SOURCE),
    ("data.source", "foldr:pictures", r"did you mean 'folder'\?"),
]


@pytest.mark.smoke
@pytest.mark.parametrize(("key", "text", "words"), LINES)
def test_what_is_wrong_is_one_line(key, text, words, parts):
    set_value(parts, key, text)
    parts.model.bits = 0 if key == "quantizer.name" else 36

    def make():
        config = finalize(parts)
        make_losses(config)
        make_tokenizer(config).shape.frame_positions(1)
        make_optimizer(config)
        make_own_metrics(config.eval.metrics)
        make_source(config.data.source, "train")

    message = message_of(make)
    assert re.search(words, message), message
    assert key in message or key == "data.source"


def test_own_losses(parts):
    set_value(parts, "loss.terms", "0.5*part:half(scale=2.0), 3*part:Size, part:whole")
    assert parts.loss.terms == ("0.5*part:half(scale=2.0)", "3*part:Size", "part:whole")
    again = from_json(json.loads(json.dumps(to_json(parts))), "x")
    assert again.loss.terms == parts.loss.terms
    config = finalize(again)
    *_, half, size, whole = make_losses(config)
    assert [(each.name, each.weight) for each in (half, size)] == [("half", 0.5), ("size", 3.0)]
    random = np.random.default_rng(0)
    original, other = random.uniform(-1, 1, (2, 2, 3, 4, 4, 3)).astype(np.float32)
    weights = np.array([[1, 1, 0], [1, 0, 0]], np.float32)
    each = 2 * np.abs(original - other).mean(axis=(2, 3, 4))
    wanted = each[weights > 0].mean()
    assert float(half(original, other, jnp.asarray(weights), {})) == pytest.approx(wanted, 1e-5)
    assert float(half(original, other, None, {})) == pytest.approx(each.mean(), rel=1e-5)
    assert message_of(whole, original, other, None, {}) == (
        "loss.terms=part:whole: it returned shape (): it must be [batch, time], here (2, 3), a "
        "value for each frame"
    )
    parts.loss.update(l1=0.0, l2=0.0, terms=("0*part:half",))
    assert "there is nothing to reconstruct with" in message_of(finalize, parts)
    parts.loss.terms = ("part:half",)
    finalize(parts)


def test_a_quantizer_without_a_step_has_no_stages(parts):
    parts.quantizer.update(name="part:Broken", stages=2)
    parts.model.bits = 0
    config = finalize(parts)
    assert config.model.bits == 4
    assert "it has no `step`, which quantizer.stages=2 needs" in message_of(make_quantizer, config)
    parts.model.bits = 36
    assert "quantizer.name=part:Broken" in message_of(finalize, parts)


def test_the_ternary_quantizer_in_stages(parts):
    parts.extensions = str(PAGES / "examples" / "quantizer")
    parts.quantizer.update(name="my_quantizer:Ternary(digits=5)", stages=2)
    parts.model.bits = 0
    quantizer = make_quantizer(finalize(parts))
    latents = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    found = quantizer.apply({}, latents)
    assert found.bits.shape == (64, 16)  # twice the bits of 3^5 - 1
    # Oracle: the nearest of the nine multiples of a third.
    points = 1.5 * np.tanh(latents)
    wanted = np.clip(np.round(3 * points), -4, 4) / 3
    np.testing.assert_allclose(found.quantized, wanted, atol=1e-6)


def test_positions_with_parameters(parts):
    parts.model.update(
        image_size=(16, 16), width=16, layers=1, heads=2, positions="part:Table(start=0.5)"
    )
    parts.model.update(bits=6, frames=2, dtype="float32")
    model = make_tokenizer(finalize(parts))
    pixels = jnp.zeros((1, 2, 16, 16, 3))
    params = jax.eval_shape(lambda: nn.meta.unbox(model.init(jax.random.key(0), pixels)))["params"]
    table = params["encoder"]["trunk"]["positions"]["own"]["table"]
    assert table.shape == (2, 2, 16)
    assert decays(params)["encoder"]["trunk"]["positions"]["own"]["table"] is False
    assert "learned positions for 2" in message_of(model.shape.frame_positions, 3)


def test_positions_of_a_function_are_those_of_a_stream(parts):
    path = str(PAGES / "examples" / "positions")
    parts.extensions = path
    parts.model.update(frames=4, positions="my_positions:fourier")
    shape = make_tokenizer(finalize(parts)).shape
    whole, part = shape.frame_positions(9), shape.frame_positions(2, first=5)
    np.testing.assert_array_equal(whole.added[5:7], part.added)
    assert whole.added.shape == (9, 32, 32, 768)
    assert len({row.tobytes() for row in whole.added.reshape(-1, 768)}) == 9 * 32 * 32


def test_extensions_are_kept_where_a_part_is_named_and_found_once(tmp_path, parts):
    file = tmp_path / "mine_config.py"
    text = "from bsq_jax.config import default_config\n\n\ndef get_config(argument=''):\n"
    file.write_text(text + "    return default_config()\n")
    config = load_config_file(str(file))
    assert config.extensions == str(tmp_path)
    assert finalize(config).extensions == ""
    assert load_config_file("quickstart").extensions == ""
    config.data.source = "tfds:mnist"
    assert finalize(config).extensions == ""
    config.loss.terms = ("part:half",)
    made = finalize(config)
    assert made.extensions == str(tmp_path)
    make_losses(made)
    # The same name elsewhere is not taken for it.
    other = tmp_path / "other"
    other.mkdir()
    (other / "part.py").write_text(OWN_PART)
    config.extensions = str(other)
    message = message_of(make_losses, finalize(config))
    assert "the module part is in use from" in message
    assert str(other / "part.py") in message


@pytest.mark.smoke
def test_a_loss_may_not_have_the_name_of_another_metric():
    # Oracle: the page of all metrics, which has a test of its own.
    page = (PAGES.parent / "metrics.md").read_text()
    training = page[page.index("## Training, all") : page.index("## Training, prior")]
    rows = [line.split("|")[1] for line in training.splitlines() if line.startswith("| `")]
    names = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert {"loss", "psnr", "quantizer_loss", "r1", "mfu"} < names
    assert names - {"l1", "l2", "perceptual"} <= TAKEN


@pytest.mark.smoke
def test_the_built_in_sources_with_a_colon_are_known():
    assert {*_PLACED, TOKENS_SCHEME.removesuffix(":")} == set(BUILT_IN_SOURCES)


@pytest.mark.smoke
def test_older_fingerprints_stay():
    config = finalize(default_config())
    before = fingerprint_settings(config)
    assert not any("terms" in key or "extensions" in key for key in before)
