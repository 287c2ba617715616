"""The study of transfer. Oracle: the command ``evaluate`` on the same model and pictures."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from run_files import save_steps
from small_codec import make_codec, picture

from bsq_jax import cli
from bsq_jax.cli.studies.transfer import comparison, packaged, sets
from bsq_jax.cli.studies.transfer.saved import load_parts
from bsq_jax.data.sources.embedded import photos
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.training.export import save_export


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """A prior of drawn weights, with its tokenizer, that was trained on drawn pictures."""
    folder = tmp_path_factory.mktemp("models") / "prior"
    codec = make_codec()
    config, params = codec._prior
    save_export(folder, config, {"ema": params}, origin={"step": 3})
    codec.tokenizer.save(folder / "tokenizer")
    return folder


@pytest.fixture
def folders(tmp_path):
    """A folder of pictures without splits, one with a picture that is none, and one of such."""
    for name, good, broken in (("good", 3, 0), ("mixed", 19, 1), ("broken", 0, 2)):
        (tmp_path / name).mkdir()
        for number in range(good):
            pixels = picture(24, 16, seed=number)[0]
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
        for number in range(broken):
            (tmp_path / name / f"broken{number}.png").write_bytes(b"no picture")
    return tmp_path


def evaluated(folder, source, capsys):
    assert (
        cli.main(["evaluate", "--workdir", str(folder), f"--config.data.val_source={source}"]) == 0
    )
    capsys.readouterr()
    (path,) = folder.glob("evaluation*.json")
    report = json.loads(path.read_bytes())
    path.unlink()
    (results,) = report["results"].values()
    return results


def test_the_numbers_are_those_of_evaluate(export, folders, capsys, monkeypatch):
    good, mixed = f"folder:{folders / 'good'}", f"folder:{folders / 'mixed'}"
    flags = ["--workdir", str(folders / "study"), "--model", str(export)]
    flags += ["--sets", f"good={good}", f"mixed={mixed}", "gone=folder:/no/such/folder"]
    flags += [f"broken=folder:{folders / 'broken'}"]
    assert cli.main(["studies", "transfer", *flags]) == 0
    said = capsys.readouterr().out
    own, first, second, gone, broken = json.loads((folders / "study/results.json").read_text())
    for row, source in ((own, "synthetic"), (first, good), (second, mixed)):
        for part, folder in (("tokenizer", export / "tokenizer"), ("prior", export)):
            expected = evaluated(folder, source, capsys)
            found = row[part]["results"]
            shared = expected.keys() & found.keys()
            assert {"psnr", "ssim", "codes_used"} <= shared or {"coded_bpp"} <= shared
            assert {key: found[key] for key in shared} == {key: expected[key] for key in shared}
    assert [row["pictures"] for row in (own, first, second)] == [64, 3, 20]  # not divided
    assert own["raw_bpp"] == 6 / 64
    # A set that cannot be read is a line of the report and ends nothing.
    assert "folder:/no/such/folder is not a folder" in gone["problem"]
    (line,) = [line for line in said.splitlines() if line.startswith("gone: not measured")]
    (line,) = [line for line in said.splitlines() if line.startswith("broken: not measured")]
    assert broken["problem"] in line
    table = (folders / "study/table.md").read_text().splitlines()
    titles, line = ([cell.strip() for cell in table[n].strip("|").split("|")] for n in (0, 3))
    at = titles.index("PSNR (dB)")
    psnr = first["tokenizer"]["results"]["psnr"]
    change = psnr - own["tokenizer"]["results"]["psnr"]
    assert line[at : at + 2] == [f"{psnr:.2f}", f"{change:+.2f}"]
    assert titles[at + 1] == "change"
    assert "LPIPS" not in titles  # pictures are too small for it
    assert (folders / "study" / comparison.FIGURE).stat().st_size > 1000
    # What was measured is kept, for the same pictures and settings.
    monkeypatch.setattr(comparison, "evaluate", None)
    again = ["--workdir", str(folders / "study"), "--model", str(export)]
    again += ["--sets", f"good={good}"]
    assert cli.main(["studies", "transfer", *again]) == 0
    assert json.loads((folders / "study/results.json").read_text()) == [own, first]
    Image.fromarray(picture(24, 16)[0]).save(folders / "good" / "another.png")
    monkeypatch.undo()
    assert cli.main(["studies", "transfer", *again]) == 0
    assert json.loads((folders / "study/results.json").read_text())[1]["pictures"] == 4


def test_a_tokenizer_alone_and_its_pictures(export, folders, capsys):
    flags = ["--workdir", str(folders / "study"), "--model", str(export / "tokenizer")]
    flags += ["--reference", f"held out=folder:{folders / 'good'}", "--sets", "textures"]
    assert cli.main(["studies", "transfer", *flags, "--set", "data.eval_crop=tiles"]) == 0
    reference, textures = json.loads((folders / "study/results.json").read_text())
    assert (reference["set"], reference["reference"]) == ("held out", True)
    assert "prior" not in textures
    assert "with the prior" not in capsys.readouterr().out
    assert textures["pictures"] == 3
    assert textures["tokenizer"]["measured"]["crop"] == "tiles"
    assert list((folders / "study" / "textures" / "tokenizer" / "pictures").glob("*.png"))


def test_averaged_weights_of_a_run_are_measured(tmp_path):
    """As `Tokenizer.load` has them; the prior is measured with the tokenizer in its workdir."""
    save_steps(tmp_path / "tokenizer_run", [2])
    (alone,) = load_parts(str(tmp_path / "tokenizer_run"), ()).values()
    assert (alone.name, alone.step) == ("ema", 2)
    jax.tree.map(
        np.testing.assert_array_equal,
        alone.weights,
        Tokenizer.load(tmp_path / "tokenizer_run").params,
    )
    save_steps(tmp_path / "prior_run", [2], prior=True)
    parts = load_parts(str(tmp_path / "prior_run"), ("data.eval_resize=24",))
    inside = Tokenizer.load(tmp_path / "prior_run" / "tokenizer")
    jax.tree.map(np.testing.assert_array_equal, parts["tokenizer"].weights, inside.params)
    assert parts["prior"].config.prior.tokenizer == str(tmp_path / "prior_run" / "tokenizer")
    assert [part.config.data.eval_resize for part in parts.values()] == [24, 24]


def row_of(name, psnr, count=comparison.FEWEST, **more):
    results = {"psnr": psnr, "ssim": 0.5, "count": count, "fid": 7.0}
    made = {"set": name, "pictures": count, "tokenizer": {"results": results}, "raw_bpp": 0.25}
    return {"reference": name == "own", **made, **more}


def test_changes_are_against_the_reference():
    rows = [row_of("own", 30.0), row_of("a", 27.5, count=5), {"set": "b", "reference": False}]
    rows[2]["problem"] = "gone"
    cells = comparison.table_rows(rows)
    assert cells == [
        ["set", "pictures", "PSNR (dB)", "change", "SSIM", "FID", "bits a pixel"],
        ["own", "2,048", "30.00", "-", "0.5000", "7.00", "0.250"],
        ["a", "5", "27.50", "-2.50", "0.5000", "-", "0.250"],  # too few pictures for FID
        ["b", *["-"] * 6],
    ]
    # Without the reference there is nothing to compare with.
    del rows[0]["tokenizer"]
    assert "change" not in comparison.table_rows(rows)[0]


def test_the_pictures_of_packages():
    own = {
        photos(split)._files[n][0] for split in ("train", "val") for n in range(len(photos(split)))
    }
    for kind, names in sets.PACKAGED.items():
        source = packaged.pictures("val", kind=kind)
        assert [source[n].id for n in range(len(source))] == list(names)
        assert not own & set(names)


def test_names_of_sets():
    assert sets.parse_set("COCO=tfds:coco/2017") == ("COCO", "tfds:coco/2017")
    spec = "a.b:c(kind='x')"
    assert sets.parse_set(f"x={spec}").source == spec


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sets", "folder:/x"], "set 'folder:/x': write NAME=SOURCE"),
        (["--sets", "../x=folder:/x"], "set '../x=folder:/x': write NAME=SOURCE"),
        (["--sets", "text", "text"], "two sets are called 'text'"),
        (["--model", "/no/such/model"], "/no/such/model"),
        (["--set", "data.source=photos"], "the study chooses data.source, use --reference"),
        (["--set", "data.bananas=3"], "data.bananas"),
        (["--reference", "x=folder:/no/such", "--sets"], "no set was measured; x: not measured"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, flags, message):
    assert cli.main(["studies", "transfer", "--workdir", str(tmp_path), *flags]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "starter model" not in line]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert message in errors[0]
