"""The configuration. Oracle: values and messages written out by hand; JSON."""

import json
import pathlib
import re
import shutil
import sys
import textwrap
import tomllib
import types

import pytest
from ml_collections import ConfigDict
from user_errors import message_of

import bsq_jax
from bsq_jax.config import (
    default_config,
    finalize,
    from_json,
    load_config_file,
    parse_argument,
    set_value,
    to_json,
)
from bsq_jax.config.declaration import ANY
from bsq_jax.config.published import find_config_file, published_names
from bsq_jax.config.settings import declared
from bsq_jax.config.values import flatten

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("train.steps", "7", 7),
        ("train.steps", "1e4", 10_000),
        ("train.steps", "1_000", 1000),
        ("seed", "-1", -1),
        ("optimizer.learning_rate", "1e-3", 1e-3),
        ("optimizer.learning_rate", "2", 2.0),
        ("optimizer.learning_rate", "none", None),
        ("optimizer.weight_decay", "0", 0.0),
        ("data.flip", "False", False),
        ("data.flip", "1", True),
        ("model.image_size", "64", (64, 64)),
        ("model.image_size", "64,96", (64, 96)),
        ("model.image_size", "64x96", (64, 96)),
        ("model.image_size", "(64, 96)", (64, 96)),
        ("data.scale", "0.5,1", (0.5, 1.0)),
        ("data.source", "folder:/a b/C=d", "folder:/a b/C=d"),
    ],
)
def test_values_are_converted_to_the_type_of_their_key(key, text, value):
    config = default_config()
    set_value(config, key, text)
    found = dict(flatten(config))[key]
    assert found == value
    assert type(found) is type(value)
    if isinstance(value, tuple):
        assert [type(x) for x in found] == [type(x) for x in value]


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("train.stesp", "7", "--config.train.stesp does not exist: did you mean train.steps ("),
        (
            "optimizer.batch_size",
            "7",
            "--config.optimizer.batch_size does not exist: did you mean ",
        ),
        ("model.widht", "7", "did you mean model.width (channels of a token)?"),
        ("train", "7", "--config.train is a group of keys: set one of train.accumulate, "),
        ("train.steps", "many", "--config.train.steps is 'many': it must be a whole number"),
        ("train.steps", "1.5", "it must be a whole number"),
        ("train.steps", "inf", "it must be a whole number"),
        ("train.steps", "", "it must be a whole number"),
        ("optimizer.b1", "high", "--config.optimizer.b1 is 'high': it must be a number"),
        ("data.flip", "maybe", "--config.data.flip is 'maybe': it must be true or false"),
        ("model.image_size", "1,2,3", "it must be 2 whole numbers such as 256,256"),
        ("model.patch_size", "8,8,8", "it must be a whole number, or 2 such as 16,8"),
        ("model.image_size", "big", "it must be 2 whole numbers such as 256,256"),
        ("data.scale", "", "it must be 2 numbers such as 1.0,1.0"),
        ("model.image_size", "64.5", "it must be 2 whole numbers such as 256,256"),
        ("model.image_size", "64,inf", "it must be 2 whole numbers such as 256,256"),
        ("optimizer.warmup_steps", "none", "it must be a whole number"),
        ("optimizer.b1", "none", "it must be a number"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(key, text, expected):
    assert expected in message_of(set_value, default_config(), key, text)


def test_configs_are_locked():
    config = default_config()
    with pytest.raises(AttributeError):
        config.train.stesp = 3
    with pytest.raises(TypeError):
        config.train.steps = "many"
    assert finalize(config).is_locked


def test_the_learning_rate_follows_the_batch():
    config = default_config()
    for batch in (256, 1024):
        config.train.batch_size = batch
        assert finalize(config).optimizer.learning_rate == pytest.approx(4e-7 * batch, rel=1e-12)
    assert config.optimizer.learning_rate is None  # what was given stays as it was
    config.optimizer.learning_rate = 0.5
    assert finalize(config).optimizer.learning_rate == 0.5


@pytest.mark.parametrize("finalized", [False, True])
def test_json_gives_the_same_config_back(finalized):
    config = default_config()
    set_value(config, "model.image_size", "64,96")
    config = finalize(config) if finalized else config
    text = json.dumps(to_json(config), allow_nan=False)
    again = from_json(json.loads(text), "x")
    assert dict(flatten(again)) == dict(flatten(config))
    assert again.is_locked
    assert isinstance(again.model.image_size, tuple)


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ({"model": {"colour": 1}}, "run/config.json has the unknown config key model.colour"),
        ({"model": 3}, "run/config.json"),
        ({"train": {"steps": "many"}}, "train.steps"),
        ({"train": {"steps": [1, 2]}}, "train.steps"),
        ({"train": {"steps": None}}, "train.steps"),
        ([1, 2], "run/config.json"),
    ],
)
def test_a_damaged_saved_config_is_one_line(saved, words):
    assert words in message_of(from_json, saved, "run/config.json")


