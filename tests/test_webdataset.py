"""Tar shards. Oracles: what was written with tarfile, and folders of the same files."""

import dataclasses
import io
import itertools
import json
import os
import tarfile

import numpy as np
import pytest
from opened_sources import lines, whole
from PIL import Image
from shapes import data_config
from streams import assert_same, take, take_eval
from video_files import write_video

from bsq_jax.core.errors import UserError
from bsq_jax.core.once import say_once
from bsq_jax.data.decoding.record_frames import open_record
from bsq_jax.data.records import NO_LABEL, BrokenRecord, classes_of, fingerprint_of, label_of
from bsq_jax.data.sources import make_source, same_place, shard_files, tar_index
from bsq_jax.data.train_pipeline import train_batches

SMALL = data_config(
    source="synthetic", image_size=16, resize=24, eval_resize=24, scale=(1.0, 1.5), seed=7
)
PER_SHARD = 7


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    say_once.cache_clear()


def encoded(number, shape=(30, 40)):
    pixels = np.random.default_rng(number).integers(0, 256, (*shape, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path, members, file_format=tarfile.GNU_FORMAT):
    """Writes (name, content) pairs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=file_format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def pictures(first, count=PER_SHARD):
    return [(f"{number:04d}.png", encoded(number)) for number in range(first, first + count)]


def shards_of(folder, count=3):
    """Shards of seven pictures each, with classes; the pattern that names them."""
    for shard in range(count):
        members = []
        for name, content in pictures(shard * PER_SHARD):
            members += [(name, content), (name.replace("png", "cls"), b"%d" % (shard % 2))]
        write_tar(folder / f"train-{shard:03d}.tar", members)
    return f"webdataset:{folder}/train-{{000..{count - 1:03d}}}.tar"


def all_of(source):
    return [source[index] for index in range(len(source))]


@pytest.mark.smoke
def test_pictures_are_read_at_their_places_in_any_order(tmp_path):
    source = whole(shards_of(tmp_path))
    expected = [
        (f"train-{shard:03d}.tar/{name}", content)
        for shard in range(3)
        for name, content in pictures(shard * PER_SHARD)
    ]
    assert not source.videos
    assert len(source) == len(expected)
    for index in np.random.default_rng(0).permutation(len(expected)):
        assert tuple(source[int(index)]) == expected[index]
        assert source.id(int(index)) == expected[index][0]
        assert source.beginning(int(index), 50).content == expected[index][1][:50]


@pytest.mark.parametrize(
    "file_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_names_of_any_length_and_letters(tmp_path, file_format):
    names = ["a/b.png", "ä ö/ß.png", "n" * 90 + "/" + "m" * 90 + ".png", "./c.PNG"]
    members = [(name, encoded(number)) for number, name in enumerate(names)]
    path = write_tar(tmp_path / "a.tar", members, file_format)
    source = whole(f"webdataset:{path}")
    assert [tuple(record) for record in all_of(source)] == [
        (f"a.tar/{name.removeprefix('./')}", content) for name, content in members
    ]


@pytest.mark.parametrize("sizes", [(), ((16, 16), (16, 24))])
def test_the_same_stream_as_from_a_folder(tmp_path, sizes):
    """With the same pictures in the same order every batch is the same."""
    spec = shards_of(tmp_path / "shards")
    for number in range(3 * PER_SHARD):
        (tmp_path / f"{number:04d}.png").write_bytes(encoded(number))
    config = dataclasses.replace(SMALL, source=spec, val_source="synthetic", sizes=sizes)
    folder = dataclasses.replace(config, source=f"folder:{tmp_path}")
    assert_same(take(config, 6), take(folder, 6))


def test_resumed_on_any_number_of_hosts(tmp_path):
    config = dataclasses.replace(SMALL, source=shards_of(tmp_path))
    expected = take(config, 9)
    assert_same(take(config, 4, start=5, shards=2), expected[5:])
    assert_same(take(dataclasses.replace(config, threads=0), 2, start=7, shards=4), expected[7:])


def test_read_by_processes(tmp_path):
    config = dataclasses.replace(SMALL, source=shards_of(tmp_path))
    changed = dataclasses.replace(config, workers=2, threads=0)
    assert_same(take(changed, 3, start=2), take(config, 5)[2:])


def test_one_pattern_is_divided_and_two_are_not(tmp_path):
    spec = shards_of(tmp_path)
    every = [record.id for record in all_of(whole(spec))]
    assert [r.id for r in all_of(make_source(spec, "val"))] == every[::10]
    assert [r.id for r in all_of(make_source(spec, "train"))] == [
        name for number, name in enumerate(every) if number % 10
    ]
    two = f"webdataset:{tmp_path}/train-00[01].tar|{tmp_path}/train-002.tar"
    assert len(make_source(two, "train")) == 2 * PER_SHARD
    assert len(make_source(two, "val")) == PER_SHARD
    rows = take_eval(dataclasses.replace(SMALL, source=two), global_batch=4, shards=2)
    np.testing.assert_array_equal(rows["index"][rows["mask"] > 0], np.arange(PER_SHARD))
    with pytest.raises(UserError, match=r"one pattern, or two as TRAIN\|VAL"):
        make_source(f"{two}|c.tar", "train")


def test_places_in_two_spellings_are_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert same_place("webdataset:a/*.tar|b.tar") == same_place(
        f"webdataset:{tmp_path}/a/*.tar|./b.tar"
    )
    assert same_place("webdataset:a.tar") != same_place("webdataset:b.tar")


def test_classes_of_numbers(tmp_path):
    spec = shards_of(tmp_path)
    source = whole(spec)
    assert classes_of(source) == ("0", "1")
    assert [label_of(source, n) for n in range(len(source))] == [0] * 7 + [1] * 7 + [0] * 7
    (batch,) = take(dataclasses.replace(SMALL, source=spec, labels=True), 1)
    train = make_source(spec, "train")
    np.testing.assert_array_equal(
        batch["label"], [label_of(train, int(index)) for index in batch["index"]]
    )


def test_classes_of_names_have_the_numbers_of_training(tmp_path):
    def members(names):
        for number, name in enumerate(names):
            yield f"{number}.png", encoded(number)
            yield f"{number}.json", json.dumps(name).encode()

    train = [{"label": "owl"}, {"label": "cat"}, {"caption": "none"}, ["no", "object"]]
    write_tar(tmp_path / "train.tar", members(train))
    write_tar(tmp_path / "val.tar", members([{"label": "owl"}, {"label": "dog"}]))
    spec = f"webdataset:{tmp_path}/train.tar|{tmp_path}/val.tar"
    sources = {split: make_source(spec, split) for split in ("train", "val")}
    assert classes_of(sources["train"]) == classes_of(sources["val"]) == ("cat", "owl")
    assert [label_of(sources["train"], n) for n in range(4)] == [1, 0, NO_LABEL, NO_LABEL]
    assert [label_of(sources["val"], n) for n in range(2)] == [1, NO_LABEL]


def test_what_lies_beside_a_picture_is_no_other(tmp_path, caplog):
    """A mask, a hidden file, a text; where names have dots, each file is one."""
    beside = [("a.jpg", b"1"), ("a.mask.png", b"2"), ("a.txt", b"3"), ("._a.jpg", b"4")]
    dots = [("v1.0.1.jpg", b"5"), ("v1.0.2.jpg", b"6"), ("d/a.mask.png", b"7")]
    write_tar(tmp_path / "a.tar", [*beside, *dots])
    ids = [record.id for record in all_of(whole(f"webdataset:{tmp_path}/a.tar"))]
    assert ids == ["a.tar/a.jpg", "a.tar/v1.0.1.jpg", "a.tar/v1.0.2.jpg", "a.tar/d/a.mask.png"]
    spec = f"webdataset:{tmp_path}/a.tar"
    assert lines(caplog) == [f"{spec}: skipped 1 file beside a picture or video of the same name"]


def test_videos_are_told_by_their_names(tmp_path, caplog):
    video = write_video(tmp_path / "a.mp4", 5).read_bytes()
    write_tar(tmp_path / "v.tar", [("a.mp4", video), ("b.yuv", b"raw"), ("c.mp4", video)])
    source = whole(f"webdataset:{tmp_path}/v.tar")
    assert source.videos
    assert [record.id for record in all_of(source)] == ["v.tar/a.mp4", "v.tar/c.mp4"]
    with open_record(source[1]) as footage:
        assert len(footage) == 5
    assert "not read: .yuv (1)" in lines(caplog)[0]
    write_tar(tmp_path / "both.tar", [("a.mp4", video), ("b.png", encoded(0)), ("c.psd", b"")])
    source = whole(f"webdataset:{tmp_path}/both.tar")
    assert not source.videos
    assert len(source) == 1
    assert "2 files of kinds that are not read: .mp4 (1), .psd (1)" in lines(caplog)[1]


def test_the_index_is_made_once_and_again_when_the_tar_changes(tmp_path, monkeypatch):
    spec = shards_of(tmp_path, 2)
    before = all_of(whole(spec))
    made = []
    listed = tar_index._listed
    monkeypatch.setattr(
        tar_index, "_listed", lambda path, *_: made.append(path.name) or listed(path, *_)
    )
    assert all_of(whole(spec)) == before
    assert made == []
    path = tmp_path / "train-001.tar"
    status = path.stat()
    write_tar(path, pictures(50))
    assert path.stat().st_size == len(path.read_bytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    after = all_of(whole(spec))
    assert made == ["train-001.tar"]
    assert [record.content for record in after] == [
        content for _, content in (*pictures(0), *pictures(50))
    ]
    saved = tmp_path / ".bsq_jax_index" / "train-000.tar.npz"
    saved.write_bytes(saved.read_bytes()[:100])  # damaged: it is made anew
    assert all_of(whole(spec)) == after
    assert made == ["train-001.tar", "train-000.tar"]


def test_where_the_folder_cannot_be_written_the_index_is_in_the_cache(tmp_path, monkeypatch):
    spec = shards_of(tmp_path / "shards", 1)
    (tmp_path / "shards" / ".bsq_jax_index").write_text("no folder can be made here")
    before = all_of(whole(spec))
    assert len(list((tmp_path / "cache" / "bsq_jax" / "tar_index").iterdir())) == 1
    monkeypatch.setattr(tar_index, "_listed", None)
    assert all_of(whole(spec)) == before


def test_where_nothing_can_be_written_there_is_no_saved_index(tmp_path):
    spec = shards_of(tmp_path / "shards", 1)
    (tmp_path / "shards" / ".bsq_jax_index").write_text("no folder can be made here")
    (tmp_path / "cache").write_text("nor here")
    assert len(whole(spec)) == PER_SHARD


def test_fingerprints_differ_where_records_do(tmp_path):
    found = []
    for number, members in enumerate(
        (pictures(0), pictures(1), pictures(0, 6), [*pictures(0), ("0000.cls", b"3")])
    ):
        write_tar(tmp_path / str(number) / "a.tar", members)
        found.append(fingerprint_of(whole(f"webdataset:{tmp_path}/{number}/a.tar")))
    assert len(set(found)) == 4
    write_tar(tmp_path / "copy" / "a.tar", pictures(0))
    assert fingerprint_of(whole(f"webdataset:{tmp_path}/copy/a.tar")) == found[0]


def broken_shards(folder):
    """Of seven pictures each: whole, cut short in the fifth picture, empty, one no picture."""
    write_tar(folder / "0.tar", pictures(0))
    path = write_tar(folder / "1.tar", pictures(10))
    with tarfile.open(path) as tar:
        fifth = tar.getmembers()[4]
    path.write_bytes(path.read_bytes()[: fifth.offset_data + 100])
    (folder / "2.tar").write_bytes(b"")
    members = pictures(20)
    members[2] = ("0022.png", b"a text that was renamed")
    write_tar(folder / "3.tar", members)
    write_tar(folder / "4.tar", [("readme.txt", b"none")])
    return f"webdataset:{folder}/*.tar"


def test_broken_shards_are_named_and_replaced(tmp_path, caplog):
    spec = broken_shards(tmp_path)
    config = dataclasses.replace(SMALL, source=spec, val_source="synthetic", max_broken=0.3)
    total = 7 + 5 + 1 + 7
    assert len(whole(spec)) == total
    assert lines(caplog) == [
        f"{spec}: 2 of 5 tar files are damaged, and what follows the damage is not read: "
        "1.tar is cut short within member 5, 0014.png, 2.tar is empty",
        f"{spec}: 1 of 5 tar files hold no picture: 4.tar",
    ]
    caplog.clear()
    iterator = train_batches(config, global_batch=total, shard_index=0, shard_count=1)
    batches = [next(iterator) for _ in range(3)]
    stats = iterator.stats()
    iterator.close()
    assert stats["broken_ids"] == ["1.tar/0014.png", "2.tar", "3.tar/0022.png"]
    expected = [*range(11), 13, 13, 13, 14, 16, 16, 17, 18, 19]  # 11 and 12 become 13, 15 is 16
    for batch in batches:
        np.testing.assert_array_equal(np.sort(batch["index"]), expected)
    assert sorted(lines(caplog, "absl")) == [
        "Skipping broken record 1.tar/0014.png: the file is cut short within member 5, 0014.png",
        "Skipping broken record 2.tar: the file is empty",
        "Skipping broken record 3.tar/0022.png: not a picture of a known format",
    ]
    assert_same(take(config, 3, start=2, shards=2), take(config, 5)[2:])
    with pytest.raises(UserError, match=r"records are broken.*max_broken"):
        take(dataclasses.replace(config, max_broken=0.05, threads=0), 3, global_batch=total)


def test_damage_between_members_is_found(tmp_path, caplog):
    """Where tarfile takes a damaged header for the end of the file."""
    path = write_tar(tmp_path / "a.tar", pictures(0))
    with tarfile.open(path) as tar:
        fifth = tar.getmembers()[4]
    data = bytearray(path.read_bytes())
    data[fifth.offset : fifth.offset + 200] = b"\xff" * 200
    path.write_bytes(data)
    source = whole(f"webdataset:{path}")
    assert len(source) == 5
    assert [record.id for record in (source[n] for n in range(4))] == [
        f"a.tar/{n:04d}.png" for n in range(4)
    ]
    with pytest.raises(BrokenRecord, match="damaged after 4 members, at byte"):
        source[4]
    assert "1 of 1 tar files are damaged" in lines(caplog)[0]


def test_a_negative_size_ends_the_list(tmp_path):
    """Of minus one block: tarfile alone would find the same header for ever."""
    path = write_tar(tmp_path / "a.tar", pictures(0, 2))
    data = bytearray(path.read_bytes())
    data[124:136] = (-512).to_bytes(12, "big", signed=True)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.tar is no tar"):
        whole(f"webdataset:{path}")


def test_a_tar_that_shrinks_while_it_is_read(tmp_path):
    path = write_tar(tmp_path / "a.tar", pictures(0))
    source = whole(f"webdataset:{path}")
    path.write_bytes(path.read_bytes()[:5000])
    assert source[0].content == encoded(0)
    with pytest.raises(BrokenRecord, match="cut short since it was opened"):
        source[6]


@pytest.mark.parametrize(("mode", "tool"), [("gz", "gunzip"), ("bz2", "bunzip2"), ("xz", "unxz")])
def test_compressed_tars_are_refused(tmp_path, mode, tool):
    path = tmp_path / f"a.tar.{mode}"
    with tarfile.open(path, f"w:{mode}") as tar:
        tar.add(__file__)
    with pytest.raises(UserError, match=f"is compressed.*unpack it with '{tool} {path}'") as raised:
        whole(f"webdataset:{path}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.tar is empty; make the tar files again"),
        (b"no tar at all" * 100, r"a\.tar is no tar \(.*\); make the tar files again"),
        ([("a.txt", b"x")], "holds no pictures and no videos: check the pattern"),
        ([("a.jxl", b"x")], r"it holds 1 file of a kind that is not read: \.jxl \(1\); convert"),
    ],
)
def test_nothing_to_read_is_one_line(tmp_path, content, message):
    if isinstance(content, bytes):
        (tmp_path / "a.tar").write_bytes(content)
    else:
        write_tar(tmp_path / "a.tar", content)
    with pytest.raises(UserError, match=message) as raised:
        whole(f"webdataset:{tmp_path}/a.tar")
    assert "\n" not in str(raised.value)


def test_a_tar_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", pictures(0))

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tar_index, "_listed", refuse)
    with pytest.raises(UserError, match=r"a\.tar cannot be read \(Permission denied\)"):
        whole(f"webdataset:{path}")


def test_damaged_tars_give_a_source_or_one_line(tmp_path):
    """Any bytes: 200 damaged headers."""
    good = write_tar(tmp_path / "good.tar", pictures(0, 3), tarfile.PAX_FORMAT).read_bytes()
    with tarfile.open(tmp_path / "good.tar") as tar:
        headers = [member.offset for member in tar.getmembers()]
    rng = np.random.default_rng(0)
    path, said, broken = tmp_path / "a.tar", [], 0
    for trial in range(200):
        data = bytearray(good[: int(rng.integers(len(good)))] if trial % 4 == 0 else good)
        for _ in range(3):
            place = int(rng.choice(headers)) + int(rng.integers(512))
            if place < len(data):
                data[place] = int(rng.integers(256))
        path.write_bytes(data)
        os.utime(path, ns=(trial, trial))
        try:
            source = whole(f"webdataset:{path}")
        except UserError as error:
            said.append(str(error))
            continue
        for index in range(len(source)):
            try:
                assert isinstance(source[index].content, bytes)
            except BrokenRecord:
                broken += 1
    assert said
    assert broken
    assert not any("\n" in line for line in said)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a-{000..002}.tar", ["a-000.tar", "a-001.tar", "a-002.tar"]),
        ("a-{8..11}.tar", ["a-8.tar", "a-9.tar", "a-10.tar", "a-11.tar"]),
        ("a-{08..10}", ["a-08", "a-09", "a-10"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}/{0..1}", ["a/0", "a/1", "b/0", "b/1"]),
        ("x{a,{1..2}}", ["xa", "x1", "x2"]),
        ("{plain}-{", ["{plain}-{"]),
    ],
)
def test_braces(pattern, expected):
    """As bash expands them; the nested one in another order, which does not matter."""
    assert sorted(shard_files.expand_braces(pattern)) == sorted(expected)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{root}/none-*.tar", "matches no file: check the pattern"),
        ("{root}/none.tar", "matches no file: check the pattern"),
        ("{root}", "is a folder: name the files in it"),
        (
            "{root}/train-{{000..004}}.tar",
            r"names 5 files, of which 2 are not there \(train-003.tar is one\)",
        ),
        ("s3://bucket/a.tar", "is not a path on a file system"),
        ("{root}/{{0..9999999}}.tar", "names more than 1,000,000 files"),
    ],
)
def test_mistakes_in_patterns(tmp_path, pattern, message):
    shards_of(tmp_path)
    with pytest.raises(UserError, match=message) as raised:
        make_source(f"webdataset:{pattern.format(root=tmp_path)}", "train")
    assert "\n" not in str(raised.value)


def test_shards_of_several_folders_are_told_apart(tmp_path):
    for name in "ab":
        write_tar(tmp_path / name / "0.tar", pictures(0, 2))
    ids = [record.id for record in all_of(whole(f"webdataset:{tmp_path}/{{b,a}}/*.tar"))]
    assert ids == [f"{name}/0.tar/{n:04d}.png" for name, n in itertools.product("ab", range(2))]
