"""Models of the hub, from a stand-in on loopback. Oracle: the export that was put there."""

import builtins
import os
import pathlib
import subprocess
import sys
import types

import chex
import numpy as np
import pytest
from hub_stand_in import TOKEN, connected, serving
from small_codec import make_codec, picture

from bsq_jax import Codec, Tokenizer, cli, main
from bsq_jax.core.errors import UserError
from bsq_jax.core.hub_address import HubAddress, hub_address
from bsq_jax.training.hub import hub_errors
from bsq_jax.training.recipes import same_data
from bsq_jax.training.saved_models import load_saved_model, read_saved_config, run_name
from bsq_jax.training.workdir import read_config

TINY = str(pathlib.Path(__file__).parent / "tiny.py")
huggingface_hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in, an empty cache, no token."""
    with connected(monkeypatch, tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    made, folder = make_codec(min_bits=3), tmp_path_factory.mktemp("codec")
    made.save(folder)
    return made, folder


FILES = [
    *("config.json", "raw.safetensors"),
    *("tokenizer/config.json", "tokenizer/raw.safetensors"),
]


def refused(address, load=Tokenizer.load):
    """The line with which an address is refused."""
    with pytest.raises(UserError) as raised:
        load(address)
    assert "\n" not in str(raised.value)
    assert address in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("hf://o/n", ("o/n", "", "")),
        (pathlib.Path("hf://o/n"), ("o/n", "", "")),
        ("hf://o-1/n.x_2@v1.0", ("o-1/n.x_2", "v1.0", "")),
        ("hf://o/n@refs%2Fpr%2F1/tokenizer/", ("o/n", "refs/pr/1", "tokenizer")),
        ("hf://o/n@a%25b%40c", ("o/n", "a%b@c", "")),
        ("hf://o/n/a/b", ("o/n", "", "a/b")),
        ("hf://o/" + "n" * 96, ("o/" + "n" * 96, "", "")),
        ("runs/hf", None),
        ("hf", None),
        ("hf:model", None),
    ],
)
def test_addresses(text, wanted):
    found = hub_address(text)
    assert found == wanted
    if wanted:
        assert hub_address(str(found)) == wanted


@pytest.mark.parametrize(
    "text",
    [
        *("hf://", "hf://o", "hf://o/", "hf://o/n@", "hf://o/../x", "hf://o/n/../x", "hf://o/-n"),
        *(
            "hf://o/n.git",
            "hf://o/" + "n" * 97,
            "hf://o/n/a\\..\\b",
            "hf://o/n/C:",
            "hf://o/n/a\tb",
        ),
        *(
            "hf://o/n@..",
            "hf://o/n@..%2Fx",
            "hf://o/n@a%2F..%2Fb",
            "hf://o/n@a%5Cb",
            "hf://o/n@a%0Ab",
        ),
    ],
)
def test_what_is_no_address_is_refused(text):
    assert "write hf://OWNER/NAME" in refused(text, hub_address)


def test_names():
    assert HubAddress("o/n", "v1").name == "n"
    assert run_name("hf://o/n@v1") == "n"
    assert run_name("hf://o/n/tokenizer") == "tokenizer"


def test_a_codec_is_what_was_put_there(hub, codec):
    """Only the files of the export come, and once: not the code and the pickles beside them."""
    made, folder = codec
    files = {name: (folder / name).read_bytes() for name in FILES}
    others = {"modeling.py": b"raise SystemExit", "model.pt": b"cos", "ema.safetensors": b"x"}
    hub.put("maker/codec", {**files, **others})
    loaded = Codec.load("hf://maker/codec")
    assert loaded.name == "codec"
    frames = picture(21, 35)
    data = loaded.encode(frames)
    assert data == made.encode(frames)
    np.testing.assert_array_equal(loaded.decode(data).frames, made.decode(data).frames)
    assert sorted(hub.fetched()) == sorted(FILES)
    Codec.load("hf://maker/codec")
    assert len(hub.fetched()) == len(FILES)
    tokenizer = Tokenizer.load("hf://maker/codec/tokenizer")
    np.testing.assert_array_equal(tokenizer.encode(frames), made.tokenizer.encode(frames))
    assert read_saved_config("hf://maker/codec").task == "prior"
    assert set(load_saved_model("hf://maker/codec").weights) == {"raw"}


def test_revisions(hub, codec, tmp_path):
    first = hub.put_folder("maker/codec", codec[1] / "tokenizer")
    other = make_codec(prior=False, seed=5)
    other.save(tmp_path / "other")
    second = hub.put_folder("maker/codec", tmp_path / "other")
    before, after = codec[0].tokenizer.params, other.tokenizer.params
    for revision, wanted in ((first, before), (second, after), ("main", after)):
        loaded = Tokenizer.load(f"hf://maker/codec@{revision}").params
        chex.assert_trees_all_equal(loaded, wanted)
    assert "has no such revision" in refused("hf://maker/codec@v2")


def test_a_process_stays_with_a_commit(hub, codec, tmp_path):
    """A config and its weights are of one commit, and the model of a run is one throughout."""
    hub.put_folder("maker/codec", codec[1] / "tokenizer")
    config = read_saved_config("hf://maker/codec")
    make_codec(prior=False, seed=5, width=8).save(tmp_path / "other")
    second = hub.put_folder("maker/codec", tmp_path / "other")
    saved = load_saved_model("hf://maker/codec")
    assert saved.config.model.width == config.model.width == 16
    chex.assert_trees_all_equal(saved.weights["raw"], codec[0].tokenizer.params)
    assert load_saved_model(f"hf://maker/codec@{second}").config.model.width == 8


def gather_with_another(strings):
    """In place of the gathering over two processes, of which the other has read another model."""
    of_data = "records" in strings[0]
    return sorted(strings) if of_data else [*strings, "0123 step 7 of other, 0123"]


@pytest.mark.parametrize("flag", ["train.init", "prior.tokenizer"])
def test_training_takes_an_address(hub, codec, tmp_path, monkeypatch, capsys, flag):
    hub.put_folder("maker/codec", codec[1])
    address = "hf://maker/codec/tokenizer"
    words = ["--config", f"{TINY}:prior={address}"]
    if flag == "train.init":
        words = ["--config", TINY, "--config.model.min_bits=3", f"--config.train.init={address}"]
    words += ["--workdir", str(tmp_path / "run"), "--config.train.steps=1"]
    with monkeypatch.context() as patch:
        patch.setattr(same_data, "jax", types.SimpleNamespace(process_count=lambda: 2))
        patch.setattr(same_data, "gather_strings", gather_with_another)
        with pytest.raises(UserError, match="the processes read different models") as raised:
            main.run(words)
    assert str(raised.value).startswith(f"{address}: ")
    assert "step 7 of other, 0123" in str(raised.value)
    assert str(raised.value).endswith("name a commit, hf://maker/codec@COMMIT/tokenizer")
    assert main.run(words) == 0
    config = read_config(tmp_path / "run")
    if flag == "train.init":
        assert f"from {address}: parameters (raw)" in capsys.readouterr().err
        assert config.train.init == address
    else:
        kept = load_saved_model(tmp_path / "run/tokenizer")
        chex.assert_trees_all_equal(kept.weights["raw"], codec[0].tokenizer.params)
        assert config.prior.tokenizer == address


def test_commands_take_an_address(hub, codec, tmp_path, capsys):
    hub.put_folder("maker/codec", codec[1])
    assert cli.main(["export", "hf://maker/codec", str(tmp_path / "here")]) == 0
    assert (tmp_path / "here/raw.safetensors").read_bytes() == (
        codec[1] / "raw.safetensors"
    ).read_bytes()
    assert cli.main(["evaluate", "--workdir", "hf://maker/codec"]) == 2
    assert "bsq-jax export hf://maker/codec FOLDER" in capsys.readouterr().err


def test_what_is_not_there_or_may_not_be_read(hub, codec):
    assert "does not exist, or you may not read it" in refused("hf://maker/codec")
    hub.put_folder("maker/codec", codec[1])
    hub.repositories["maker/codec"]["private"] = True
    assert "HF_TOKEN" in refused("hf://maker/codec", Codec.load)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        Codec.load("hf://maker/codec")
    path = "/api/models/maker/other/revision/main"
    for status, said in ((503, "answers 503: try again"), (403, "does not allow")):
        hub.answers[path] = status
        assert said in refused("hf://maker/other")


def test_foreign_and_incomplete_repositories(hub, codec):
    hub.put("maker/bert", {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"x"})
    assert "does not describe a bsq_jax tokenizer" in refused("hf://maker/bert")
    assert hub.fetched() == ["config.json"]
    hub.put("maker/empty", {"README.md": b"x"})
    assert "there is no config.json in it" in refused("hf://maker/empty")
    files = {name: (codec[1] / name).read_bytes() for name in FILES}
    for lost in FILES[1:]:
        hub.put("maker/codec", {name: data for name, data in files.items() if name != lost})
        assert f"there is no {lost} in it" in refused("hf://maker/codec", Codec.load)


def test_a_damaged_file_is_named_and_can_be_fetched_again(hub, codec, tmp_path):
    files = {name: (codec[1] / name).read_bytes() for name in FILES}
    flipped = bytearray(files["raw.safetensors"])
    flipped[-1] ^= 1
    hub.put("maker/codec", {**files, "raw.safetensors": bytes(flipped)})
    said = refused("hf://maker/codec", Codec.load)
    assert "raw.safetensors is damaged or not the one" in said
    (file,) = (word for word in said.split() if word.startswith(str(tmp_path)))
    os.unlink(file)
    hub.put("maker/codec", files)
    Codec.load("hf://maker/codec")


def test_after_an_interrupted_download_the_model_can_be_fetched(hub, codec):
    sha = hub.put_folder("maker/codec", codec[1])
    hub.cut.add("raw.safetensors")
    assert "the transfer failed" in refused(f"hf://maker/codec@{sha}", Codec.load)
    hub.cut.clear()
    Codec.load("hf://maker/codec")


def test_without_a_network_the_cache_is_taken_and_named(hub, codec, monkeypatch, caplog):
    address = "hf://maker/codec"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(address, Codec.load)
    assert hub.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    sha = hub.put_folder("maker/codec", codec[1])
    Codec.load(address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("bsq_jax.training.hub._taken", {})  # as in a new process
    hub.requests.clear()
    Codec.load(address)
    assert hub.requests == []
    assert caplog.text == ""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    Codec.load(address)
    assert f"the hub cannot be reached: commit {sha} is taken" in caplog.text
    assert "check the network" in refused("hf://maker/other")


def test_without_the_package_a_line_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *more):
        if name.partition(".")[0] == "huggingface_hub":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install 'huggingface_hub>=1'" in refused("hf://maker/codec")


def test_an_old_package_is_refused(monkeypatch):
    monkeypatch.setattr("huggingface_hub.__version__", "0.36.2")
    said = refused("hf://maker/codec")
    assert "needs huggingface_hub 1 or newer (0.36.2 is installed)" in said
    assert said.endswith("pip install -U 'huggingface_hub>=1'")


def test_names_that_the_package_refuses_are_a_line():
    with pytest.raises(UserError, match="write OWNER/NAME") as raised, hub_errors("o/n.git"):
        huggingface_hub.HfApi().model_info("o/n.git")
    assert "\n" not in str(raised.value)


def test_the_variables_of_the_hub_count(codec, tmp_path):
    """In a process of its own, as they are read when the package is imported."""
    with serving() as (made, address):
        made.put_folder("maker/codec", codec[1])
        words = ["export", "hf://maker/codec", str(tmp_path / "here")]
        environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-m", "bsq_jax", *words]
        for more, status in (({"HF_HUB_OFFLINE": "1"}, 2), ({}, 0)):
            found = subprocess.run(
                command, env=environment | more, capture_output=True, text=True, check=False
            )
            assert found.returncode == status, found.stderr
        assert (tmp_path / "home/hub/models--maker--codec").is_dir()
