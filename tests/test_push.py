"""Publishing on a stand-in of the hub, and model cards.

Oracles: what was trained is what is loaded again; the reader of cards of `huggingface_hub`.
"""

import json
import shutil

import numpy as np
import pytest
from hub_stand_in import TOKEN, connected
from run_files import save_steps
from small_codec import make_codec, picture

from bsq_jax import Codec, Tokenizer, cli
from bsq_jax.config import finalize
from bsq_jax.core.errors import UserError
from bsq_jax.training.export import describe_export, load_export, save_export
from bsq_jax.training.hub_upload import prepare
from bsq_jax.training.model_card import make_card, with_license
from bsq_jax.training.public_config import public_addresses, public_source, without_paths

hub_package = pytest.importorskip("huggingface_hub")
# Its client of HTTP warns of how it is called.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in, an empty cache, no token."""
    with connected(monkeypatch, tmp_path) as made:
        yield made


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    """A codec whose config names folders of its maker, exported."""
    made, folder = make_codec(min_bits=3), tmp_path_factory.mktemp("codec")
    made.save(folder)
    for part in (folder, folder / "tokenizer"):
        config, weights, _ = load_export(part)
        config.data.source = "folder:/home/jane/secret/pictures"
        config.train.init = "/scratch/jane/before"
        config.log.wandb = "clients/acme"
        origin = {"step": 7, "name": "small", "weights": "raw"}
        save_export(part, finalize(config), weights, origin=origin)
    return Codec.load(folder), folder


def pushed(*words):
    return cli.main(["push", *map(str, words)])


def test_what_is_pushed_is_loaded_again(codec, hub, token, capsys):
    made, folder = codec
    assert pushed(folder, "maker/codec", "--license", "mit") == 0
    said = capsys.readouterr().err
    assert "to hf://maker/codec" in said
    size = (folder / "raw.safetensors").stat().st_size
    assert f"raw.safetensors ({size:,d} bytes)" in said
    assert "not published: data.source: folder:/home/jane/secret/pictures -> folder:pic" in said
    loaded, frames = Codec.load("hf://maker/codec"), picture(21, 35)
    data = loaded.encode(frames)
    assert data == made.encode(frames)  # the fingerprint of the model included
    np.testing.assert_array_equal(loaded.decode(data).frames, made.decode(data).frames)
    files = hub.files("maker/codec")
    card = hub_package.ModelCard(files["README.md"].decode())
    assert card.data.license == "mit"
    assert 'Codec.load("hf://maker/codec")' in card.text
    published = b"".join(files[name] for name in files if not name.endswith("safetensors"))
    for private in (b"jane", b"secret", b"scratch", b"acme"):
        assert private not in published
    assert set(files) == {
        *(".gitattributes", "README.md", "config.json", "raw.safetensors"),
        *("tokenizer/config.json", "tokenizer/raw.safetensors"),
    }


def test_a_branch_and_a_private_repository(codec, hub, token, capsys):
    folder = codec[1] / "tokenizer"
    assert pushed(folder, "maker/new", "--private", "--revision", "v1") == 0
    assert hub.repositories["maker/new"]["private"]
    assert "config.json" not in hub.files("maker/new")
    assert Tokenizer.load("hf://maker/new@v1").shape.bits == 6
    hub.repositories["maker/new"]["private"] = False
    commits = len(hub.repositories["maker/new"]["branches"]["main"])
    capsys.readouterr()
    assert pushed(folder, "maker/new", "--private") == 2
    assert "exists and is public" in capsys.readouterr().err
    assert len(hub.repositories["maker/new"]["branches"]["main"]) == commits


