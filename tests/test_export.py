"""Exports. Oracle: the arrays that were saved, and safetensors' own reader."""

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file

from bsq_jax.config import finalize, load_config_file, to_json
from bsq_jax.core.errors import UserError
from bsq_jax.core.files import write_atomic
from bsq_jax.training.export import SETS, is_export, load_export, save_export

TINY = str(pathlib.Path(__file__).parent / "tiny.py")


@pytest.fixture(scope="module")
def config():
    return finalize(load_config_file(TINY))


def weights_of(seed):
    rng = np.random.default_rng(seed)
    return {"a": {"kernel": rng.normal(size=(3, 4)).astype(np.float32)}, "b": np.float32([seed])}


def test_views_are_written_as_what_they_show(config, tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    views = {"transposed": array.T, "strided": array[:, ::2], "scalar": np.float32(3)}
    save_export(tmp_path, config, {"raw": views}, origin={})
    assert_same(load_export(tmp_path)[1]["raw"], views)


def all_sets(seed=0):
    return {name: weights_of(seed + number) for number, name in enumerate(SETS)}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, dict):
            assert_same(value, other[key])
        else:
            np.testing.assert_array_equal(value, other[key])


@pytest.mark.parametrize("names", [("raw",), ("ema",), ("raw", "ema"), SETS])
def test_what_is_written_is_read(config, tmp_path, names):
    weights = {name: all_sets()[name] for name in names}
    save_export(tmp_path / "deep" / "er", config, weights, origin={"step": 7})
    folder = tmp_path / "deep" / "er"
    files = {"config.json", *(f"{name}.safetensors" for name in names)}
    assert {path.name for path in folder.iterdir()} == files
    assert is_export(folder)
    read_config, read, origin = load_export(folder)
    assert to_json(read_config) == to_json(config)
    assert origin == {"step": 7}
    assert list(read) == list(names)
    assert_same(read, weights)
    plain = load_file(folder / f"{names[0]}.safetensors")
    np.testing.assert_array_equal(plain["a/kernel"], weights[names[0]]["a"]["kernel"])
    described = json.loads((folder / "config.json").read_text())
    assert {entry["num_params"] for entry in described["weights"].values()} == {13}


def test_only_what_is_asked_for_is_read(config, tmp_path):
    save_export(tmp_path, config, all_sets(), origin={})
    (tmp_path / "raw.safetensors").write_bytes(b"damaged")
    _, read, _ = load_export(tmp_path, ("ema",))
    assert list(read) == ["ema"]
    with pytest.raises(UserError, match=r"raw\.safetensors is damaged or not the one"):
        load_export(tmp_path)
    (tmp_path / "raw.safetensors").unlink()
    with pytest.raises(UserError, match=r"raw\.safetensors: No such file"):
        load_export(tmp_path)


def test_a_new_export_replaces_the_old_one(config, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"of version 1")
    assert is_export(tmp_path)
    save_export(tmp_path, config, all_sets(), origin={})
    save_export(tmp_path, config, {"ema": weights_of(9)}, origin={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "ema.safetensors"]
    assert_same(load_export(tmp_path)[1], {"ema": weights_of(9)})


def test_an_interrupted_replacement_is_noticed(config, tmp_path, monkeypatch):
    save_export(tmp_path, config, all_sets(), origin={})
    write = write_atomic

    def stop_before_config(path, data):
        if path.name == "config.json":
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr("bsq_jax.training.export.write_atomic", stop_before_config)
    with pytest.raises(KeyboardInterrupt):
        save_export(tmp_path, config, all_sets(5), origin={})
    with pytest.raises(UserError, match=r"not the one that config\.json belongs to"):
        load_export(tmp_path)
