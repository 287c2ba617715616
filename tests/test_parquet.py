"""Parquet files. Oracles: what was written with pyarrow, and folders of the same files."""

import collections
import dataclasses
import io
import json
import sys
import threading

import numpy as np
import pytest
from opened_sources import lines, whole
from PIL import Image
from shapes import data_config
from streams import assert_same, take, take_eval

from bsq_jax.core.errors import UserError
from bsq_jax.core.once import say_once
from bsq_jax.data.batches import EpochOrder
from bsq_jax.data.records import NO_LABEL, BrokenRecord, classes_of, fingerprint_of, label_of
from bsq_jax.data.sources import make_source, parquet, parquet_file
from bsq_jax.data.sources.row_group_cache import RowGroupCache
from bsq_jax.data.train_pipeline import train_batches

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

SMALL = data_config(
    source="synthetic", image_size=16, resize=24, eval_resize=24, scale=(1.0, 1.5), seed=7
)
PER_FILE, PER_GROUP = 13, 4


@pytest.fixture(autouse=True)
def said_anew():
    say_once.cache_clear()


def encoded(number, shape=(30, 40)):
    pixels = np.random.default_rng(number).integers(0, 256, (*shape, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def as_structs(contents):
    return [{"bytes": content, "path": f"{n}.png"} for n, content in enumerate(contents)]


def write(path, columns, names=None, group=PER_GROUP, **options):
    """Writes columns as the Hugging Face libraries do, with the names of classes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    pq.write_table(table, path, row_group_size=group, **options)
    return path


def contents(first, count=PER_FILE):
    return [encoded(number) for number in range(first, first + count)]


def files_of(folder, count=3):
    for file in range(count):
        pictures = contents(file * PER_FILE)
        labels = [(file + row) % 3 for row in range(PER_FILE)]
        write(
            folder / f"train-{file:05d}-of-{count:05d}.parquet",
            {"image": as_structs(pictures), "label": labels},
            names=["owl", "cat", "dog"],
        )
    return f"parquet:{folder}/train-*.parquet"


@pytest.fixture
def few_groups(monkeypatch):
    """Two row groups in use at a time, and room for four."""
    size = len(encoded(0)) * PER_GROUP
    monkeypatch.setattr(parquet, "_IN_USE", int(2.5 * size))
    monkeypatch.setattr(parquet, "_BUDGET", 5 * size)
    return size


@pytest.mark.smoke
def test_pictures_are_read_in_any_order(tmp_path):
    source = whole(files_of(tmp_path))
    assert not source.videos
    assert len(source) == 3 * PER_FILE
    for index in np.random.default_rng(0).permutation(3 * PER_FILE):
        file, row = divmod(int(index), PER_FILE)
        record_id = f"train-{file:05d}-of-00003.parquet#{row}"
        assert tuple(source[int(index)]) == (record_id, encoded(int(index)))
        assert source.id(int(index)) == record_id


@pytest.mark.parametrize(
    "images",
    [
        pa.array(contents(0), pa.binary()),
        pa.array(contents(0), pa.large_binary()),
        pa.array(as_structs(contents(0))),
        pa.array([{"bytes": content} for content in contents(0)]),
    ],
    ids=["binary", "large binary", "struct with path", "struct"],
)
@pytest.mark.parametrize("name", ["image", "img", "image.jpg"])
@pytest.mark.parametrize("compression", ["snappy", "none", "zstd"])
def test_columns_of_pictures(tmp_path, images, name, compression):
    write(
        tmp_path / "a.parquet", {"id": list(range(PER_FILE)), name: images}, compression=compression
    )
    source = whole(f"parquet:{tmp_path}/a.parquet")
    assert [source[n].content for n in range(PER_FILE)] == contents(0)


@pytest.mark.parametrize("sizes", [(), ((16, 16), (16, 24))])
def test_the_same_stream_as_from_a_folder(tmp_path, sizes):
    """Where all row groups fit into memory the order is that of any other source."""
    spec = files_of(tmp_path / "files")
    for number in range(3 * PER_FILE):
        (tmp_path / f"{number:04d}.png").write_bytes(encoded(number))
    config = dataclasses.replace(SMALL, source=spec, val_source="synthetic", sizes=sizes)
    folder = dataclasses.replace(config, source=f"folder:{tmp_path}")
    assert_same(take(config, 6), take(folder, 6))


@pytest.mark.parametrize("threads", [0, 3])
def test_resumed_on_any_number_of_hosts(tmp_path, few_groups, threads):
    config = dataclasses.replace(SMALL, source=files_of(tmp_path))
    expected = take(config, 12)
    changed = dataclasses.replace(config, threads=threads)
    assert_same(take(changed, 5, start=7, shards=2), expected[7:])
    assert_same(take(changed, 2, start=10, shards=4), expected[10:])


def test_read_by_processes(tmp_path):
    """In several sizes, where the source itself is handed to them."""
    sizes = ((16, 16), (16, 24))
    config = dataclasses.replace(SMALL, source=files_of(tmp_path), sizes=sizes)
    changed = dataclasses.replace(config, workers=2, threads=0)
    assert_same(take(changed, 3, start=2), take(config, 5)[2:])


def test_each_row_group_is_read_once_an_epoch(tmp_path, few_groups, monkeypatch):
    config = dataclasses.replace(SMALL, source=files_of(tmp_path), val_source="synthetic")
    read = collections.Counter()
    real = parquet_file.ParquetFile.read

    def counted(self, group):
        read[self.path.name, group] += 1
        return real(self, group)

    monkeypatch.setattr(parquet_file.ParquetFile, "read", counted)
    index = np.concatenate(
        [batch["index"] for batch in take(config, 13, global_batch=3 * PER_FILE // 13)]
    )
    np.testing.assert_array_equal(np.sort(index), np.arange(3 * PER_FILE))
    assert len(read) == 12
    assert set(read.values()) == {1}


def test_the_order_of_groups():
    """Each epoch a permutation; in each part of it only so many groups; all mixed."""
    groups = np.repeat(np.arange(10) * 3, 7)
    order = EpochOrder(70, 5, groups=groups, groups_at_once=4)
    epochs = np.array([[order[epoch * 70 + place] for place in range(70)] for epoch in range(3)])
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(70))
        parts = [set(groups[part]) for part in (epoch[:28], epoch[28:56], epoch[56:])]
        assert [len(part) for part in parts] == [4, 4, 2]
        assert len(set.union(*parts)) == 10
        assert len(set(groups[epoch[:14]])) > 2  # within a part groups are mixed
    assert len({tuple(groups[epoch]) for epoch in epochs}) == 3
    plain, all_at_once = EpochOrder(70, 5), EpochOrder(70, 5, groups=groups, groups_at_once=10)
    assert [plain[n] for n in range(140)] == [all_at_once[n] for n in range(140)]


class Column:
    def __init__(self, nbytes):
        self.nbytes = nbytes


def test_the_cache_of_row_groups_is_bounded_and_reads_once():
    cache, read, lock = RowGroupCache(100), collections.Counter(), threading.Lock()

    def get(number, nbytes):
        def load():
            with lock:
                read[number] += 1
            return Column(nbytes)

        assert cache.get(number, load).nbytes == nbytes

    threads = [
        threading.Thread(target=lambda: [get(n, 30) for n in (0, 1, 2) * 9]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == {0: 1, 1: 1, 2: 1}
    assert cache.nbytes == 90
    get(3, 30)  # drops 0, which was used longest ago
    assert cache.nbytes == 90
    get(2, 30)
    assert read[2] == 1
    get(0, 30)
    assert read[0] == 2
    get(4, 500)  # alone larger than the budget: it is the only one
    assert cache.nbytes == 500
    get(4, 500)
    assert read[4] == 1


def test_one_pattern_is_divided_and_two_are_not(tmp_path):
    spec = files_of(tmp_path)
    every = [whole(spec).id(n) for n in range(3 * PER_FILE)]
    val, train = make_source(spec, "val"), make_source(spec, "train")
    assert [val[n].id for n in range(len(val))] == every[::10]
    assert [train[n].id for n in range(len(train))] == [
        name for number, name in enumerate(every) if number % 10
    ]
    two = f"parquet:{tmp_path}/train-0000[01]*|{tmp_path}/train-00002*"
    assert len(make_source(two, "train")) == 2 * PER_FILE
    rows = take_eval(dataclasses.replace(SMALL, source=two), global_batch=4, shards=2)
    np.testing.assert_array_equal(rows["index"][rows["mask"] > 0], np.arange(PER_FILE))


def test_classes_have_the_names_that_are_stored(tmp_path):
    spec = files_of(tmp_path)
    source = whole(spec)
    assert classes_of(source) == ("owl", "cat", "dog")
    labels = [label_of(source, n) for n in range(len(source))]
    assert labels == [(n // PER_FILE + n % PER_FILE) % 3 for n in range(len(source))]
    train = make_source(spec, "train")
    (batch,) = take(dataclasses.replace(SMALL, source=spec, labels=True), 1)
    np.testing.assert_array_equal(
        batch["label"], [label_of(train, int(index)) for index in batch["index"]]
    )


def test_classes_of_names_have_the_numbers_of_training(tmp_path):
    for name, labels in (("train", ["owl", "cat"]), ("val", ["owl", "dog"])):
        write(tmp_path / f"{name}.parquet", {"image": contents(0, 2), "label": labels})
    source = make_source(f"parquet:{tmp_path}/train.parquet|{tmp_path}/val.parquet", "val")
    assert classes_of(source) == ("cat", "owl")
    assert [label_of(source, n) for n in range(2)] == [1, NO_LABEL]


@pytest.mark.parametrize(
    ("stored", "classes", "labels"),
    [
        ([2, 0, None, -1], ("0", "1", "2"), [2, 0, NO_LABEL, NO_LABEL]),
        (["b", "a", None, ""], ("a", "b"), [1, 0, NO_LABEL, NO_LABEL]),
        ([10**9, 5, 5, 10**9], ("5", "1000000000"), [1, 0, 0, 1]),
        ([True, False, True, True], ("0", "1"), [1, 0, 1, 1]),
        ([0.5, 1.5, 2.5, 3.5], (), [NO_LABEL] * 4),
        ([[1], [2], [3], []], (), [NO_LABEL] * 4),
        ([None] * 4, (), [NO_LABEL] * 4),
    ],
)
def test_columns_of_classes(tmp_path, stored, classes, labels):
    write(tmp_path / "a.parquet", {"image": contents(0, 4), "label": stored})
    source = whole(f"parquet:{tmp_path}/a.parquet")
    assert classes_of(source) == classes
    assert [label_of(source, n) for n in range(4)] == labels


def damage(path, group):
    """Overwrites the pictures of a row group."""
    column = pq.read_metadata(path).row_group(group).column(0)
    data = bytearray(path.read_bytes())
    start = column.data_page_offset
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)


def test_broken_files_and_rows_are_named_and_replaced(tmp_path, caplog):
    write(tmp_path / "0.parquet", {"image": as_structs(contents(0, 8))})
    pictures = contents(10, 8)
    pictures[1], pictures[2], pictures[3] = None, b"a text that was renamed", b""
    write(tmp_path / "1.parquet", {"image": as_structs(pictures)})
    whole_file = write(tmp_path / "2.parquet", {"image": as_structs(contents(20, 8))}).read_bytes()
    (tmp_path / "2.parquet").write_bytes(whole_file[:-50])
    (tmp_path / "3.parquet").write_bytes(b"")
    damage(write(tmp_path / "4.parquet", {"image": as_structs(contents(40, 8))}), 0)
    write(tmp_path / "5.parquet", {"image": pa.array([], pa.binary())})
    spec = f"parquet:{tmp_path}/*.parquet"
    total = 8 + 8 + 1 + 1 + 8
    config = dataclasses.replace(SMALL, source=spec, val_source="synthetic", max_broken=0.4)
    assert len(whole(spec)) == total
    (line,) = lines(caplog)
    assert line.startswith(f"{spec}: 2 of 6 files cannot be read: 2.parquet is no Parquet file")
    assert "3.parquet is empty" in line
    caplog.clear()
    iterator = train_batches(config, global_batch=total, shard_index=0, shard_count=1)
    batches = [next(iterator) for _ in range(3)]
    stats = iterator.stats()
    iterator.close()
    broken = [f"1.parquet#{n}" for n in (1, 2, 3)] + ["2.parquet", "3.parquet"]
    assert stats["broken_ids"] == broken + [f"4.parquet#{n}" for n in range(4)]
    # 9, 10 and 11 become 12; 16 to 21 become 22.
    expected = [*range(9), *[12] * 4, 13, 14, 15, *[22] * 7, 23, 24, 25]
    for batch in batches:
        np.testing.assert_array_equal(np.sort(batch["index"]), expected)
    said = dict(message.split(": ", 1) for message in lines(caplog, "absl"))
    assert said["Skipping broken record 1.parquet#1"] == "the row has no picture"
    assert said["Skipping broken record 1.parquet#2"] == "not a picture of a known format"
    assert said["Skipping broken record 1.parquet#3"] == "the file is empty"
    assert said["Skipping broken record 3.parquet"] == "the file is empty"
    assert "row group 0 of the file cannot be read" in said["Skipping broken record 4.parquet#3"]
    assert len(said) == len(broken) + 4
    assert_same(take(config, 3, start=2, shards=2), take(config, 5)[2:])
    with pytest.raises(UserError, match=r"records are broken.*max_broken"):
        take(dataclasses.replace(config, max_broken=0.05, threads=0), 3, global_batch=total)


def test_a_broken_row_group_is_read_once(tmp_path, monkeypatch):
    damage(write(tmp_path / "a.parquet", {"image": as_structs(contents(0, 8))}), 1)
    source = whole(f"parquet:{tmp_path}/a.parquet")
    assert source[3].content == encoded(3)
    read = []
    real = parquet_file.ParquetFile.read
    monkeypatch.setattr(
        parquet_file.ParquetFile,
        "read",
        lambda self, group: read.append(group) or real(self, group),
    )
    for index in (5, 6, 5):
        with pytest.raises(BrokenRecord, match="row group 1 of the file cannot be read"):
            source[index]
    assert read == [1]


def test_a_file_that_changed_is_broken(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": as_structs(contents(0, 8))})
    source = whole(f"parquet:{path}")
    write(path, {"image": as_structs(contents(0, 3))})
    with pytest.raises(BrokenRecord, match="has changed since it was opened"):
        source[0]
    with pytest.raises(BrokenRecord, match="row group 1 of the file cannot be read"):
        source[5]
    source = whole(f"parquet:{path}")
    path.unlink()
    with pytest.raises(FileNotFoundError):  # as of a file of a folder
        source[0]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"text": ["a"], "label": [1]},
            r"a\.parquet has no column of pictures.*\(it has text: string, label: int64\)",
        ),
        ({"image": ["a.png"]}, "has no column of pictures"),
        (
            {"left": [b"x"], "right": [b"x"]},
            r"has no column 'image' and several that may be pictures \(left, right\): name one",
        ),
        ({"image": pa.array([], pa.binary())}, r"has no records for train \(0 in all\)"),
    ],
)
def test_files_without_pictures_are_one_line(tmp_path, columns, message):
    write(tmp_path / "a.parquet", columns)
    with pytest.raises(UserError, match=message) as raised:
        whole(f"parquet:{tmp_path}/*.parquet")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"no Parquet file" * 9])
def test_nothing_but_broken_files_is_one_line(tmp_path, content):
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"holds no pictures: a\.parquet is .*get the") as raised:
        whole(f"parquet:{tmp_path}/a.parquet")
    assert "\n" not in str(raised.value)


def test_mistakes_in_patterns(tmp_path):
    with pytest.raises(UserError, match="matches no file"):
        whole(f"parquet:{tmp_path}/*.parquet")
    with pytest.raises(UserError, match="is a folder: name the files in it"):
        whole(f"parquet:{tmp_path}")


def test_without_pyarrow_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match="parquet:a needs 'pip install pyarrow'") as raised:
        make_source("parquet:a", "train")
    assert "\n" not in str(raised.value)


def test_large_row_groups_are_told_of(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(parquet, "_IN_USE", 1000)
    source = whole(files_of(tmp_path, 1))
    assert source.groups_at_once == 1
    (line,) = lines(caplog)
    assert "is read and kept whole: write the files with row groups of 100 rows" in line


def test_fingerprints_differ_where_records_do(tmp_path):
    def fingerprint(name, group=PER_GROUP, **columns):
        path = write(tmp_path / name / "a.parquet", columns, group=group)
        return fingerprint_of(whole(f"parquet:{path}"))

    first = fingerprint("0", image=contents(0))
    assert fingerprint("copy", image=contents(0)) == first
    others = [
        fingerprint("1", image=contents(0, 12)),
        fingerprint("2", image=contents(0), label=[1] * PER_FILE),
        fingerprint("3", image=contents(0), group=5),
    ]
    assert len({first, *others}) == 4
