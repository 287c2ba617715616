"""encode, decode and info of folders. Oracles: the Python API, the commands of single files."""

import dataclasses
import errno
import hashlib
import io
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from small_codec import make_codec, picture

from bsq_jax import cli
from bsq_jax.cli import encode_folder as encode_command
from bsq_jax.cli.folders import find, results_of
from bsq_jax.coding.container import Origin, read_header
from bsq_jax.media.pictures import save_png
from bsq_jax.media.videos import encode_video

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "codec"
    made = make_codec(min_bits=3)
    made.save(folder)
    return folder, made


@pytest.fixture
def run(model, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("BSQ_JAX_MODEL", str(model[0]))
    monkeypatch.chdir(tmp_path)

    def run(*words):
        status = cli.main([str(word) for word in words])
        return status, *capsys.readouterr()

    return run


def write_photos(count=2):
    """``photos`` with pictures, a video and what is neither; gives the pixels of each."""
    deep = pathlib.Path("photos/deep/er")
    deep.mkdir(parents=True)
    made = {}
    for number in range(count):
        made[f"{number}.png"] = picture(16, 16, seed=number)
        save_png(pathlib.Path(f"photos/{number}.png"), made[f"{number}.png"][0])
    made["deep/er/clip.mkv"] = picture(16, 16, 3)
    frames = made["deep/er/clip.mkv"]
    (deep / "clip.mkv").write_bytes(encode_video([frames], 10, exact=True))
    for name in ("notes.txt", "phone.JXL", ".hidden.png", "deep/none"):
        pathlib.Path("photos", name).write_text("hello")
    return made


def files_below(folder):
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in pathlib.Path(folder).rglob("*")
        if path.is_file()
    }


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_folder_there_and_back(run, model):
    frames = write_photos()
    status, _, said = run("encode", "photos", "coded")
    assert status == 0
    assert set(files_below("coded")) == {"0.bsq", "1.bsq", "deep/er/clip.bsq"}
    for name, one in frames.items():
        rate = 10 if name.endswith("mkv") else None
        data = pathlib.Path("coded", name).with_suffix(".bsq").read_bytes()
        assert data == model[1].encode(one, rate)
    size = sum(path.stat().st_size for path in pathlib.Path("coded").rglob("*.bsq"))
    assert f"coded: 3 files, {size:,d} bytes, {8 * size / (16 * 16 * 5):.4f} bits a pixel\n" in said
    assert "passed over, neither picture nor video: 3 files (" in said
    for kind in ("1 .txt", "1 .jxl", "1 without"):
        assert kind in said
    status, out, _ = run("info", "coded")
    assert status == 0
    assert f"3 whole files, {size:,d} bytes" in out
    status, _, said = run("decode", "coded", "decoded")
    assert (status, said) == (0, "decoded: 3 files\n")
    assert set(files_below("decoded")) == {"0.png", "1.png", "deep/er/clip.mkv"}
    for name in ("0.png", "1.png"):
        wanted = model[1].reconstruct(frames[name])[0]
        np.testing.assert_array_equal(pixels_of(f"decoded/{name}"), wanted)
    before = files_below("coded") | files_below("decoded")
    status, _, said = run("encode", "photos", "coded")
    assert status == 0
    assert "bits a pixel, of which 3 were done before\n" in said
    status, _, said = run("decode", "coded", "decoded")
    assert (status, said) == (0, "decoded: 3 files, of which 3 were done before\n")
    assert files_below("coded") | files_below("decoded") == before
    assert run("decode", "coded", "players", "--video", "mp4", "--quiet")[::2] == (0, "")
    assert "deep/er/clip.mp4" in files_below("players")


def test_what_is_done_is_skipped_and_all_else_made_again(run, model):
    frames = write_photos(4)
    assert run("encode", "photos", "coded", "--frames", 2)[0] == 0
    good = {name: pathlib.Path("coded", name).read_bytes() for name in files_below("coded")}
    pathlib.Path("coded/0.bsq").write_bytes(good["0.bsq"][:-1])  # cut short
    pathlib.Path("coded/1.bsq").write_bytes(good["1.bsq"][:20])  # in its header
    save_png(pathlib.Path("photos/2.png"), frames["3.png"][0])  # changed since
    later = time.time_ns() + 10**9
    os.utime("photos/2.png", ns=(later, later))
    kept = pathlib.Path("coded/3.bsq").stat().st_mtime_ns
    status, _, said = run("encode", "photos", "coded")
    assert status == 0
    assert "of which 1 were done before" in said
    assert pathlib.Path("coded/3.bsq").stat().st_mtime_ns == kept
    for name in ("0.bsq", "1.bsq"):
        assert pathlib.Path("coded", name).read_bytes() == good[name]
    assert pathlib.Path("coded/2.bsq").read_bytes() == good["3.bsq"]
    data = pathlib.Path("coded/deep/er/clip.bsq").read_bytes()
    assert len(model[1].decode(data).frames) == 3  # no longer the first two


