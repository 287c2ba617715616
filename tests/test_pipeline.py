"""The pipeline, against what it promises: the same stream for every host count, start and thread.

The pictures say who they are, so batches are checked against the transforms used by hand.
"""

import dataclasses
import threading

import numpy as np
import pytest
from PIL import Image
from shapes import data_config
from streams import assert_same, take, take_eval

from bsq_jax.core.errors import UserError
from bsq_jax.data import transforms
from bsq_jax.data.eval_pipeline import eval_batches, eval_examples, num_examples
from bsq_jax.data.reader import FrameCache
from bsq_jax.data.sources import make_source
from bsq_jax.data.train_pipeline import train_batches

SMALL = data_config(
    source="synthetic", image_size=16, resize=24, eval_resize=24, scale=(1.0, 1.5), seed=7
)


def folder_of(path, count, side=(30, 40)):
    rng = np.random.default_rng(0)
    for number in range(count):
        image = Image.fromarray(rng.integers(0, 256, (*side, 3), np.uint8))
        image.save(path / f"{number:02d}.jpg")
    return path


@pytest.mark.smoke
def test_batches_have_the_promised_shapes():
    (batch,) = take(dataclasses.replace(SMALL, image_size=(16, 8)), 1)
    assert batch["pixels"].shape == (8, 1, 16, 8, 3)
    assert batch["pixels"].dtype == np.uint8
    np.testing.assert_array_equal(batch["frames"], np.ones(8))
    assert batch["frames"].dtype == np.int32
    assert batch["index"].shape == (8,)
    assert batch["index"].dtype == np.int64


@pytest.mark.parametrize("shards", [2, 4])
def test_the_global_stream_is_the_same_for_any_number_of_hosts(shards):
    assert_same(take(SMALL, 12, shards=shards), take(SMALL, 12))


@pytest.mark.parametrize("start", [1, 7, 11])
def test_resuming_gives_what_was_left(start):
    assert_same(take(SMALL, 12 - start, start=start, shards=2), take(SMALL, 12)[start:])


@pytest.mark.parametrize("change", [{"threads": 0}, {"threads": 5, "prefetch": 9}, {"cache_mb": 0}])
def test_threads_and_cache_change_nothing(change):
    assert_same(take(dataclasses.replace(SMALL, **change), 12), take(SMALL, 12))


def test_the_cache_gives_what_files_give(tmp_path):
    config = dataclasses.replace(SMALL, source=f"folder:{folder_of(tmp_path, 6, (300, 400))}")
    assert_same(take(config, 6), take(dataclasses.replace(config, cache_mb=0), 6))


def test_every_epoch_is_a_permutation_of_its_own():
    index = np.concatenate([batch["index"] for batch in take(SMALL, 24)])
    epochs = index.reshape(3, 64)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(64))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])
    assert not np.array_equal(epochs[0], np.arange(64))


def test_a_batch_longer_than_an_epoch():
    config = dataclasses.replace(SMALL, source="photos", threads=3)
    index = np.concatenate([batch["index"] for batch in take(config, 3, global_batch=32)])
    for epoch in index.reshape(-1, 8):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(8))


def test_seeds_differ_in_order():
    one, other = take(SMALL, 1), take(dataclasses.replace(SMALL, seed=8), 1)
    assert not np.array_equal(one[0]["index"], other[0]["index"])


def test_seeds_and_positions_differ_in_augmentation(tmp_path):
    """One picture only, so that nothing but the augmentation can differ."""
    spec = f"folder:{folder_of(tmp_path, 1, (300, 400))}"
    config = dataclasses.replace(SMALL, source=spec, val_source="synthetic")
    crops = [
        crop.tobytes()
        for seed in (7, 8)
        for batch in take(dataclasses.replace(config, seed=seed), 4)
        for crop in batch["pixels"]
    ]
    assert len(set(crops)) > 60  # of 64; a few of the possible windows may come twice


def test_crops_are_windows_of_the_resized_picture_half_of_them_mirrored():
    config = dataclasses.replace(SMALL, scale=(1.0, 1.0), resize=18)
    source = make_source("synthetic", "train")
    mirrored = 0
    batches = take(config, 16)
    for batch in batches:
        for index, pixels in zip(batch["index"], batch["pixels"], strict=True):
            whole = transforms.resize_short_side(source[int(index)].content, 18)
            windows = [whole[y : y + 16, x : x + 16] for y in range(3) for x in range(3)]
            plain = any(np.array_equal(pixels[0], window) for window in windows)
            turned = any(np.array_equal(pixels[0], window[:, ::-1]) for window in windows)
            assert plain or turned
            mirrored += turned
    assert 40 < mirrored < 88  # 64 of 128 expected, 4.2 standard deviations
    for batch in take(dataclasses.replace(config, flip=False), 4):
        for index, pixels in zip(batch["index"], batch["pixels"], strict=True):
            whole = transforms.resize_short_side(source[int(index)].content, 18)
            windows = [whole[y : y + 16, x : x + 16] for y in range(3) for x in range(3)]
            assert any(np.array_equal(pixels[0], window) for window in windows)