def test_a_workdir_is_exported_first(hub, token, tmp_path, capsys):
    save_steps(tmp_path / "run", [2, 4], last=4)
    report = {"step": 4, "results": {"ema": {"psnr": 21.5, "bit_means": [0.5], "tokens": 256}}}
    report["measured"] = {"source": "folder:/home/jane/val", "count": 9, "split": "val"}
    (tmp_path / "run/evaluation.json").write_text(json.dumps(report))
    assert pushed(tmp_path / "run", "maker/run") == 0
    assert "is a workdir: a tokenizer" in capsys.readouterr().err
    card = hub_package.ModelCard(hub.files("maker/run")["README.md"].decode())
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("psnr", 21.5)
    assert "On 9 examples of `folder:val` (val):" in card.text
    wanted = Tokenizer.load(tmp_path / "run").encode(picture(16, 16)[0])
    np.testing.assert_array_equal(
        Tokenizer.load("hf://maker/run").encode(picture(16, 16)[0]), wanted
    )


def test_nothing_is_sent_without_a_login_or_in_a_dry_run(codec, hub, monkeypatch, capsys):
    assert pushed(codec[1], "maker/codec") == 2
    error = capsys.readouterr().err
    assert "hf auth login" in error
    assert error.count("\n") == 1
    assert pushed(codec[1], "maker/codec", "--dry-run") == 0
    assert "nothing was sent" in capsys.readouterr().err
    assert hub.requests == []
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert pushed(codec[1], "maker/codec") == 2
    assert "the hub does not know your token" in capsys.readouterr().err
    assert hub.repositories == {}


def test_refusals_are_a_line(codec, hub, token, tmp_path, capsys):
    for words, said in (
        ((codec[1], "codec"), "write OWNER/NAME"),
        ((codec[1], "codec", "--dry-run"), "write OWNER/NAME"),
        ((codec[1], "maker/codec.git"), "does not end in .git"),
        ((tmp_path, "maker/codec", "--license", "Apache 2", "--dry-run"), "such as apache-2.0"),
        ((codec[1], "other/codec"), "does not allow"),
        ((codec[1], "maker/codec", "--license", "Apache 2"), "such as apache-2.0"),
        ((tmp_path, "maker/codec"), "is not the workdir of a run"),
    ):
        assert pushed(*words) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ")
        assert said in error
    assert hub.repositories == {}


def test_a_failed_upload_publishes_nothing(codec, hub, token, capsys):
    hub.answers["/maker/codec.git/info/lfs/objects/batch"] = 400
    assert pushed(codec[1], "maker/codec") == 2
    assert "the hub answers 400" in capsys.readouterr().err
    assert set(hub.files("maker/codec")) == {".gitattributes"}


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("folder:/home/jane/pictures/", "folder:pictures"),
        ("folder:../../acme/pictures", "folder:pictures"),
        ("webdataset:/data/a-{0..3}.tar|/data/b.tar", "webdataset:a-{0..3}.tar|b.tar"),
        ("tfds:mnist", "tfds:mnist"),
        ("photos", "photos"),
        ("mine:Source(path=/home/jane/x.npz, crop=3)", "mine:Source(path=x.npz, crop=3)"),
        ("mine:Source(path=~/x/y)", "mine:Source(path=y)"),
        ("mine:Source(path=/home/my own name/x y, crop=3)", "mine:Source(path=x y, crop=3)"),
        ("mine:Source(from /a/b to /c/d)", "mine:Source(from b to d)"),
        ("file:///home/me/x", "x"),
        ("//server/share/x", "x"),
        ("C:\\Users\\me\\x", "x"),
        ("mine:Source(path=C:/Users/me/x)", "mine:Source(path=x)"),
        ("\\\\server\\share\\x", "x"),
        ("folder:C:\\Users\\me\\pictures\\", "folder:pictures"),
        ("folder:/home/me\\all/pictures", "folder:pictures"),
        ("mine:Source(from=folder://server/share/x)", "mine:Source(from=folder:x)"),
        ("mine:Source(https://example.org/a/b, 1/2)", "mine:Source(https://example.org/a/b, 1/2)"),
    ],
)
def test_of_a_source_the_last_names_are_published(text, public):
    assert public_source(text) == public