@pytest.mark.parametrize("what", ["settings", "model", "file"])
def test_what_others_made_stays(run, tmp_path, what):
    write_photos()
    words = ["encode", "photos", "coded"]
    if what == "file":
        pathlib.Path("coded").mkdir()
        pathlib.Path("coded/1.bsq").write_text("precious")
        reason = "coded/1.bsq (no .bsq file;"
    else:
        assert run(*words)[0] == 0
        reason = "coded/0.bsq (coded with other settings;"
        if what == "settings":
            words += ["--bits", 3]
        else:
            make_codec(seed=5).save("other")
            words += ["--model", "other"]
            reason = "coded/0.bsq (coded by another model;"
    before = files_below("coded")
    status, _, said = run(*words)
    assert status == 2
    assert reason in said
    assert "or add --force" in said
    assert said.count("\n") == 1
    assert files_below("coded") == before
    assert run(*words, "--force")[0] == 0
    after = files_below("coded")
    assert set(after) == {"0.bsq", "1.bsq", "deep/er/clip.bsq"}
    assert not set(before.items()) & set(after.items())
    assert run(*words)[0] == 0
    assert files_below("coded") == after


def test_what_cannot_be_read_is_named_and_passed_over(run, tmp_path):
    write_photos()
    pathlib.Path("photos/bad.jpg").write_text("no picture")
    pathlib.Path("photos/empty.mp4").write_bytes(b"")
    pathlib.Path("photos/gone.png").symlink_to(tmp_path / "nowhere.png")
    status, _, said = run("encode", "photos", "coded", "--quiet")
    assert status == 2
    assert [line.split()[0] for line in said.splitlines()] == [
        "photos/bad.jpg", "photos/empty.mp4", "photos/gone.png",
    ]  # fmt: skip
    assert set(files_below("coded")) == {"0.bsq", "1.bsq", "deep/er/clip.bsq"}
    status, _, said = run("encode", "photos", "coded")
    assert status == 2
    assert "not coded: 3, each named above" in said