def test_a_saved_config_without_a_loss_had_none():
    saved = to_json(default_config())
    del saved["loss"]["perceptual"], saved["loss"]["adversarial"], saved["loss"]["lecam_decay"]
    config = from_json(saved, "x")
    assert (config.loss.perceptual, config.loss.adversarial) == (0.0, 0.0)
    assert config.loss.lecam_decay == 0.999  # other keys take their defaults
    config = from_json(to_json(default_config()), "x")
    assert (config.loss.perceptual, config.loss.adversarial) == (0.1, 0.1)


def with_key(key, value):
    """A config that nothing kept from being given this value."""
    tree = default_config().to_dict()
    *groups, leaf = key.split(".")
    target = tree
    for group in groups:
        target = target[group]
    target[leaf] = value
    return ConfigDict(tree)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("model.image_size", (64, 64, 3), "is (64, 64, 3): it must be 2 whole numbers such as 256"),
        ("model.image_size", 64, "model.image_size is 64: it must be 2 whole numbers"),
        ("model.image_size", (64.0, 64.0), "it must be 2 whole numbers"),
        ("data.scale", ("a", "b"), "data.scale is ('a', 'b'): it must be 2 numbers"),
        ("train.steps", 1e4, "train.steps is 10000.0: it must be a whole number"),
        ("train.steps", True, "train.steps is True: it must be a whole number"),
        ("train.steps", None, "train.steps is None: it must be a whole number"),
        ("data.flip", 1, "data.flip is 1: it must be true or false"),
        ("model.dtype", 32, "model.dtype is 32: it must be text"),
        ("train.stesp", 3, "config: train.stesp is not a key: did you mean train.steps ("),
        ("train", 3, "config: train is not a key"),
    ],
)
def test_what_a_config_file_may_hold_is_checked_against_the_defaults(key, value, words):
    assert words in message_of(finalize, with_key(key, value))


def test_a_config_of_ones_own_has_all_keys_and_may_write_numbers_otherwise():
    assert "config: name is missing: begin with bsq_jax.config.default_config()" in message_of(
        finalize, ConfigDict({"model": {"bits": 18}})
    )
    config = finalize(with_key("data.scale", [1, 2]))
    assert config.data.scale == (1.0, 2.0)
    assert type(config.data.scale[0]) is float
    assert dict(flatten(finalize(ConfigDict(default_config().to_dict())))) == dict(
        flatten(finalize(default_config()))
    )