def test_addresses_stay_and_other_paths_go():
    config = {"train": {"init": "hf://o/n@v1"}, "prior": {"tokenizer": "runs/a"}}
    before = {"config": config, "origin": {"name": "a"}, "weights": {"raw": {"sha256": "0"}}}
    after, changes = without_paths(before)
    assert after["config"] == {"train": {"init": "hf://o/n@v1"}, "prior": {"tokenizer": "a"}}
    assert after["weights"] == before["weights"]
    assert changes == ["prior.tokenizer: runs/a -> a"]
    assert public_addresses(after) == ["train.init: hf://o/n@v1"]


def test_addresses_that_stay_are_listed(codec, hub, tmp_path, capsys):
    config, weights, _ = load_export(codec[1] / "tokenizer")
    config.train.init = "hf://acme/before"
    save_export(tmp_path / "export", finalize(config), weights, origin={})
    assert pushed(tmp_path / "export", "maker/codec", "--dry-run") == 0
    said = capsys.readouterr().err
    assert "published, an address of another model: train.init: hf://acme/before\n" in said


def test_the_card_says_what_the_model_is(codec):
    card = make_card(codec[1])
    data = hub_package.ModelCard(card).data
    assert data.to_dict()["library_name"] == "bsq_jax"
    assert {"bsq", "compression", "quantizer-bsq", "image"} <= set(data.tags)
    assert data.license is None
    described = describe_export(codec[1])
    assert f"{described['weights']['raw']['num_params']:,d} in raw.safetensors" in card
    assert "| bits a token | 6 (decodes from its first 3, 4, 5 too) |" in card
    assert "| trained on | folder:pictures, 7 steps of 8 |" in card
    assert "No evaluation of this step" in card
    assert "model.bits = 6\n" in card
    assert "for bsq_jax, a JAX implementation of [binary spherical quantization](https" in card
    assert "pip install 'huggingface_hub>=1'" in card


def test_a_license_replaces_another_and_words_stay():
    card = "---\nlibrary_name: bsq_jax\nlicense: mit\n---\n\nlicense: as above\n---\n"
    changed = with_license(card, "apache-2.0")
    assert hub_package.ModelCard(changed).data.license == "apache-2.0"
    assert changed.endswith("---\n\nlicense: as above\n---\n")
    assert with_license(card, None) == card
    assert with_license("words", "mit") == "---\nlicense: mit\n---\n\nwords"
    with pytest.raises(UserError):
        with_license(card, "mit\nx: y")
    with pytest.raises(UserError, match="no second line ---"):
        with_license("---\nlicense: mit\nwords", "mit")


def test_the_card_says_what_was_measured(codec, tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(codec[1], folder)
    for part, batch, sizes in ((folder, 16, []), (folder / "tokenizer", 8, ["16x16", "16x32"])):
        config, weights, origin = load_export(part)
        config.train.batch_size, config.data.sizes = batch, tuple(sizes)
        save_export(part, finalize(config), weights, origin=origin)
    report = {
        "step": 7,
        "measured": {"source": "folder:/home/jane/secret/pictures", "split": "val"},
        "results": {"raw": {"frames": 1, "saved": 0.123456789, "psnr": 25.0123456789}},
        "notes": ["too few to say anything", "FID: no weights (--config.eval.inception=FILE)"],
    }
    card = make_card(folder, report)
    assert "On 1 frame of `folder:pictures` (val):\n" in card
    assert "| `saved` | 0.123457 |" in card
    assert "`frames`" not in card
    assert "\n- too few to say anything\n" in card
    assert "--config" not in card
    assert "| trained on | folder:pictures, 7 steps of 16 |" in card
    sized = "7 steps of as many pixels as 8 crops of 16x16"
    assert f"| tokenizer trained on | folder:pictures, {sized} |" in card
    assert hub_package.ModelCard(card).data.eval_results[0].metric_value == 25.0123


def test_a_card_is_read_as_utf8(codec, tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(codec[1], folder)
    (folder / "README.md").write_bytes("Größe".encode())
    assert prepare(folder, "o/n").files["README.md"] == "Größe".encode()
    (folder / "README.md").write_bytes("Größe".encode("latin-1"))
    with pytest.raises(UserError, match=r"README.md is no text in UTF-8"):
        prepare(folder, "o/n")
