"""Batches from processes: the same stream, broken records and errors as without."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image
from shapes import data_config
from streams import assert_same, take

from bsq_jax.core.errors import UserError
from bsq_jax.data.train_pipeline import train_batches

SMALL = data_config(source="synthetic", image_size=16, resize=24, eval_resize=24, seed=7)


def alone(config, **options):
    return train_batches(config, global_batch=8, shard_index=0, shard_count=1, **options)


def read_on(batches):
    for _ in range(20):
        next(batches)


def children():
    return [process.pid for process in multiprocessing.active_children()]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Nine pictures of three shapes, and three files that are none."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(9):
        shape = [(30, 40), (40, 30), (36, 36)][number % 3]
        Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).save(folder / f"{number}.png")
    for number in range(3):
        (folder / f"broken{number}.png").write_bytes(b"no picture")
    return f"folder:{folder}"


@pytest.mark.parametrize(("workers", "threads"), [(1, 0), (2, 4)])
def test_any_number_gives_the_same_batches(pictures, workers, threads):
    """From a step in the middle of a run, on the second of two hosts, in several sizes."""
    config = dataclasses.replace(
        *(SMALL,), source=pictures, val_source="synthetic", max_broken=0.5, threads=threads
    )
    config = dataclasses.replace(config, sizes=((16, 16), (16, 24)), eval_crop="bucket")
    options = {"global_batch": 8, "shard_index": 1, "shard_count": 2, "start_step": 3}
    streams, broken = [], []
    for count in (0, workers):
        batches = train_batches(dataclasses.replace(config, workers=count), **options)
        streams.append([next(batches) for _ in range(9)])
        broken.append(batches.stats()["broken_ids"])
        assert batches.stats()["examples"] == sum(len(batch["index"]) for batch in streams[-1])
        batches.close()
    assert_same(streams[1], streams[0])
    assert broken[1] == broken[0] == [f"broken{number}.png" for number in range(3)]
    assert not children()


def test_one_size_resumed_on_all_hosts():
    expected = take(SMALL, 6)
    changed = dataclasses.replace(SMALL, workers=2, threads=0, prefetch=0)
    assert_same(take(changed, 3, start=3), expected[3:])


def test_a_mistake_in_the_data_is_told_once(pictures):
    config = dataclasses.replace(SMALL, source=pictures, val_source="synthetic", max_broken=0.1)
    batches = alone(dataclasses.replace(config, workers=1, threads=0))
    with pytest.raises(UserError, match="records are broken"):
        read_on(batches)
    batches.close()
    assert not children()


def test_a_dead_worker_is_one_line():
    batches = alone(dataclasses.replace(SMALL, workers=1, threads=0, prefetch=1))
    next(batches)
    (child,) = children()
    os.kill(child, signal.SIGINT)  # which is for the main process
    next(batches)
    os.kill(child, signal.SIGKILL)
    with pytest.raises(UserError, match=r"has ended \(.*exit code -9\): it was killed"):
        read_on(batches)
    batches.close()


def test_workers_end_with_the_process_that_started_them():
    """However it ends: here at once, as by `os._exit` after Ctrl-C."""
    program = (
        "import dataclasses, os, sys\n"
        "sys.path[:0] = sys.argv[1:]\n"
        "from test_workers import SMALL, alone, children\n"
        "if __name__ == '__main__':\n"
        "    batches = alone(dataclasses.replace(SMALL, workers=1, threads=2))\n"
        "    next(batches)\n"
        "    print(*children(), flush=True)\n"
        "    os._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, os.path.dirname(__file__)], capture_output=True, text=True
    )
    child = int(done.stdout)
    ended = threading.Event()
    for _ in range(600):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            ended.set()
            break
        time.sleep(0.1)
    assert ended.is_set()


def test_what_cannot_be_handed_over_is_said(monkeypatch):
    config = dataclasses.replace(SMALL, workers=1)
    lock = threading.Lock()
    monkeypatch.setattr(
        "bsq_jax.data.train_pipeline._make",
        lambda *_, lock=lock: pytest.fail("not reached") if lock.locked() else _some(config),
    )
    with pytest.raises(UserError, match=r"set data\.workers=0"):
        alone(config)


def _some(config):
    import grain

    return grain.MapDataset.range(4), []