# Of every setting with a range or choices, values just outside. Written out by hand.
REJECTED = {
    **{
        f"model.{key}": ("0", "-1")
        for key in ("frames", "patch_size", "bits", "width", "layers", "heads", "mlp_ratio")
    },
    "model.image_size": ("0", "64,-8", "256,100"),
    "model.patch_time": ("0", "3"),
    "model.head_hidden": ("-1",),
    **{f"model.{half}coder_{key}": ("-1",) for half in ("en", "de") for key in ("width", "layers")},
    "model.head_channels": ("-1",),
    "model.window": ("-1",),
    "model.spatial_window": ("-2",),
    "model.min_bits": ("-1", "37"),
    "model.dtype": ("float16",),
    "model.remat": ("all",),
    "model.attention": ("flash",),
    "model.positions": ("sine",),
    "model.causality": ("causal",),
    "task": ("tokeniser", ""),
    "seed": ("-1", str(2**32)),
    "quantizer.name": ("pq",),
    "quantizer.stages": ("0",),
    "quantizer.levels": ("8,1",),
    "quantizer.codes": ("1", "16777217"),
    "quantizer.channels": ("0",),
    "quantizer.learning": ("adam",),
    "quantizer.decay": ("1", "-0.1"),
    "quantizer.restart": ("1.1", "-0.1"),
    "quantizer.commitment_weight": ("-0.1",),
    "quantizer.flip": ("0.6", "-0.1"),
    "quantizer.group_size": ("0", "17"),
    "quantizer.inv_temperature": ("0", "nan"),
    **{f"prior.{key}": ("0",) for key in ("width", "layers", "heads", "hidden", "window")},
    "prior.order": ("random",),
    "prior.reach": ("-1", "3,-1"),
    "masked_lm.group_size": ("0",),
    "masked_lm.frames": ("0",),
    "masked_lm.width": ("0",),
    "masked_lm.layers": ("0",),
    "masked_lm.heads": ("0", "7"),
    "masked_lm.mlp_ratio": ("0",),
    "masked_lm.classes": ("-1",),
    "masked_lm.label_dropout": ("-0.1", "1.1", "nan"),
    "masked_lm.label_smoothing": ("-0.1", "1.1"),
    "masked_lm.schedule": ("sine",),
    "masked_lm.mask_unit": ("bit",),
    "sampling.steps": ("0",),
    "sampling.schedule": ("sine",),
    "sampling.order": ("raster",),
    "sampling.temperature": ("-1",),
    "sampling.noise": ("-1",),
    "loss.l1": ("-1", "0"),
    "loss.l2": ("-1",),
    "loss.entropy": ("-0.1",),
    "loss.entropy_ramp_steps": ("-1",),
    "loss.rate": ("-0.1",),
    "loss.rate_ramp_steps": ("-1",),
    "loss.rate_growth": ("0",),
    "loss.rate_learning_rate": ("0",),
    "loss.perceptual": ("-0.1",),
    "loss.perceptual_network": ("vgg", "alex"),
    "loss.perceptual_start": ("-1",),
    "loss.adversarial": ("-0.1",),
    "loss.adversarial_kind": ("wgan",),
    "loss.adversarial_start": ("-1",),
    "loss.r1": ("-1",),
    "loss.r1_every": ("0",),
    "loss.lecam": ("-1",),
    "loss.lecam_decay": ("1", "-0.1"),
    "discriminator.name": ("none",),
    "discriminator.channel_base": ("0",),
    "discriminator.channel_max": ("0",),
    "discriminator.pooling": ("mean",),
    "discriminator.stddev_group": ("0",),
    "discriminator.width": ("0",),
    "discriminator.layers": ("0",),
    "discriminator.clip": ("norm",),
    "discriminator.learning_rate": ("0", "nan"),
    "optimizer.name": ("sgd",),
    "optimizer.learning_rate": ("0", "nan"),
    "optimizer.muon_learning_rate": ("0",),
    "optimizer.momentum": ("1",),
    "optimizer.warmup_steps": ("-1",),
    "optimizer.b1": ("1.5",),
    "optimizer.b2": ("-0.1",),
    "optimizer.weight_decay": ("-1",),
    "optimizer.clip": ("norm",),
    "optimizer.clip_norm": ("0",),
    "optimizer.ema": ("1",),
    "data.resize": ("-1",),
    "data.scale": ("0,1", "-1,1"),
    "data.permute_channels": ("-0.1", "1.1", "nan"),
    "data.filter": ("sinc",),
    "data.eval_filter": ("sinc",),
    "data.backend": ("opencv",),
    "data.eval_resize": ("0",),
    "data.eval_crop": ("corner",),
    "data.sizes": ("64", "64x0", "64x64,x"),
    "data.threads": ("-1",),
    "data.workers": ("-1",),
    "data.prefetch": ("-1",),
    "data.cache_mb": ("-1",),
    "data.max_broken": ("-0.1", "1.1"),
    "data.frames": ("-1",),
    "data.stride": ("0",),
    "data.min_frames": ("-1",),
    "data.image_share": ("-0.1", "1.1"),
    "data.eval_clips": ("0",),
    "train.steps": ("0",),
    "train.batch_size": ("0",),
    "train.accumulate": ("0", "3"),
    "train.log_every": ("0",),
    "train.checkpoint_every": ("0",),
    "train.keep": ("0",),
    "train.evaluate_every": ("-1",),
    "train.picture_every": ("-1",),
    "log.wandb": ("my project", "a/b/c", "x?", "/x", "x/", 129 * "x"),
    "eval.batch_size": ("0",),
    "eval.pictures": ("0",),
    "eval.neighbours": ("-1",),
    "eval.neighbours_examples": ("0",),
    "eval.videos": ("-1",),
    "eval.samples": ("-1",),
}


