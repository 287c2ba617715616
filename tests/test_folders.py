"""Folders of files as people have them. Oracle: the files that were put there."""

import os

import numpy as np
import pytest
from PIL import Image
from shapes import data_config
from video_files import write_video

from bsq_jax.core.errors import UserError
from bsq_jax.data.decoding.video import Video
from bsq_jax.data.records import fingerprint_of
from bsq_jax.data.sources import make_source, open_source

CONFIG = {"image_size": 8, "resize": 8, "eval_resize": 8}


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)


def ids(source):
    return [source[number].id for number in range(len(source))]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    """Its path is longer than the system takes, which root may not read either."""
    save(tmp_path / "a.png")
    opened = os.open(tmp_path, os.O_RDONLY)
    for _ in range(18):
        os.mkdir("n" * 250, dir_fd=opened)
        inner = os.open("n" * 250, os.O_RDONLY, dir_fd=opened)
        os.close(opened)
        opened = inner
    os.close(opened)
    with pytest.raises(UserError, match=r"nnn cannot be listed \(File name too long\)") as raised:
        make_source(f"folder:{tmp_path}", "train", divide=False)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("train", "val"), [("Train", "Val"), ("TRAIN", "test"), ("train", "VALID")]
)
def test_splits_are_found_whatever_their_capitals(tmp_path, train, val):
    for name in (f"{train}/a.png", f"{train}/b.png", f"{val}/c.png"):
        save(tmp_path / name)
    assert ids(make_source(f"folder:{tmp_path}", "train")) == [f"{train}/a.png", f"{train}/b.png"]
    source = make_source(f"folder:{tmp_path}", "val")
    assert ids(source) == [f"{val}/c.png"]
    assert source.classes == ()


def test_links_to_one_folder_are_both_read_and_loops_are_not(tmp_path):
    save(tmp_path / "kept" / "x.png")
    root = tmp_path / "root"
    root.mkdir()
    for name in ("a", "b"):
        (root / name).symlink_to(tmp_path / "kept")
    (tmp_path / "kept" / "back").symlink_to(root)
    (root / "self").symlink_to(root)
    source = make_source(f"folder:{root}", "train", divide=False)
    assert ids(source) == ["a/x.png", "b/x.png"]
    assert source.classes == ("a", "b")


def test_one_place_spelled_in_two_ways_is_divided(tmp_path):
    for number in range(30):
        save(tmp_path / f"{number}.png")
    (tmp_path / "link").symlink_to(tmp_path)
    for other in (f"folder:{tmp_path}/", f"folder:{tmp_path}/../{tmp_path.name}"):
        config = data_config(source=f"folder:{tmp_path}", val_source=other, **CONFIG)
        train, val = (set(ids(open_source(config, split))) for split in ("train", "val"))
        assert not train & val
        assert len(train | val) == 30


def test_fingerprints_tell_other_files_order_and_classes_apart(tmp_path):
    for name in ("one", "other"):
        for file in ("cat/a.png", "dog/b.png"):
            save(tmp_path / name / file)

    def fingerprint(name):
        return fingerprint_of(make_source(f"folder:{tmp_path / name}", "train", divide=False))

    assert fingerprint("one") == fingerprint("other")
    os.rename(tmp_path / "other" / "dog" / "b.png", tmp_path / "other" / "cat" / "b.png")
    save(tmp_path / "other" / "dog" / "c.png")
    assert fingerprint("one") != fingerprint("other")


def test_a_relative_name_with_a_colon_is_a_file(tmp_path, monkeypatch):
    write_video(tmp_path / "file:a.mp4", 3)
    monkeypatch.chdir(tmp_path)
    source = make_source("clips:.", "train", divide=False)
    with Video(source[0].content) as video:
        assert len(video) == 3
