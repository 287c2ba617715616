"""Identities and fingerprints. Oracle: files of version 0.1, settings written out by hand."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from conftest import GOLDEN
from PIL import Image

from bsq_jax import Codec, Tokenizer
from bsq_jax.config import (
    default_config,
    finalize,
    fingerprint_settings,
    from_json,
    model_identity,
    run_identity,
    set_value,
    to_json,
)
from bsq_jax.config.declaration import POSITIVE, Setting, one_of
from bsq_jax.config.identity import VERSION_0_1, meant_when_absent
from bsq_jax.config.settings import MODEL, PRIOR, SECTIONS, TOP, declared
from bsq_jax.config.values import differing_keys, flatten
from bsq_jax.core.sharding import make_mesh
from bsq_jax.data.tokens import read_description
from bsq_jax.training.export import identity
from bsq_jax.training.recipes import make_recipe
from bsq_jax.training.saved_models import load_saved_model, read_saved_config

OLD = GOLDEN / "files_0_1"
TOKENIZER = {
    "model.image_size": [16, 16],
    "model.bits": 6,
    "model.width": 16,
    "model.layers": 1,
    "model.heads": 2,
    "model.head_hidden": 0,
}
PRIOR_SETTINGS = {
    "prior.width": 16,
    "prior.layers": 1,
    "prior.heads": 2,
    "prior.hidden": 8,
    "prior.window": 2,
    "prior.order": "raster",
}
IDENTITY = sorted(key for key, setting in declared().items() if setting.identity)


def change_default(monkeypatch, key):
    """Declares another default for a setting, as a later version may."""
    section, _, leaf = key.rpartition(".")
    settings = SECTIONS[section] if section else TOP
    setting = settings[leaf]
    allowed, default = setting.allowed, setting.default
    if allowed.choices:
        default = "another"
        allowed = one_of(default, *allowed.choices)
    else:
        step = {
            bool: lambda on: not on,
            tuple: lambda numbers: tuple(n + 1 for n in numbers),
            type(None): lambda _: True,  # of one that may be None, and is a boolean else
        }
        default = step.get(type(default), lambda number: number + 1)(default)
    changed = dataclasses.replace(setting, default=default, allowed=allowed)
    monkeypatch.setitem(settings, leaf, changed)


def test_version_0_1_is_what_it_was():
    """Of the literal table: it must never change, see there."""
    text = json.dumps(VERSION_0_1, sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "27c1e56d23f10e08"


def test_every_setting_of_identity_says_what_its_absence_meant():
    for key in IDENTITY:
        assert (key in VERSION_0_1) != (declared()[key].absent is not None), key


@pytest.mark.parametrize("key", IDENTITY)
def test_another_default_leaves_fingerprints_and_old_configs_alone(key, monkeypatch):
    configs = {name: OLD / name / "config.json" for name in ("tokenizer", "prior_export")}
    saved = {name: json.loads(path.read_text()) for name, path in configs.items()}
    saved["prior_export"] = saved["prior_export"]["config"]
    meant = {name: to_json(from_json(config, "x")) for name, config in saved.items()}
    change_default(monkeypatch, key)
    assert to_json(default_config()) != to_json(from_json(saved["tokenizer"], "x"))
    assert fingerprint_settings(read_saved_config(OLD / "tokenizer")) == TOKENIZER
    assert fingerprint_settings(read_saved_config(OLD / "prior_export")) == {
        **TOKENIZER,
        **PRIOR_SETTINGS,
        "task": "prior",
    }
    for name, config in saved.items():
        assert to_json(from_json(config, "x")) == meant[name]
        # Without the key it is what every file without it meant.
        section, _, leaf = key.rpartition(".")
        (config[section] if section else config).pop(leaf, None)
        opened = dict(flatten(to_json(from_json(config, "x"))))
        assert opened == {
            **dict(flatten(meant[name])),
            key: json.loads(json.dumps(meant_when_absent()[key])),
        }


def test_files_open_after_all_defaults_have_changed(monkeypatch, tmp_path):
    for key in IDENTITY:
        change_default(monkeypatch, key)
    codec = Codec.load(OLD / "prior_export")
    with Image.open(OLD / "decoded.png") as image:
        wanted = np.asarray(image.convert("RGB"))
    decoded = codec.decode((OLD / "picture.bsq").read_bytes())
    np.testing.assert_array_equal(decoded.frames[0], wanted)
    tokenizer = Tokenizer.load(OLD / "tokenizer")
    tokens = read_description(OLD / "tokens")
    assert identity(tokenizer.config, tokenizer.params).hex() == tokens.model
    config = load_saved_model(OLD / "prior_export").config
    config.unlock()
    config.prior.tokenizer = str(OLD / "tokenizer")
    config.data.source, config.data.val_source = f"tokens:{OLD / 'tokens'}", ""
    make_recipe(finalize(config), tmp_path, make_mesh()).check()  # refuses tokens of another model


def test_a_setting_that_is_added_later(monkeypatch):
    config = default_config()
    before = fingerprint_settings(config)
    saved = to_json(config)
    added = Setting(5, POSITIVE, identity=True, absent=1)
    monkeypatch.setitem(MODEL, "added", added)
    monkeypatch.setitem(PRIOR, "added", added)
    old = from_json(saved, "x")
    assert old.model.added == 1
    assert fingerprint_settings(old) == before
    assert model_identity(old)["model"]["added"] == 1
    new = default_config()
    assert fingerprint_settings(new) == {**before, "model.added": 5}
    for settings, value in ((old, {}), (new, {"prior.added": 5, "model.added": 5})):
        settings.task = "prior"
        found = fingerprint_settings(settings)
        assert {key: v for key, v in found.items() if "added" in key} == value


def test_fingerprints_tell_models_apart(monkeypatch):
    """The hash itself: what a codec wrote yesterday carries it. Oracle: bytes of version 0.1."""
    config = finalize(default_config())
    params = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    today = identity(config, params)
    assert today.hex()[:16] == "9c6243e896a0ce73"
    other = config.copy_and_resolve_references()
    other.model.window = 3
    moved = {"a": {"kernel": params["a"]["kernel"] + 1}}
    assert len({today, identity(other, params), identity(config, moved)}) == 3


def test_differences_and_identity():
    one, other = default_config(), default_config()
    set_value(other, "model.bits", "18")
    set_value(other, "train.steps", "5")
    set_value(other, "model.remat", "full")
    assert differing_keys(to_json(one), to_json(other)) == [
        "model.bits: 36 -> 18",
        "model.remat: none -> full",
        "train.steps: 1000000 -> 5",
    ]
    # Neither the length of training nor recomputation makes another model.
    assert differing_keys(model_identity(one), model_identity(other)) == ["model.bits: 36 -> 18"]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("stylegan", {"channel_base", "channel_max", "pooling"}),
        ("stylegan3d", {"width", "pooling"}),
        ("patchgan", {"width", "layers"}),
        (None, set()),  # without a second player
    ],
)
def test_a_run_is_bound_to_what_its_discriminators_parameters_depend_on(name, keys):
    one = default_config()
    one.discriminator.name = name or "patchgan"
    one.loss.adversarial = 0.1 if name else 0.0
    for key, value in one.discriminator.items():
        if key == "name":
            continue
        other = from_json(to_json(one), "x")
        other.discriminator[key] = {str: "global", type(None): 1e-3}.get(type(value)) or value + 1
        differ = differing_keys(run_identity(one), run_identity(other))
        assert [line.partition(":")[0] for line in differ] == [f"discriminator.{key}"] * (
            key in keys
        ), key


def test_a_run_is_bound_to_its_optimizer_whose_state_it_has():
    """Of what was written before there was a choice, that is AdamW."""
    saved = to_json(default_config())
    del saved["optimizer"]["name"]
    old, other = from_json(saved, "x"), default_config()
    assert run_identity(old) == run_identity(default_config())
    other.optimizer.name = "muon"
    (differ,) = differing_keys(run_identity(old), run_identity(other))
    assert differ.startswith("optimizer.name")
    assert model_identity(old) == model_identity(other)


def test_a_config_of_before_video_was_the_published_image_model():
    saved = to_json(default_config())
    for key in ("positions", "causality", "window"):
        del saved["model"][key]
    for key in ("frames", "stride", "min_frames", "image_share", "image_source", "eval_clips"):
        del saved["data"][key]
    del saved["eval"]["videos"]
    config = from_json(saved, "x")
    assert to_json(config) == to_json(default_config())
    assert run_identity(config) == run_identity(default_config())
    assert (
        model_identity(config)["model"].items()
        >= {**{"positions": "learned", "causality": "block_causal", "window": 0}}.items()
    )


def test_attention_that_is_no_longer_offered_is_read_as_what_computes_the_same():
    saved = to_json(default_config())
    saved["model"]["attention"] = "by_frame"
    assert from_json(saved, "here").model.attention == "blocked"