@pytest.mark.parametrize(
    ("key", "text"), [(key, text) for key, texts in REJECTED.items() for text in texts]
)
def test_what_is_out_of_range_is_named(key, text):
    config = default_config()
    set_value(config, key, text)
    assert f"{key} " in message_of(finalize, config)


def test_every_range_is_tested():
    bounded = {key for key, setting in declared().items() if setting.allowed is not ANY}
    assert bounded == REJECTED.keys()


# Settings of quantizers that do not fit together, and what the message has.
CLASHES = [
    ({"name": "fsq", "levels": "8,6,5"}, 36, "model.bits is 36, .* quantizer.levels=8,6,5 have 8"),
    ({"name": "fsq", "stages": 2}, 14, "levels=8,8,8,6,5 and quantizer.stages=2 have 28"),
    (
        {"name": "fsq", "levels": "8,1"},
        0,
        r"quantizer.levels is \(8, 1\): it must be from 2 to 655",
    ),
    ({"name": "vq", "codes": 1000}, 9, "model.bits is 9, .*codes=1000 have 10: set model.bits=10"),
    ({"name": "vq", "codes": 1}, 0, r"quantizer.codes is 1: it must be from 2 to 2\^24"),
    (
        {"name": "vq", "group_size": 9},
        0,
        "quantizer.group_size is 9, .*=vq does not .*leave it at 1",
    ),
    ({"name": "leech"}, 17, "model.bits is 17, .*name=leech have 18: set model.bits=18, or 0"),
    ({"name": "leech", "stages": 3}, 36, "stages=3 have 54: set model.bits=54, or 0"),
    ({"name": "leech", "stages": 5}, 36, "bits 36 does not .*stages 5: set model.bits=90, or 0"),
    (
        {"name": "leech", "commitment_weight": 0.25},
        0,
        "commitment_weight is 0.25, .*=leech does not",
    ),
    ({"name": "lfq", "restart": 0.1}, 18, r"quantizer.restart is 0.1, .*=lfq does not have \(vq\)"),
    (
        {"name": "fsq", "learning": "ema"},
        0,
        "quantizer.learning is ema, .*=fsq does not .* gradient",
    ),
    (
        {"name": "bsq", "decay": 0.9},
        18,
        "quantizer.decay is 0.9, .*=bsq does not .*leave it at 0.99",
    ),
    (
        {"name": "bsq", "channels": 4},
        18,
        "quantizer.channels is 4, .*=bsq does not .*leave it at 8",
    ),
    ({"name": "bsq", "levels": "8,5"}, 18, "levels is 8,5, .*=bsq does not .*at 8,8,8,6,5"),
    ({"name": "bsq"}, 0, "model.bits is 0: quantizer.name=bsq needs to know how many bits a token"),
    ({"name": "lfq", "stages": 4}, 18, "bits 18 does not .*stages 4: set model.bits=16 or 20"),
    ({"name": "bsq", "stages": 9}, 4, "bits 4 does not .*stages 9: set model.bits=9$"),
    ({"name": "bsq", "stages": 2, "group_size": 10}, 18, "choose 1 to 9 for 9 bits a stage"),
]


