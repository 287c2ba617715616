"""Storage that fails for a moment, and records that change. Oracle: what each step must hold."""

import errno

import numpy as np
import pytest
from shapes import data_config

from bsq_jax.core.errors import UserError
from bsq_jax.data import eval_pipeline, retry
from bsq_jax.data.eval_pipeline import eval_batches, eval_examples
from bsq_jax.data.reader import FrameCache, Reader
from bsq_jax.data.records import Record


def picture(number, side=8):
    return np.full((side, side, 3), 10 * number, np.uint8)


class Storage:
    """Eight pictures, whose reading fails as often as `failures` says, by number of the record."""

    name, videos = "storage", False

    def __init__(self, failures, reason=errno.EIO):
        self.failures, self.reason = dict(failures), reason

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if self.failures.get(index):
            self.failures[index] -= 1
            raise OSError(self.reason, "the storage is away")
        return Record(f"picture {index}", picture(index))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(retry, "PAUSES", (0.0, 0.0))


def reader_of(source, **changes):
    wanted = {"size": 8, "filter": "lanczos", "draft": False, "max_broken": 0.5}
    return Reader(source, cache=FrameCache(0), **{**wanted, **changes})


def first(count):
    return [0]


def test_a_moment_without_storage_breaks_no_record(caplog):
    reader = reader_of(Storage({5: 2}))
    (image,) = reader.read(5, first)
    np.testing.assert_array_equal(image, picture(5))
    assert reader.broken_ids() == []
    assert not caplog.messages


def test_a_longer_time_without_storage_skips_the_record_until_it_is_back():
    reader = reader_of(Storage({5: 3}))
    assert reader.read(5, first) is None
    assert reader.broken_ids() == ["storage#5"]
    (image,) = reader.read(5, first)
    np.testing.assert_array_equal(image, picture(5))
    assert reader.broken_ids() == []


def test_a_missing_file_is_not_tried_again():
    source = Storage({5: 3}, errno.ENOENT)
    assert reader_of(source).read(5, first) is None
    assert source.failures[5] == 2


def test_too_many_are_broken_whatever_the_reason():
    reader = reader_of(Storage({0: 9, 1: 9}), max_broken=0.1)
    assert reader.read(0, first) is None
    with pytest.raises(UserError, match="2 of 8 records are broken"):
        reader.read(1, first)


def tiles(monkeypatch, source, **changes):
    monkeypatch.setattr(eval_pipeline, "open_source", lambda config, split: source)
    config = data_config(
        **{"image_size": 4, "resize": 8, "eval_resize": 8, "eval_crop": "tiles", "threads": 0},
        **{"max_broken": 1.0, **changes},
    )
    examples = eval_examples(config)
    batches = eval_batches(config, global_batch=4, shard_index=0, shard_count=1, examples=examples)
    return examples, list(batches)


def test_tiles_are_counted_though_the_storage_was_away(monkeypatch):
    examples, batches = tiles(monkeypatch, Storage({5: 2}))
    assert len(examples.records) == 8 * 4
    assert sum(batch["mask"].sum() for batch in batches) == 8 * 4


def test_a_record_that_could_not_be_counted_is_masked_and_named(monkeypatch, caplog):
    examples, batches = tiles(monkeypatch, Storage({5: 3}))
    assert len(examples.records) == 7 * 4 + 1
    assert sum(batch["mask"].sum() for batch in batches) == 7 * 4
    assert "picture 5: its size could not be read" in caplog.text


class Changing:
    """Videos whose second half is of another size than the first."""

    name, videos = "changing", True

    def __len__(self):
        return 2

    def __getitem__(self, index):
        sides = [(8, 16 if number < 4 else 8) for number in range(8)]
        return Record(f"video {index}", [np.zeros((*side, 3), np.uint8) for side in sides])


def test_clips_of_another_size_than_was_counted_are_masked_and_named(monkeypatch, caplog):
    examples, batches = tiles(monkeypatch, Changing(), frames=2, eval_clips=2)
    assert len(examples.records) == 2 * 2 * 8
    masks = np.concatenate([batch["mask"] for batch in batches])
    np.testing.assert_array_equal(masks, np.tile(np.repeat([1, 0], 8), 2))
    assert "it is 8x8 pixels when it is read and was 8x16 when it was counted" in caplog.text