def test_the_asked_share_of_crops_has_permuted_channels():
    config = dataclasses.replace(SMALL, flip=False)
    plain = np.concatenate([batch["pixels"] for batch in take(config, 16)])
    share = dataclasses.replace(config, permute_channels=0.5)
    some = np.concatenate([batch["pixels"] for batch in take(share, 16)])
    changed = np.any(plain != some, axis=(1, 2, 3, 4))
    # Half of the 128, of which one order in six is the old one: 53 expected.
    assert 30 < changed.sum() < 76
    np.testing.assert_array_equal(np.sort(plain, axis=-1), np.sort(some, axis=-1))


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("global_batch", [4, 12, 100])
def test_evaluation_shows_each_example_once_and_masks_the_rest(shards, global_batch):
    rows = take_eval(SMALL, global_batch=global_batch, shards=shards)
    assert len(rows["mask"]) % global_batch == 0
    assert len(rows["mask"]) - 64 < global_batch
    np.testing.assert_array_equal(rows["index"][:64], np.arange(64))
    np.testing.assert_array_equal(rows["mask"], (rows["index"] >= 0).astype(np.float32))
    assert rows["mask"].dtype == np.float32
    assert rows["mask"].sum() == num_examples(SMALL, "val") == 64
    assert not rows["pixels"][64:].any()


def test_evaluation_is_pillows_lanczos_and_a_centre_crop(tmp_path):
    folder_of(tmp_path, 4, (300, 401))
    spec = f"folder:{tmp_path}"
    config = dataclasses.replace(SMALL, val_source=spec, filter="box")
    rows = take_eval(config, global_batch=4)
    assert num_examples(config, "val") == 4  # the folder is not divided: train is elsewhere
    for number in range(4):
        with Image.open(tmp_path / f"{number:02d}.jpg") as opened:
            whole = np.asarray(opened.resize((32, 24), Image.Resampling.LANCZOS))
        np.testing.assert_array_equal(rows["pixels"][number, 0], whole[4:20, 8:24])


def test_evaluation_by_tiles_covers_the_picture(tmp_path):
    folder_of(tmp_path, 2, (30, 50))
    folder_of(tmp_path, 1, (70, 30))
    config = dataclasses.replace(SMALL, val_source=f"folder:{tmp_path}", eval_crop="tiles")
    config = dataclasses.replace(config, image_size=8)
    expected = []
    for path in sorted(tmp_path.iterdir()):
        with Image.open(path) as opened:
            whole = transforms.resize_short_side(np.asarray(opened), 24)
        rows, columns = whole.shape[0] // 8, whole.shape[1] // 8
        expected += [transforms.tile(whole, number, (8, 8)) for number in range(rows * columns)]
    assert len(expected) == 21 + 15  # 24 x 56 and 24 x 40
    assert num_examples(config, "val") == len(expected)
    rows = take_eval(config, global_batch=8, shards=2)
    np.testing.assert_array_equal(rows["pixels"][: len(expected), 0], expected)