@pytest.mark.parametrize(("values", "bits", "words"), CLASHES)
def test_quantizers_whose_settings_do_not_fit_are_named(values, bits, words):
    config = default_config()
    config.model.bits = bits
    for key, value in values.items():
        set_value(config, f"quantizer.{key}", str(value))
    assert re.search(words, message_of(finalize, config))


@pytest.mark.parametrize(
    ("values", "bits"),
    [
        ({"name": "fsq", "levels": "8,6,5"}, 8),
        ({"name": "fsq", "levels": "2"}, 1),
        ({"name": "vq", "codes": 1025, "stages": 2}, 22),
        ({"name": "leech", "stages": 3}, 54),
    ],
)
def test_bits_follow_from_the_quantizer(values, bits):
    config = default_config()
    config.model.bits = 0
    for key, value in values.items():
        set_value(config, f"quantizer.{key}", str(value))
    assert finalize(config).model.bits == bits


def clip_config(**changes):
    config = default_config()
    values = {"model.frames": 8, "data.frames": 16, **changes}
    for key, value in values.items():
        set_value(config, key, str(value))
    return config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.frames": 16}, None),
        ({"model.frames": 32}, None),
        ({"model.frames": 1}, None),  # an image model takes the frames of a clip one by one
        ({"model.positions": "rotary"}, None),
        ({"model.positions": "sincos"}, None),
        ({}, "data.frames is 16, and model.positions=learned has embeddings for model.frames=8: "),
        (
            {"model.positions": "rotary", "discriminator.name": "stylegan3d"},
            "discriminator.name=stylegan3d takes clips of model.frames=8: lower data.frames or",
        ),
        (
            {
                "model.positions": "rotary",
                "discriminator.name": "stylegan3d",
                "loss.adversarial": 0,
            },
            None,
        ),
    ],
)
def test_clips_that_are_longer_than_the_model_takes(changes, words):
    config = clip_config(**changes)
    if words is None:
        finalize(config)
    else:
        assert words in message_of(finalize, config)


def test_arguments_pick_a_variant_and_set_keys():
    variants = ("small", "large")
    assert parse_argument("", variants, bits=36).to_dict() == {"variant": "small", "bits": 36}
    parsed = parse_argument("large,bits=18,tiny", variants, bits=36, tiny=False)
    assert parsed.to_dict() == {"variant": "large", "bits": 18, "tiny": True}
    message = message_of(parse_argument, "lage", variants)
    assert message == (
        "--config variant 'lage' does not exist: did you mean large? (there are: small, large)"
    )
    assert "--config argument bist" in message_of(
        lambda: parse_argument("bist=1", variants, bits=1)
    )
    assert "bits" in message_of(lambda: parse_argument("bits=x", variants, bits=1))


