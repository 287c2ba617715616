"""Coded files of a run that goes on. Oracles: the checkpoints' own codecs, messages."""

import errno
import io
import os

import numpy as np
import pytest
import tiny
from run_files import save_steps
from small_codec import make_codec, picture

from bsq_jax import Codec, cli
from bsq_jax.coding import codec_model
from bsq_jax.coding.container import Header, Origin, read_header
from bsq_jax.config import finalize
from bsq_jax.core.errors import UserError
from bsq_jax.core.once import say_once
from bsq_jax.media.pictures import save_png
from bsq_jax.training.saved_models import will_be_removed
from bsq_jax.training.workdir import write_config

FRAMES = picture(16, 16)


@pytest.fixture
def run(capsys):
    def run(*words):
        status = cli.main([str(word) for word in words])
        return status, capsys.readouterr().err

    return run


@pytest.fixture(params=[False, True], ids=["tokenizer", "prior"])
def kind(request):
    return request.param


def header_by(codec, mode=None):
    """The header of a picture that a codec writes."""
    made = codec.coding(codec.settings(mode), 16, 16, clip=False)
    return Header(height=16, width=16, frames=1, rate=None, **vars(made))


def test_a_file_opens_with_the_step_that_coded_it(run, tmp_path):
    workdir = tmp_path / "quick"
    save_steps(workdir, [2])
    before = Codec.load(workdir)
    data, wanted = before.encode(FRAMES), before.reconstruct(FRAMES)
    assert read_header(io.BytesIO(data), "x") == header_by(before)
    save_steps(workdir, [4])
    now = Codec.load(workdir)
    assert now.encode(FRAMES) != data
    np.testing.assert_array_equal(now.decode(data).frames, wanted)
    save_steps(workdir, [6])  # two are kept
    (tmp_path / "a.bsq").write_bytes(data)
    status, said = run("decode", tmp_path / "a.bsq", tmp_path / "b.png", "--model", workdir)
    assert status == 2
    assert "a.bsq was coded by step 2 of quick" in said
    assert f"{workdir} keeps only steps 4, 6: give an export of step 2 with --model" in said
    assert said.count("\n") == 1


def test_which_codec_decodes(tmp_path, kind):
    workdir = tmp_path / "run"
    save_steps(workdir, [2], prior=kind)
    early = Codec.load(workdir)
    averaged, raw = header_by(early), header_by(Codec.load(workdir, weights="raw"))
    assert averaged.origin == Origin("run", 2, averaged=True)
    assert raw.origin == Origin("run", 2, averaged=False)
    save_steps(workdir, [4], prior=kind)
    now = Codec.load(workdir)
    assert now.for_file(header_by(now)) is now
    for header in (averaged, raw):
        assert now.for_file(header).origin() == header.origin
        assert now.for_file(header) is now.for_file(header)  # loaded once
    now.save(tmp_path / "export")
    with pytest.raises(UserError, match=r"coded by step 2 of run \(\w+\), and export is step 4"):
        Codec.load(tmp_path / "export").for_file(averaged)


def test_each_step_is_loaded_once_for_a_folder(run, tmp_path, monkeypatch):
    workdir, coded = tmp_path / "run", tmp_path / "coded"
    save_steps(workdir, [2, 4, 6], keep=3)
    coded.mkdir()
    for step, names in ((2, "ace"), (4, "bdf")):
        data = Codec.load(workdir, step=step).encode(FRAMES)
        for name in names:
            (coded / f"{name}.bsq").write_bytes(data)
    loaded, real = [], Codec.load.__func__

    def load(cls, path, *, step=None, weights="auto"):
        loaded.append(step)
        return real(cls, path, step=step, weights=weights)

    monkeypatch.setattr(Codec, "load", classmethod(load))
    assert run("decode", coded, tmp_path / "back", "--model", workdir)[0] == 0
    assert loaded == [None, 2, 4]
    assert len(list((tmp_path / "back").glob("?.png"))) == 6


def test_the_tokenizer_of_a_prior_stays(tmp_path):
    save_steps(tmp_path / "prior", [2], prior=True)
    codec = Codec.load(tmp_path / "prior")
    header = header_by(codec, "raw")
    assert codec.removal("prior")
    assert not codec.removal("raw")
    save_steps(tmp_path / "prior", [4], prior=True)
    now = Codec.load(tmp_path / "prior")
    assert now.for_file(header) is now


