"""Generating from Python and from the command line. Oracles: the tokens themselves, messages."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from bsq_jax import Codec, Generator, Tokenizer, cli, main
from bsq_jax.core.errors import UserError
from bsq_jax.core.trees import leaves
from bsq_jax.data.decoding.record_frames import open_record
from bsq_jax.data.records import Record
from bsq_jax.media.pictures import save_png
from bsq_jax.training.export import load_export, save_export
from bsq_jax.training.saved_models import load_saved_model

TINY = str(pathlib.Path(__file__).parent / "tiny.py")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("generate") / "tokenizer"
    flags = ["--config.train.steps=2", "--config.data.source=digits"]
    assert main.run(["--config", TINY, "--workdir", str(workdir), *flags]) == 0
    return workdir


def train(tokenizer, folder, *flags):
    words = [
        "--config",
        f"{TINY}:masked_lm={tokenizer}",
        "--workdir",
        str(folder / "lm"),
        "--config.train.steps=2",
    ]
    assert main.run([*words, *flags]) == 0
    return folder / "lm"


@pytest.fixture(scope="module")
def pictures(tokenizer, tmp_path_factory):
    """A model of digits."""
    return train(tokenizer, tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def clips(tokenizer, tmp_path_factory):
    """A model of clips of two frames, on the tokens of a tokenizer of pictures, without classes."""
    folder = tmp_path_factory.mktemp("clips")
    flags = ("data.source=motion", "masked_lm.classes=0", "masked_lm.frames=2")
    return train(tokenizer, folder, *(f"--config.{flag}" for flag in flags))


@pytest.mark.smoke
def test_samples_from_python(pictures, tmp_path):
    generator = Generator.load(pictures)
    found = generator.sample(12, classes=[3, 5], seed=4)
    assert (found.shape, found.dtype) == ((12, 16, 16, 3), np.uint8)
    np.testing.assert_array_equal(generator.sample(5, classes=[3, 5], seed=4), found[:5])
    assert (generator.sample(12, classes=[3, 5], seed=5) != found).any()
    assert generator.labels(12, None).tolist() == [*range(10), 0, 1]
    assert generator.labels(3, -1).tolist() == [-1, -1, -1]
    # An export generates the same, without the workdir.
    generator.save(tmp_path / "export")
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "export", moved)
    np.testing.assert_array_equal(Generator.load(moved).sample(12, classes=[3, 5], seed=4), found)


@pytest.mark.smoke
def test_exports_say_which_weights_they_hold(pictures, tmp_path):
    kept = load_saved_model(pictures)
    for name in ("raw", "ema"):
        generator = Generator.load(pictures, weights=name)
        wanted = {"name": pictures.name, "weights": name, "step": 2}
        assert generator.origin == wanted
        generator.save(tmp_path / name)
        _, weights, origin = load_export(tmp_path / name)
        assert (list(weights), origin) == ([name], wanted)
        for key, array in leaves(kept.weights[name]).items():
            np.testing.assert_array_equal(leaves(weights[name])[key], array, err_msg=key)
        assert Generator.load(tmp_path / name).origin == wanted
    # As exports were: always called ema, of unknown origin.
    save_export(tmp_path / "raw", kept.config, {"ema": kept.weights["raw"]}, origin={})
    assert Generator.load(tmp_path / "raw").origin == {"weights": "ema"}


def test_inpainting_keeps_tokens(pictures):
    generator = Generator.load(pictures)
    drawn = np.random.default_rng(0)
    given = drawn.integers(0, 256, (6, 16, 16, 3), np.uint8)
    keep = np.array([[True, False], [False, True]])
    everything = generator.inpaint(given, np.ones((2, 2), bool))
    np.testing.assert_array_equal(everything, generator.tokenizer.reconstruct(given, dtype="uint8"))
    made = []
    decode = generator.tokenizer.decode

    def seen(bits, **options):
        made.append(bits)
        return decode(bits, **options)

    generator.tokenizer.decode = seen
    found = generator.inpaint(given, keep, classes=7)
    bits = generator.tokenizer.encode(given)
    np.testing.assert_array_equal(made[0][:, 0][:, keep], bits[:, keep])
    assert (made[0][:, 0][:, ~keep] != bits[:, ~keep]).any()
    assert found.shape == given.shape
    # A mask for each picture; and with a class, something else than without.
    each = np.broadcast_to(keep, (6, 2, 2))
    np.testing.assert_array_equal(generator.inpaint(given, each, classes=7), found)
    # Pictures one by one: the same, in the form in which they were given.
    listed = generator.inpaint([Image.fromarray(picture) for picture in given], keep, classes=7)
    np.testing.assert_array_equal(np.stack(listed), found)
    alone = generator.inpaint(given[0].transpose(2, 0, 1), keep, classes=7, layout="CHW")
    np.testing.assert_array_equal(alone, found[0].transpose(2, 0, 1))
    floats = given.astype(np.float32) / 255
    for scale, stated in ((floats, (0, 1)), (given.astype(np.float32), (0, 255))):
        again = generator.inpaint(scale, keep, classes=7, value_range=stated)
        np.testing.assert_array_equal(again, found)
    with pytest.warns(UserWarning, match="value_range") as told:
        generator.inpaint(floats, keep)
    assert len(told) == 1


def test_clips_from_python(clips):
    generator = Generator.load(clips)
    found = generator.sample(3)
    assert found.shape == (3, 2, 16, 16, 3)
    longer = generator.sample(3, frames=4)
    np.testing.assert_array_equal(longer[:, :2], found)
    given = np.random.default_rng(0).integers(0, 256, (2, 2, 16, 16, 3), np.uint8)
    keep = np.zeros((2, 2, 2, 2), bool)
    keep[:, 0] = True  # the first frame is given, the second made
    made = generator.inpaint(given, keep)
    frames = generator.tokenizer.reconstruct(given[:, 0], dtype="uint8")
    np.testing.assert_array_equal(made[:, 0], frames)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": 0}, "ask for 1 or more"),
        ({"classes": 10}, "class 10 does not exist: this model has classes 0 to 9"),
        ({"classes": []}, "no class was named"),
        ({"frames": 2}, "this model makes pictures"),
        ({"seed": -1}, "seed -1"),
        ({"stepz": 3}, "unknown: stepz"),
        ({"steps": 0}, "steps is 0: it must be positive"),
        ({"order": "raster"}, "order is 'raster': it must be one of confidence, random"),
        ({"schedule": "sine"}, "schedule is 'sine': it must be one of cosine"),
    ],
)
def test_mistakes_in_python(pictures, options, said):
    with pytest.raises(UserError, match=said):
        Generator.load(pictures).sample(**{"count": 1, **options})


def test_wrong_models_and_masks(pictures, clips, tokenizer, tmp_path):
    with pytest.raises(UserError, match="holds a tokenizer, which generates nothing"):
        Generator.load(tokenizer)
    with pytest.raises(UserError, match="does not exist"):
        Generator.load(tmp_path / "none")
    with pytest.raises(UserError, match="holds a masked_lm; its tokenizer is in"):
        Tokenizer.load(pictures)
    with pytest.raises(UserError, match="holds a masked_lm, which codes nothing"):
        Codec.load(pictures)
    with pytest.raises(UserError, match="guidance needs a model with classes"):
        Generator.load(clips).sample(1, guidance=1.0)
    generator = Generator.load(pictures)
    given = np.zeros((1, 16, 16, 3), np.uint8)
    for keep, said in (
        (np.ones((2, 2)), "give booleans"),
        (np.ones((3, 2), bool), r"has shape \(3, 2\): give \[2, 2\]"),
        (np.ones((1, 1, 2, 2), bool), "give"),
    ):
        with pytest.raises(UserError, match=said):
            generator.inpaint(given, keep)


# --- the command ---


def run(*words):
    return cli.main(["generate", *(str(word) for word in words)])


def test_the_command_writes_pictures_and_says_how(pictures, tmp_path, capsys):
    out, npz = tmp_path / "out", tmp_path / "samples.npz"
    words = ("--model", pictures, "--num", 5, "--classes", "1,2", "--seed", 3, "--steps", 2)
    assert run(*words, "--out", out, "--npz", npz) == 0
    assert "5 pictures" in capsys.readouterr().out
    want = Generator.load(pictures).sample(5, classes=[1, 2], seed=3, steps=2)
    names = sorted(path.name for path in out.iterdir())
    assert names == [*(f"{i:05d}.png" for i in range(5)), "grid.png", "samples.json"]
    for number in range(5):
        with Image.open(out / f"{number:05d}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), want[number])
    with np.load(npz) as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], want)
        assert arrays["arr_1"].tolist() == [1, 2, 1, 2, 1]
    described = json.loads((out / "samples.json").read_text())
    assert (described["seed"], described["sampling"]["steps"]) == (3, 2)
    assert described["classes"] == [1, 2, 1, 2, 1]
    assert run(*words, "--out", out) == 2
    assert "samples.json): choose another folder, or add --force" in capsys.readouterr().err
    assert run(*words, "--out", out, "--force", "--quiet") == 0


def test_a_model_is_exported(pictures, tmp_path, capsys):
    target = tmp_path / "export"
    assert cli.main(["export", str(pictures), str(target)]) == 0
    one, other = (Generator.load(folder).sample(2, seed=1) for folder in (pictures, target))
    np.testing.assert_array_equal(one, other)
    assert cli.main(["export", str(pictures), str(target)]) == 2
    assert "exists: choose another folder" in capsys.readouterr().err
    # Exports are evaluated as workdirs are.
    assert main.run(["--mode", "evaluate", "--workdir", str(target)]) == 0
    assert "cross entropy" in capsys.readouterr().out


def test_the_command_makes_parts_anew(pictures, tmp_path, capsys):
    given = tmp_path / "given.png"
    save_png(given, np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    words = ("--model", pictures, "--given", given, "--num", 3, "--out", tmp_path / "out")
    assert run(*words, "--region", "0,0,8,16", "--classes", 4) == 0
    generator = Generator.load(pictures)
    with Image.open(given) as image:
        whole = np.broadcast_to(np.asarray(image), (3, 16, 16, 3))
    keep = np.array([[False, False], [True, True]])
    want = generator.inpaint(whole, keep, classes=4)
    with Image.open(tmp_path / "out" / "00002.png") as image:
        np.testing.assert_array_equal(np.asarray(image), want[2])
    capsys.readouterr()
    for region, said in (
        ("0,0,8", "give TOP,LEFT,HEIGHT,WIDTH"),
        ("0,0,8,32", "does not lie in the model's picture of 16x16"),
    ):
        assert run(*words, "--region", region, "--force") == 2
        assert said in capsys.readouterr().err


def test_the_command_makes_clips(clips, tmp_path, capsys):
    assert run("--model", clips, "--num", 2, "--frames", 3, "--out", tmp_path / "out") == 0
    for number in range(2):
        file = tmp_path / "out" / f"{number:05d}.mp4"
        with open_record(Record(file.name, file)) as footage:
            assert len(footage) == 3
    assert (tmp_path / "out" / "grid.png").is_file()
    npz = tmp_path / "clips.npz"
    assert run("--model", clips, "--num", 2, "--npz", npz) == 0
    with np.load(npz) as arrays:
        assert arrays.files == ["arr_0"]  # there are no classes
        assert arrays["arr_0"].shape == (2, 2, 16, 16, 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--out", "x"), "which model"),
        (("--model", "{model}"), "where to? Give --out FOLDER or --npz FILE.npz"),
        (("--model", "{model}", "--out", "x", "--num", "0"), "--num 0"),
        (("--model", "{model}", "--out", "x", "--classes", "a"), "give numbers such as 1,2"),
        (("--model", "{model}", "--out", "x", "--classes", "77"), "class 77 does not exist"),
        (("--model", "{model}", "--out", "x", "--given", "a.png"), "go together"),
        (
            ("--model", "{model}", "--out", "x", "--given", "a.png", "--region", "0,0,8,8"),
            "a.png does not exist",
        ),
        (("--model", "{model}", "--npz", "x.zip"), "must end in .npz"),
        (("--model", "{model}", "--npz", "no/such/x.npz"), "make it first"),
        (("--model", "/no/such", "--out", "x"), "does not exist"),
    ],
)
def test_mistakes_on_the_command_line(pictures, tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BSQ_JAX_MODEL", raising=False)
    assert run(*(word.format(model=pictures) for word in words)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()


def interrupted_after(monkeypatch, writes):
    """Ctrl-C comes after so many samples were written."""
    from bsq_jax.media import pictures, videos

    for module, name in ((pictures, "save_png"), (videos, "write_mp4")):
        write, count = getattr(module, name), []

        def stop(path, *rest, write=write, count=count):
            if len(count) == writes:
                raise KeyboardInterrupt
            count.append(path)
            write(path, *rest)

        monkeypatch.setattr(module, name, stop)


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(pictures, tmp_path, capsys):
    out, npz = tmp_path / "out", tmp_path / "samples.npz"
    words = ("--model", pictures, "--num", 5, "--seed", 3, "--steps", 2, "--out", out, "--npz", npz)
    with pytest.MonkeyPatch.context() as patch:
        interrupted_after(patch, 3)
        assert run(*words) == 130
    said = f"interrupted: 3 of 5 pictures are in {out}; the same command goes on\n"
    assert capsys.readouterr().err == said
    assert not npz.exists()
    written = {path: path.stat().st_mtime_ns for path in out.glob("0*.png")}
    assert len(written) == 3
    # Another command does not go on from these.
    assert run(*words[:4], "--out", out) == 2
    assert "holds samples of another command" in capsys.readouterr().err
    assert run(*words) == 0
    assert f"3 of 5 are in {out}: going on after them" in capsys.readouterr().err
    assert all(path.stat().st_mtime_ns == when for path, when in written.items())
    want = Generator.load(pictures).sample(5, seed=3, steps=2)
    with np.load(npz) as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], want)
    names = sorted(path.name for path in out.iterdir())
    assert names == [*(f"{i:05d}.png" for i in range(5)), "grid.png", "samples.json"]
    # Over what is there it begins anew, and what was there is not taken for its own.
    with pytest.MonkeyPatch.context() as patch:
        interrupted_after(patch, 1)
        assert run(*words[:4], "--out", out, "--force") == 130
    assert "1 of 5 pictures are in" in (said := capsys.readouterr().err)
    assert said.endswith("the same command without --force goes on\n")
    assert len(list(out.glob("0*.png"))) == 1
    assert run(*words[:4], "--out", out) == 0
    with Image.open(out / "00004.png") as image:
        want = Generator.load(pictures).sample(5)
        np.testing.assert_array_equal(np.asarray(image), want[4])


def test_files_that_are_there_are_not_replaced_unasked(pictures, tmp_path, capsys):
    theirs = tmp_path / "00001.png"
    theirs.write_text("of the user")
    words = ("--model", pictures, "--num", 3, "--steps", 2, "--out", tmp_path)
    assert run(*words) == 2
    assert f"{theirs} exists already: choose another folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [theirs.name]
    assert theirs.read_text() == "of the user"
    assert run(*words, "--force") == 0
    Image.open(theirs).verify()


def test_clips_go_on_after_ctrl_c(clips, tmp_path, capsys):
    words = ("--model", clips, "--num", 3, "--out", tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        interrupted_after(patch, 2)
        assert run(*words) == 130
    assert "2 of 3 clips are in" in capsys.readouterr().err
    assert run(*words) == 0
    assert "2 of 3 are in" in capsys.readouterr().err
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 3
    assert (tmp_path / "out" / "grid.png").is_file()