def test_damaged_files_of_a_folder(run, model):
    video = model[1].encode(picture(150, 150, 20), 10, mode="raw")
    pathlib.Path("coded").mkdir()
    for name, data in (
        ("a.bsq", video[: len(video) // 2]),
        ("b.bsq", model[1].encode(picture(16, 16))),
        ("c.bsq", b"text"),
        ("d.bsq", other := make_codec(seed=5).encode(picture(16, 16))),
        ("e.bsq", other),
    ):
        pathlib.Path("coded", name).write_bytes(data)
    for _ in range(2):
        status, _, said = run("decode", "coded", "decoded")
        assert status == 2
        lines = sorted(said.splitlines())
        assert lines[0].startswith("coded/a.bsq is cut short: 8 of 20 frames are whole; the frames")
        assert lines[0].endswith("are in decoded/a.mkv")
        assert lines[1] == "coded/c.bsq is no .bsq file: make one with python -m bsq_jax encode"
        assert lines[2].startswith("coded/d.bsq was coded by another model")
        assert lines[3] == "coded/e.bsq was coded by the same model as coded/d.bsq"
        assert "not whole: 4, each named above" in lines
        assert set(files_below("decoded")) == {"a.mkv", "b.png"}
    status, out, said = run("info", "coded")
    assert status == 2
    assert "3 whole files" in out
    assert len(said.splitlines()) == 2


def test_one_file_with_impossible_settings_leaves_the_others(run, model):
    """Of the right model, or of one that is claimed wrongly."""
    pathlib.Path("coded").mkdir()
    data = model[1].encode(picture(16, 16))
    header = read_header(io.BytesIO(data), "x")
    rest = data[len(header.pack()) :]
    changed = (
        {"bits": 999},
        {"height": 2**16, "width": 2**16},
        {"mode": "prior"},
        {"origin": Origin("nobody", 7)},
    )
    for number, change in enumerate(changed):
        forged = dataclasses.replace(header, **change)
        pathlib.Path(f"coded/{number}.bsq").write_bytes(forged.pack() + rest)
    pathlib.Path("coded/good.bsq").write_bytes(data)
    status, _, said = run("decode", "coded", "decoded", "--quiet")
    assert status == 2
    assert "good" not in said
    assert "good.png" in files_below("decoded")


def test_originals_are_not_overwritten(run):
    """Decoded into the folder that was encoded, or into a newer copy of it."""
    write_photos()
    assert run("encode", "photos", "coded")[0] == 0
    shutil.copytree("photos", "copy", copy_function=shutil.copy)
    for folder in ("photos", "copy"):
        before = files_below(folder)
        status, _, said = run("decode", "coded", folder)
        assert status == 2
        assert f"{folder} holds 3 files that are not decoded from the .bsq file of that " in said
        assert said.count("\n") == 1
        assert files_below(folder) == before
        status, _, said = run("decode", "coded", folder, "--force")
        assert (status, said) == (0, f"{folder}: 3 files\n")
        results = {"0.png", "1.png", "deep/er/clip.mkv"}
        after = files_below(folder)
        assert {name for name in before if after[name] != before[name]} == results
        assert "3 were done before" in run("decode", "coded", folder)[2]


@pytest.mark.parametrize("video", ["mkv", "mp4"])
def test_a_result_names_its_file(run, video):
    """It is known by that alone, not by its time; of another file it stays."""
    write_photos(1)
    assert run("encode", "photos", "coded")[0] == 0
    words = ("decode", "coded", "back", "--video", video)
    assert run(*words)[0] == 0
    digest = hashlib.sha256(pathlib.Path("coded/0.bsq").read_bytes()).hexdigest()
    with Image.open("back/0.png") as image:
        assert image.info["Comment"] == f"decoded by bsq_jax from sha256:{digest}"
    for name in files_below("back"):
        os.utime(f"back/{name}", ns=(10**9, 10**9))
    before = files_below("back")
    assert "of which 2 were done before" in run(*words)[2]
    os.replace(f"back/deep/er/clip.{video}", "back/0.png")
    status, _, said = run(*words)
    assert status == 2
    assert "back holds a file that is not decoded from the .bsq file of that name, such as" in said
    pathlib.Path("back/0.png").write_bytes(b"")
    assert "not decoded from" in run(*words)[2]
    assert run(*words, "--force", "--quiet")[0] == 0
    assert set(files_below("back")) == set(before)


def test_the_results_may_lie_in_the_folder(run):
    write_photos()
    for _ in range(2):
        assert run("encode", "photos", "photos/coded")[0] == 0
        assert run("decode", "photos/coded", "photos/coded/back")[0] == 0
    assert set(files_below("photos/coded")) == {
        *("0.bsq", "1.bsq", "deep/er/clip.bsq"),
        *("back/0.png", "back/1.png", "back/deep/er/clip.mkv"),
    }
    status, _, said = run("encode", "photos/deep", "photos/deep")
    assert status == 0
    status, _, said = run("encode", "photos/deep", "photos/deep")
    assert "of which 1 were done before" in said
    assert set(files_below("photos/deep")) == {"none", "er/clip.mkv", "er/clip.bsq"}


def test_links_are_followed_and_circles_are_not(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    for name in ("a/1.png", "a/b/2.PNG", "out/3.png", "a/.4.png"):
        (tmp_path / name).write_text("")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "results").symlink_to(tmp_path / "out")
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a" / "self")
    (tmp_path / "a" / "twice").symlink_to(tmp_path / "a" / "b")
    found = find(tmp_path / "a", {".png"}, tmp_path / "out")
    assert found.names == ["1.png", "b/2.PNG", "twice/2.PNG"]
    assert not found.others
    assert not found.passed_over("x")
    assert found.problems == [f"{tmp_path / 'a' / 'self'}: {os.strerror(errno.ELOOP)}"]


def test_files_that_would_become_one():
    names = ["a.jpg", "a.png", "b.jpg", "c/a.jpg", "d.gif", "d.jpg.gif", "d.jpg", "e.JPG", "E.png"]
    assert results_of(dict.fromkeys(names, ".bsq")) == {
        "a.jpg": "a.jpg.bsq",
        "a.png": "a.png.bsq",
        "b.jpg": "b.bsq",
        "c/a.jpg": "c/a.bsq",
        "d.gif": "d.gif.bsq",
        "d.jpg.gif": "d.jpg.gif.bsq",
        "d.jpg": "d.jpg.bsq",
        "e.JPG": "e.JPG.bsq",
        "E.png": "E.png.bsq",
    }
    drawn = np.random.default_rng(0)
    for _ in range(300):
        parts = drawn.choice(["a", "A", "b", ".jpg", ".png", ".JPG", ".2"], (8, 4))
        names = {"".join(row) + ".gif" for row in parts}
        results = results_of(dict.fromkeys(names, ".bsq")).values()
        assert len({name.casefold() for name in results}) == len(names)
        assert all(name.endswith(".bsq") for name in results)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("encode", "photos", "-"), "photos is a folder: give a folder for the results in place"),
        (("encode", "photos", "file"), "photos is a folder and file is a file: give a folder"),
        (("encode", "photos", "x.bsq"), "give a folder for the results, not x.bsq"),
        (("encode", "empty", "x"), "empty holds no picture or video\n"),
        (
            ("encode", "texts", "x"),
            "no picture or video (passed over, neither picture nor video: 1",
        ),
        (("encode", "photos", "x", "--bits", "9"), "9 bits a token"),
        (("encode", "photos", "x", "--overlap", "99"), "may share 0 to 8"),
        (("encode", "photos", "x", "--step", "3"), "is an export of step unknown, not of 3"),
        (
            ("decode", "photos", "x"),
            "photos holds no .bsq file (passed over, no .bsq file: 6 files",
        ),
        (("decode", "a.bsq", "x.mkv", "--video", "mp4"), "--video is for folders"),
        (("info", "photos"), "photos holds no .bsq file"),
    ],
)
def test_mistakes_get_one_line(run, words, said):
    write_photos()
    pathlib.Path("file").write_text("")
    for name in ("empty", "texts"):
        pathlib.Path(name).mkdir()
    pathlib.Path("texts/a.txt").write_text("")
    before = files_below(".")
    status, _, found = run(*words)
    assert status == 2
    assert said in found
    assert found.startswith("error: ")
    assert found.count("\n") == 1
    assert files_below(".") == before