def test_config_files(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        textwrap.dedent("""
            from bsq_jax.config import default_config, parse_argument

            def get_config(argument):
                parsed = parse_argument(argument, ("a", "b"), bits=36)
                config = default_config()
                config.name = parsed.variant
                config.model.bits = parsed.bits
                return config
        """)
    )
    config = load_config_file(f"{path}:b,bits=18")
    assert (config.name, config.model.bits) == ("b", 18)
    assert load_config_file(str(path)).name == "a"
    assert message_of(load_config_file, str(tmp_path / "mime.py")) == (
        f"config file {tmp_path / 'mime.py'} does not exist: did you mean {path}?"
    )
    nothing_like_it = message_of(load_config_file, str(tmp_path / "other.py"))
    assert nothing_like_it == f"config file {tmp_path / 'other.py'} does not exist"
    saved = tmp_path / "config.json"
    saved.write_text("{}")
    assert message_of(load_config_file, str(saved)) == (
        f"config file {saved} is not a Python file: give one that ends in .py"
    )
    empty = tmp_path / "empty.py"
    empty.write_text("")
    assert "defines no get_config" in message_of(load_config_file, str(empty))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("config.train.stesp = 3", ("broken.py", "line 5", "stesp")),
        ("config.train.steps = 'many'", ("broken.py", "line 5", "steps")),
        ("config.model.image_size = 64", ("broken.py", "line 5", "image_size", "2 whole numbers")),
        ("config.train.steps = (", ("broken.py",)),
        ("import nothing_of_that_name", ("broken.py", "line 5", "nothing_of_that_name")),
        ("return 3", ("broken.py", "get_config")),
    ],
)
def test_a_mistake_in_a_config_file_is_one_line(tmp_path, line, words):
    path = tmp_path / "broken.py"
    path.write_text(
        "from bsq_jax.config import default_config\n\ndef get_config(argument):\n"
        f"    config = default_config()\n    {line}\n    return config\n"
    )
    message = message_of(load_config_file, str(path))
    for word in words:
        assert word in message


PUBLISHED = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


@pytest.mark.smoke
def test_published_configs_are_found_by_name_from_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert published_names() == PUBLISHED
    for name in PUBLISHED:
        assert find_config_file(name) == ROOT / "configs" / f"{name}.py"
    config = load_config_file("tokenizer:imagenet256,bits=18")
    path = ROOT / "configs" / "tokenizer.py"
    assert config.to_dict() == load_config_file(f"{path}:imagenet256,bits=18").to_dict()
    # A file of that name in the folder is meant only by its path.
    pathlib.Path("tokenizer.py").write_text("def get_config(argument): return 3")
    assert find_config_file("tokenizer") == path
    assert find_config_file("tokenizer.py") == pathlib.Path("tokenizer.py")


def test_published_configs_lie_inside_an_installed_package(tmp_path, monkeypatch):
    """As setup.py lays the files out; `.ci/run` installs them in truth."""
    package = tmp_path / "site-packages" / "bsq_jax"
    shutil.copytree(ROOT / "configs", package / "configs")
    (tmp_path / "site-packages" / "configs").mkdir()  # of somebody else
    monkeypatch.setattr(bsq_jax, "__file__", str(package / "__init__.py"))
    assert published_names() == PUBLISHED
    assert find_config_file("prior") == package / "configs" / "prior.py"


def test_the_wheel_gets_the_configs():
    """What setup.py tells setuptools: every package of the tree, and configs as one more."""
    setuptools = pytest.importorskip("setuptools")  # environments of Python 3.12 have none
    told = {}
    stand_in = types.SimpleNamespace(find_packages=setuptools.find_packages, setup=told.update)
    source = (ROOT / "setup.py").read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "setuptools", stand_in)
        patch.chdir(ROOT)
        exec(compile(source, "setup.py", "exec"), {})
    folders = {path.parent for path in (ROOT / "bsq_jax").rglob("*.py")}
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(told["packages"]) == packages | {"bsq_jax.configs"}
    assert told["package_dir"] == {"bsq_jax.configs": "configs"}


def test_the_wheel_gets_every_file_of_data():
    """What pyproject.toml tells setuptools, against all files that are no modules."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]
    packed = {
        path
        for package, patterns in told.items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
        if path.is_file()
    }
    kept = {
        path
        for path in (ROOT / "bsq_jax").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".typed")
    }
    assert packed == kept


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("quickstrat", ("'quickstrat' does not exist: did you mean quickstart?", "digits, ")),
        ("", ("'' does not exist", "there are: ")),
        ("configs/prior.py", ("config file configs/prior.py does not", "write --config prior")),
        ("prior.py:variant", ("config file prior.py does not exist", "write --config prior")),
        ("mine/mine.py", ("config file mine/mine.py does not exist",)),
    ],
)
def test_a_config_that_does_not_exist(tmp_path, monkeypatch, asked, words):
    monkeypatch.chdir(tmp_path)
    message = message_of(load_config_file, asked)
    for word in words:
        assert word in message
