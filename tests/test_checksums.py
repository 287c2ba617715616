"""Checksums of a folder. Oracle: hashlib over each file, one by one."""

import concurrent.futures
import hashlib
import json
import logging

import pytest

from bsq_jax.training import checksums

SIZES = {"a": 0, "b": 5, "c": 5, "state/d/e": 3_000_000, "state/d/f": 1_000_000, "state/g": 70_000}
pytestmark = pytest.mark.smoke


@pytest.fixture
def folder(tmp_path):
    for number, (name, size) in enumerate(SIZES.items()):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * size)
    return tmp_path


def write_together(folder, processes, present=None):
    """What the processes of a run do, each in a thread of its own."""
    present = range(processes) if present is None else present
    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        parts = [pool.submit(checksums.write, folder, index, processes) for index in present]
    for part in parts:
        part.result()


def problems(folder, processes):
    return [checksums.problem(folder, index, processes) for index in range(processes)]


@pytest.mark.parametrize("processes", [1, 2, 3, 9])
def test_the_table_is_that_of_all_files(folder, processes):
    write_together(folder, processes)
    table = json.loads((folder / checksums.NAME).read_text())
    assert table["files"] == {
        name: [size, hashlib.sha256((folder / name).read_bytes()).hexdigest()]
        for name, size in SIZES.items()
    }
    assert sorted(path.name for path in folder.glob("*.json")) == [checksums.NAME]
    for readers in (1, 2, 4):
        assert problems(folder, readers) == [None] * readers


def test_each_file_is_read_by_one_process(folder, monkeypatch):
    read = []
    original = checksums._digest
    monkeypatch.setattr(
        checksums, "_digest", lambda p, **k: read.append(p.name) or original(p, **k)
    )
    write_together(folder, 3)
    assert sorted(read) == sorted(name.split("/")[-1] for name in SIZES)
    read.clear()
    assert problems(folder, 3) == [None] * 3
    assert sorted(read) == sorted(name.split("/")[-1] for name in SIZES)


def test_shares_are_of_about_the_same_size():
    sizes = {f"{number:03d}": 1000 + 37 * number % 900 for number in range(200)} | {"x": 0}
    parts = checksums.shares(sizes, 7)
    assert sorted(name for part in parts for name in part) == sorted(sizes)
    loads = [sum(sizes[name] for name in part) for part in parts]
    assert max(loads) - min(loads) <= max(sizes.values())
    assert parts == checksums.shares(dict(reversed(sizes.items())), 7)


@pytest.mark.parametrize("name", ["b", "state/d/e", "state/g"])
def test_damage_is_found_by_the_process_that_reads_the_file(folder, name):
    write_together(folder, 2)
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    found = problems(folder, 2)
    assert sorted(map(str, found)) == ["None", f"{name} differs from its checksum"]
    assert checksums.problem(folder) in found
    (folder / name).unlink()
    assert sorted(map(str, problems(folder, 2))) == ["None", f"{name} is missing"]


def test_another_process_that_gives_nothing_is_replaced(folder, monkeypatch, caplog):
    monkeypatch.setattr(checksums, "_PATIENCE", 0.2)
    with caplog.at_level(logging.WARNING, "bsq_jax"):
        write_together(folder, 3, present=[0, 2])
    assert "process 1 " in caplog.text
    assert problems(folder, 1) == [None]
    caplog.clear()
    (folder / checksums.NAME).unlink()
    with caplog.at_level(logging.WARNING, "bsq_jax"):
        write_together(folder, 2, present=[1])  # process 0 was killed
    assert not (folder / checksums.NAME).exists()
    assert "process 0 " in caplog.text


def test_an_error_in_a_thread_is_that_of_the_call(folder, monkeypatch):
    def broken(path, **_):
        raise OSError(5, "Input/output error", str(path))

    checksums.write(folder)
    monkeypatch.setattr(checksums, "_digest", broken)
    assert "cannot be read (Input/output error)" in checksums.problem(folder)
    with pytest.raises(OSError, match="Input/output error"):
        checksums.write(folder)