def test_a_file_without_a_step_opens_while_its_step_is_kept(tmp_path):
    """As files of version 1 are."""
    save_steps(tmp_path / "run", [2])
    early = Codec.load(tmp_path / "run")
    early.tokenizer.origin.clear()
    header = header_by(early)
    assert header.origin is None
    assert header.pack()[8] == 1
    save_steps(tmp_path / "run", [4])
    assert Codec.load(tmp_path / "run").for_file(header).origin().step == 2
    save_steps(tmp_path / "run", [6])
    with pytest.raises(
        UserError, match=r"by another model .* of the steps that run keeps \(4, 6\)"
    ):
        Codec.load(tmp_path / "run").for_file(header)


def test_the_same_step_of_another_run(tmp_path):
    for name, seed in (("one", 0), ("two", 50)):
        save_steps(tmp_path / name, [2], seed=seed)
    header = header_by(Codec.load(tmp_path / "one"))
    with pytest.raises(UserError, match=r"by step 2 of one \(\w+\), and .*two is another run"):
        Codec.load(tmp_path / "two").for_file(header)


def test_a_step_whose_checkpoint_is_damaged(tmp_path):
    save_steps(tmp_path / "run", [2])
    header = header_by(Codec.load(tmp_path / "run"))
    save_steps(tmp_path / "run", [4])
    for path in (tmp_path / "run" / "checkpoints" / "2" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"may need step 2 of run: checkpoint .* cannot be used"):
        Codec.load(tmp_path / "run").for_file(header)


def test_steps_that_are_not_there(tmp_path):
    save_steps(tmp_path / "run", [2, 4])
    with pytest.raises(UserError, match=r"run does not keep step 3 \(it keeps: 2, 4\)"):
        Codec.load(tmp_path / "run", step=3)
    Codec.load(tmp_path / "run", step=2).save(tmp_path / "export")
    assert Codec.load(tmp_path / "export", step=2).origin() == Origin("run", 2, averaged=True)
    with pytest.raises(UserError, match="export is an export of step 2, not of 4"):
        Codec.load(tmp_path / "export", step=4)


@pytest.mark.parametrize(
    ("kept", "last", "keep", "step", "removed", "evaluated"),
    [
        ([2, 4], 8, 2, 4, True, (0, 0)),  # by 6 and 8
        ([2, 4], 4, 2, 4, False, (0, 0)),  # the last
        ([2, 4], 4, 2, 2, False, (0, 0)),  # stays beside it
        ([2, 4], 8, 9, 4, False, (0, 0)),  # all are kept
        ([2, 4, 6], 7, 3, 6, False, (0, 0)),  # by 7 and one interruption it is not
        ([2, 4, 6], 7, 3, 4, True, (0, 0)),
        ([2], 7, 5, 2, False, (0, 0)),  # 4, 6, 7 and one interruption leave it
        ([2], 7, 4, 2, True, (0, 0)),
        ([2], 7, 6, 2, True, (1, 0)),  # every step is evaluated and saved: 3, 4, 5, 6, 7
        ([2], 7, 7, 2, False, (1, 0)),
        ([2], 7, 5, 2, True, (0, 3)),  # 3, 4, 6, 7: pictures are part of an evaluation
        ([2], 7, 6, 2, False, (3, 3)),
    ],
)
def test_whether_a_step_stays(tmp_path, kept, last, keep, step, removed, evaluated):
    config = tiny.get_config()
    config.train.update(steps=last, checkpoint_every=2, keep=keep)
    config.train.evaluate_every, config.train.picture_every = evaluated
    write_config(tmp_path, finalize(config))
    for number in kept:
        folder = tmp_path / "checkpoints" / str(number)
        folder.mkdir(parents=True)
        (folder / "checksums.json").write_text("{}")
    said = will_be_removed(tmp_path, step)
    assert bool(said) == removed
    assert not said or said.startswith(f"this run goes on to step {last} and keeps its last {keep}")