def test_notices_of_many_files_are_one_line(run):
    write_photos(1)
    times = (100, 200, 50)
    images = [Image.fromarray(frame) for frame in picture(16, 16, 3)]
    for name in ("x", "y"):
        images[0].save(
            f"photos/{name}.gif", save_all=True, append_images=images[1:], duration=times
        )
    status, _, said = run("encode", "photos", "coded")
    assert status == 0
    assert "photos/x.gif and 1 more: an animation of 3 frames: it becomes a video\n" in said


def test_a_full_disk_says_what_is_done(run, monkeypatch):
    write_photos(3)
    from bsq_jax.cli import folders

    def write(path, data, real=folders.write_output):
        if path.endswith("1.bsq"):
            raise OSError(28, "No space left on device", path)
        real(path, data)

    monkeypatch.setattr(folders, "write_output", write)
    status, _, said = run("encode", "photos", "coded")
    assert status == 2
    assert said == (
        "error: cannot write coded/1.bsq (No space left on device): 1 of 4 files are done; make "
        "room or take another folder, and the same command goes on\n"
    )


def test_ctrl_c_keeps_what_is_done(run, monkeypatch):
    write_photos(4)
    real, calls = encode_command.encoded, []

    def interrupted(*words):
        calls.append(words)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*words)

    with monkeypatch.context() as changed:
        changed.setattr(encode_command, "encoded", interrupted)
        status, _, said = run("encode", "photos", "coded")
    assert status == 130
    assert said == ("interrupted: 2 of 5 files are done and kept, and the same command goes on\n")
    before = files_below("coded")
    assert set(before) == {"0.bsq", "1.bsq"}
    status, _, said = run("encode", "photos", "coded")
    assert status == 0
    assert "coded: 5 files" in said
    assert before.items() <= files_below("coded").items()


def test_ctrl_c_right_behind_a_file(run, monkeypatch):
    write_photos(2)
    from bsq_jax.cli import folders

    def write(path, data, real=folders.write_output):
        real(path, data)
        raise KeyboardInterrupt

    monkeypatch.setattr(folders, "write_output", write)
    assert "interrupted: 1 of 3 files are done" in run("encode", "photos", "coded")[2]
    assert "interrupted: 2 of 3 files are done" in run("encode", "photos", "coded")[2]
    assert len(files_below("coded")) == 2


def test_a_signal_while_a_folder_is_encoded(model, tmp_path):
    """A real one: no half file, and the message counts what is there."""
    photos, coded = tmp_path / "photos", tmp_path / "coded"
    photos.mkdir()
    save_png(photos / "0.png", picture(60, 60)[0])
    for number in range(1, 300):
        os.link(photos / "0.png", photos / f"{number}.png")
    # As in a terminal: a suite in the background of a script ignores Ctrl-C, as do its children.
    catches = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{catches}; from bsq_jax.cli import run_and_leave; run_and_leave()"
    words = [sys.executable, "-c", code, "encode", photos, coded, "--model", model[0]]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        while not list(coded.glob("*.bsq")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1]
    assert process.returncode == 130
    done = files_below(coded)
    found = re.fullmatch(
        r"interrupted: (\d+) of 300 files are done and kept, and the same command goes on",
        said.splitlines()[-1],
    )
    assert int(found[1]) == len(done) < 300
    assert all(name.endswith(".bsq") for name in done)
    assert len({(coded / name).read_bytes() for name in done}) == 1