def break_some(path):
    """Ten pictures, three of them damaged in three ways."""
    folder_of(path, 10)
    data = (path / "03.jpg").read_bytes()
    (path / "03.jpg").write_bytes(data[: len(data) // 2])
    (path / "04.jpg").write_bytes(b"")
    (path / "09.jpg").write_text("a text that was renamed")
    return f"folder:{path}"


def test_broken_files_are_replaced_by_the_next_counted_and_named(tmp_path, caplog):
    spec = break_some(tmp_path)
    config = dataclasses.replace(SMALL, source=spec, val_source="synthetic", max_broken=0.3)
    iterator = train_batches(config, global_batch=10, shard_index=0, shard_count=1)
    with caplog.at_level("WARNING"):
        batches = [next(iterator) for _ in range(5)]
    stats = iterator.stats()
    iterator.close()
    assert stats == {"examples": 50, "broken": 3, "broken_ids": ["03.jpg", "04.jpg", "09.jpg"]}
    for batch in batches:  # 3 and 4 become 5, 9 becomes 0
        np.testing.assert_array_equal(np.sort(batch["index"]), [0, 0, 1, 2, 5, 5, 5, 6, 7, 8])
    for name in stats["broken_ids"]:
        assert sum(f"broken record {name}" in message for message in caplog.messages) == 1
    assert_same(take(config, 5, global_batch=8, shards=4), take(config, 6, global_batch=8)[:5])


@pytest.mark.parametrize("eval_crop", ["center", "tiles"])
def test_broken_files_are_masked_in_evaluation(tmp_path, eval_crop):
    spec = break_some(tmp_path)
    config = dataclasses.replace(SMALL, val_source=spec, max_broken=0.3, eval_crop=eval_crop)
    config = dataclasses.replace(config, image_size=12 if eval_crop == "tiles" else 16)
    rows = take_eval(config, global_batch=4)
    good = rows["index"][rows["mask"] > 0]
    if eval_crop == "center":
        np.testing.assert_array_equal(good, [0, 1, 2, 5, 6, 7, 8])
    else:  # 24 x 32 holds 4 tiles; a readable header promises 4, an unreadable one is one example
        assert num_examples(config, "val") == 8 * 4 + 2
        np.testing.assert_array_equal(good, [*range(12), *range(17, 33)])
    assert not rows["pixels"][rows["mask"] == 0].any()


def test_too_many_broken_files_stop_the_run(tmp_path):
    config = dataclasses.replace(SMALL, source=break_some(tmp_path), val_source="synthetic")
    iterator = train_batches(
        dataclasses.replace(config, max_broken=0.2), global_batch=10, shard_index=0, shard_count=1
    )
    with pytest.raises(UserError, match=r"3 of 10 records are broken.*max_broken"):
        next(iterator)  # ten examples: a whole epoch
    iterator.close()
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of 10 records"):
        take(dataclasses.replace(config, max_broken=1.0), 1)


@pytest.mark.parametrize("split", ["train", "val"])
def test_each_of_four_hosts_stops_by_what_it_has_met_itself(tmp_path, split):
    count, shards = 200, 4
    broken = np.random.default_rng(0).permutation(count) % 2
    for number in range(count):
        Image.new("RGB", (24, 24), (number, 0, 0)).save(tmp_path / f"{number:03d}.png")
        if broken[number]:
            (tmp_path / f"{number:03d}.png").write_bytes(b"")
    other = {"train": {"val_source": "synthetic"}, "val": {"source": "synthetic"}}[split]
    spec = {"train": "source", "val": "val_source"}[split]
    base = dataclasses.replace(SMALL, threads=0, **{spec: f"folder:{tmp_path}"}, **other)

    def one_pass(max_broken):
        config = dataclasses.replace(base, max_broken=max_broken)
        sizes = {"global_batch": 4, "shard_count": shards}
        for shard in range(shards):
            make = train_batches if split == "train" else eval_batches
            iterator = make(config, **sizes, shard_index=shard)
            for _ in range(count // shards):
                next(iterator)
            iterator.close()

    one_pass(0.5)  # half of them are: that much was allowed
    # Of a host's 50 records a fifth are 10, and 9.5 for chance; it meets 25.
    with pytest.raises(UserError, match=r"\d+ of \d+ records are broken.*raise max_broken"):
        one_pass(0.2)


def test_the_cache_keeps_to_its_budget_and_never_evicts():
    cache = FrameCache(1)
    images = [np.full((256, 512, 3), n, np.uint8) for n in range(8)]  # 384 KiB: two fit in 1 MiB

    def fill():
        for key, image in enumerate(images):
            cache.put(key, 0, image)
            cache.put(0, 0, images[1])

    threads = [threading.Thread(target=fill) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = [key for key in range(8) if cache.get(key, 0) is not None]
    assert len(kept) == 2
    assert cache.full
    for key in kept:
        assert cache.get(key, 0)[0, 0, 0] in ((0, 1) if key == 0 else (key,))


def test_examples_opened_once_are_not_read_again(tmp_path):
    folder_of(tmp_path, 3)
    config = dataclasses.replace(SMALL, val_source=f"folder:{tmp_path}")
    examples = eval_examples(config)
    runs = []
    for _ in range(2):
        iterator = eval_batches(
            config, global_batch=3, shard_index=0, shard_count=1, examples=examples
        )
        runs.append(list(iterator))
        assert iterator.stats()["broken"] == 0
        iterator.close()
        for path in tmp_path.iterdir():
            path.write_bytes(b"")  # from here on only the cache knows the pictures
    assert_same(*runs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resize": 8}, "resize=8 is below image_size"),
        ({"eval_resize": 8}, "eval_resize=8 is below image_size"),
        ({"scale": (2.0, 1.0)}, "scale"),
        ({"min_frames": 2}, "min_frames"),
        ({"image_source": "photos"}, "image_source='photos' is not read"),
    ],
)
def test_config_mistakes(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SMALL, **change)


def test_batch_size_must_divide_over_hosts():
    with pytest.raises(UserError, match="batch size 6 is not a positive multiple of the 4 hosts"):
        train_batches(SMALL, global_batch=6, shard_index=0, shard_count=4)
    with pytest.raises(ValueError, match="shard_index"):
        eval_batches(SMALL, global_batch=8, shard_index=4, shard_count=4)


def test_sizes_are_kept_when_resize_is_zero():
    config = dataclasses.replace(SMALL, resize=0, scale=(1.0, 1.0), flip=False)
    source = make_source("synthetic", "train")
    (batch,) = take(config, 1)
    for index, pixels in zip(batch["index"], batch["pixels"], strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(
            source[int(index)].content, (16, 16, 3)
        ).reshape(-1, 16, 16, 3)
        assert (windows == pixels).all(axis=(1, 2, 3)).any()


def test_threads_that_may_not_read_ahead_are_refused():
    config = data_config(threads=2, prefetch=0)
    with pytest.raises(UserError, match=r"data\.prefetch=0.*data\.threads=2"):
        train_batches(config, global_batch=2, shard_index=0, shard_count=1)