def test_encode_says_that_the_step_goes_and_export_keeps_it(run, tmp_path):
    workdir, photo, export = tmp_path / "run", tmp_path / "a.png", tmp_path / "kept"
    save_steps(workdir, [2], prior=True)
    save_png(photo, FRAMES[0])
    words = ("encode", photo, tmp_path / "a.bsq", "--model", workdir)
    status, said = run(*words, "--quiet")
    assert status == 0
    assert said.startswith("step 2 of run will be removed (this run goes on to step 8 and keeps ")
    assert said.endswith("keep it with --export FOLDER\n")
    assert said.count("\n") == 1
    for _ in range(2):  # the model may be there already
        status, said = run(*words, "--force", "--export", export)
        assert status == 0
        assert "removed" not in said
        assert f"decode --model {export}" in said
    save_steps(workdir, [4, 6, 8], prior=True)
    data = (tmp_path / "a.bsq").read_bytes()
    kept = Codec.load(export)
    assert kept.for_file(read_header(io.BytesIO(data), "x")) is kept
    for folder, problem in (
        (export, "it holds another model (step 2 of run), which files may need"),
        (tmp_path, "it exists and is no such model"),
    ):
        status, said = run(*words, "--force", "--export", folder)
        assert status == 2
        assert f"--export {folder}: {problem}" in said
    assert (tmp_path / "a.bsq").read_bytes() == data
    status, said = run(*words, "--force", "--step", 6)
    assert status == 0
    assert "removed" not in said  # the run has ended
    assert "step 6 of run)" in said


@pytest.mark.parametrize("made", ["missing", "empty"])
def test_an_export_that_is_killed_leaves_no_half(run, tmp_path, monkeypatch, made):
    """Between the files of the tokenizer and those of the prior, and then again."""
    workdir, photo, export = tmp_path / "run", tmp_path / "a.png", tmp_path / "deep" / "kept"
    save_steps(workdir, [2], prior=True)
    save_png(photo, FRAMES[0])
    if made == "empty":
        export.mkdir(parents=True)

    def killed(*words, **named):
        raise KeyboardInterrupt

    encode = ("encode", photo, tmp_path / "a.bsq", "--model", workdir, "--export", export)
    for words in (encode, ("export", workdir, export, "--force")):
        with monkeypatch.context() as changed:
            changed.setattr(codec_model, "save_export", killed)
            assert run(*words)[0] == 130
        assert not list((tmp_path / "deep").rglob("*.*"))
        assert not export.is_dir() or not list(export.iterdir())
    assert run(*encode)[0] == 0
    assert [path.name for path in export.parent.iterdir()] == ["kept"]
    assert Codec.load(export).fingerprint("prior") == Codec.load(workdir).fingerprint("prior")
    before = {path: path.stat().st_mtime_ns for path in export.rglob("*")}
    assert run(*encode, "--force")[0] == 0  # the model is there
    assert {path: path.stat().st_mtime_ns for path in export.rglob("*")} == before


def test_an_export_into_a_folder_that_cannot_be_made(run, tmp_path):
    save_steps(tmp_path / "run", [2])
    (tmp_path / "file").write_text("")
    status, said = run("export", tmp_path / "run", tmp_path / "file" / "kept")
    assert status == 2
    assert said == (
        f"error: cannot write the export {tmp_path / 'file' / 'kept'}: "
        f"{os.strerror(errno.ENOTDIR)}\n"
    )


def test_python_says_it_too(tmp_path, caplog):
    say_once.cache_clear()
    save_steps(tmp_path / "run", [2])
    codec = Codec.load(tmp_path / "run")
    for _ in range(2):
        codec.encode(FRAMES)
    (said,) = [record.message for record in caplog.records if "removed" in record.message]
    assert said.startswith("step 2 of run will be removed")
    assert "codec.save(FOLDER)" in said


def test_names_that_a_terminal_would_obey():
    assert Origin.of("a\x1b[2Jb\n\udcff", 3, averaged=False).name == "a?[2Jb??"
    assert Origin.of("é" * 60, 3, averaged=False).name == "é" * 32
    for name in ("a\x1b", "x" * 65):
        with pytest.raises(UserError, match="cannot be written"):
            Origin(name, 3)
    with pytest.raises(UserError, match="cannot be written"):
        Origin("a", 2**35)


def test_info_names_the_step(tmp_path, capsys):
    save_steps(tmp_path / "run", [2])
    (tmp_path / "a.bsq").write_bytes(Codec.load(tmp_path / "run").encode(FRAMES))
    assert cli.main(["info", str(tmp_path / "a.bsq")]) == 0
    assert "model     step 2 of run, averaged weights (" in capsys.readouterr().out
    (tmp_path / "b.bsq").write_bytes(make_codec().encode(FRAMES))
    assert cli.main(["info", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == ["file", "a.bsq", "b.bsq", "2"]
    assert "step 2 of run" in out
