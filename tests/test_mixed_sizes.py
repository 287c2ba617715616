"""Batches of several sizes. Oracles: a walk over all steps, windows and crops made with Pillow."""

import collections
import dataclasses
import math

import numpy as np
import pytest
from PIL import Image
from shapes import data_config
from streams import assert_same, take, take_eval

from bsq_jax.core.errors import UserError
from bsq_jax.data.batch_sizes import BatchSizes
from bsq_jax.data.eval_pipeline import eval_batches, eval_examples
from bsq_jax.data.mixed_sizes import batch_shapes, open_sizes
from bsq_jax.data.size_buckets import assign, choices
from bsq_jax.data.train_pipeline import train_batches

SIZES = ((16, 16), (8, 24), (24, 16), (8, 8))
# Height and width of the pictures of the folder: squares, wide and tall ones, extremes.
SHAPES = (
    [(40, 40)] * 5 + [(20, 61)] * 4 + [(31, 20)] * 3 + [(8, 8), (9, 9), (1, 1), (6, 400), (300, 5)]
)
EIGHT = BatchSizes(((0, 8),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(SHAPES):
        small = rng.integers(0, 256, (-(-height // 4), -(-width // 4), 3), np.uint8)
        large = np.repeat(np.repeat(small, 4, 0), 4, 1)[:height, :width]
        Image.fromarray(large).save(path / f"{number:02d}.png")
    return path


@pytest.fixture
def config(folder):
    return data_config(
        source=f"folder:{folder}", val_source="synthetic", image_size=16, resize=16, eval_resize=16,
        sizes=SIZES, seed=7, filter="bilinear", eval_filter="bilinear",
    )  # fmt: skip


def pictures_of(folder):
    return [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())]


class Walk:
    """All steps from the first: each size takes the next records of its own epochs in turn."""

    def __init__(self, batch=8, multiple=1):
        self.belongs = assign(np.array(SHAPES), SIZES)
        self.queues = {}
        self.batch, self.multiple, self.seen = batch, multiple, collections.Counter()

    def follow(self, batches):
        for batch in batches:
            size = batch["pixels"].shape[2:4]
            index = batch["index"]
            (own,) = set(self.belongs[index].tolist())
            assert SIZES.index(size) in choices(own, SIZES)
            fitting = self.batch * 256 // (size[0] * size[1])
            assert len(index) == max(fitting // self.multiple, 1) * self.multiple
            for record in index.tolist():
                queue = self.queues.setdefault(own, [])
                if not queue:
                    queue += np.flatnonzero(self.belongs == own).tolist()
                queue.remove(record)  # each once before any comes again
                self.seen[record] += 1


def test_each_step_has_one_size_and_each_epoch_every_record_once(config):
    walk = Walk()
    walk.follow(take(config, 256))
    assert set(walk.seen) == set(range(len(SHAPES)))
    # As often as all others, but for the last step of their size and stratification.
    assert max(walk.seen.values()) < 1.5 * min(walk.seen.values())


@pytest.mark.parametrize("shards", [2, 4])
def test_the_global_stream_is_the_same_for_any_number_of_hosts(config, shards):
    def whole(batches_of):
        return take_with(config, 12, **batches_of)

    assert_same(whole({"shards": shards, "multiple": 4}), whole({"shards": 1, "multiple": 4}))


def take_with(config, steps, *, shards=1, multiple, batch=8):
    """As `streams.take`, with what examples of a step are a multiple of."""
    hosts = []
    for shard in range(shards):
        iterator = train_batches(
            config, global_batch=batch, shard_index=shard, shard_count=shards, multiple=multiple
        )
        hosts.append([next(iterator) for _ in range(steps)])
        iterator.close()
    rows = zip(*hosts, strict=True)
    return [{key: np.concatenate([part[key] for part in row]) for key in row[0]} for row in rows]


@pytest.mark.parametrize("start", [1, 7, 65])
def test_resuming_gives_what_was_left(config, start):
    assert_same(take(config, 70 - start, start=start), take(config, 70)[start:])
    assert_same(take(config, 70 - start, start=start, earlier=EIGHT), take(config, 70)[start:])


@pytest.mark.parametrize("change", [{"threads": 0}, {"threads": 5, "prefetch": 9}, {"cache_mb": 0}])
def test_threads_and_cache_change_nothing(config, change):
    config = dataclasses.replace(config, resize=20, scale=(1.0, 1.5), permute_channels=0.3)
    assert_same(take(dataclasses.replace(config, **change), 12), take(config, 12))


def test_another_batch_size_goes_on_after_the_last_example_of_each_size(config):
    before = take(config, 40)
    after = take(config, 40, global_batch=12, shards=2, start=40, earlier=EIGHT)
    last = EIGHT.going_on(40, 12, 2)
    more = take(config, 40, global_batch=6, start=80, earlier=last)
    walk = Walk()
    walk.follow(before)
    walk.batch, walk.multiple = 12, 2
    walk.follow(after)
    walk.batch, walk.multiple = 6, 1
    walk.follow(more)


@pytest.mark.parametrize("multiple", [1, 4, 8])
def test_batches_keep_to_the_budget(config, multiple):
    walk = Walk(8, multiple)
    walk.follow(take_with(config, 64, multiple=multiple))


def test_seeds_differ(config):
    other = dataclasses.replace(config, seed=8)
    shapes = [[b["pixels"].shape for b in take(c, 30)] for c in (config, other)]
    assert shapes[0] != shapes[1]


def windows(image, size, side):
    """All windows of a picture that is resized to a short side."""
    height, width = image.shape[:2]
    scale = side / min(height, width)
    shape = max(side, round(width * scale)), max(side, round(height * scale))
    resized = np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.BILINEAR))
    found = np.lib.stride_tricks.sliding_window_view(resized, (*size, 3))
    return found.reshape(-1, *size, 3)


@pytest.mark.parametrize("resize", [16, 24, 0])
def test_crops_are_windows_of_the_picture_that_covers_its_size(config, folder, resize):
    """Of the pictures that are not extreme; with 0 they stay as they are where that is enough."""
    config = dataclasses.replace(config, resize=resize, flip=False)
    images = pictures_of(folder)
    for batch in take(config, 24):
        size = batch["pixels"].shape[2:4]
        for index, pixels in zip(batch["index"], batch["pixels"], strict=True):
            image = images[index]
            height, width = image.shape[:2]
            if max(height, width) > 100 or min(height, width) < 8:
                continue
            cover = max(size[0] / height, size[1] / width) * resize / 16
            side = math.ceil(min(height, width) * cover - 1e-9) or min(height, width)
            if not resize and (height < size[0] or width < size[1]):
                continue
            assert (windows(image, size, side) == pixels[0]).all(axis=(1, 2, 3)).any()


def test_a_whole_square_of_a_wide_picture_is_never_asked_for(folder, config):
    """A 20x61 picture that covers 8x24 loses less than a column and a row of its resized pixels."""
    (batch,) = [b for b in take(config, 30) if b["pixels"].shape[2:4] == (8, 24)][:1]
    wide = batch["index"][np.array([SHAPES[i] == (20, 61) for i in batch["index"]])]
    assert len(wide)
    assert windows(pictures_of(folder)[wide[0]], (8, 24), 8).shape[0] <= 2


def test_shapes_of_the_batches_are_known_before(config):
    sizes = open_sizes(config)
    wanted = {b["pixels"].shape[1:4] for b in take(config, 200)}
    assert set(batch_shapes(config, sizes)) == wanted == {(1, *size) for size in SIZES}
    assert_same(take_opened(config, sizes), take(config, 3))


def take_opened(config, sizes):
    iterator = train_batches(config, global_batch=8, shard_index=0, shard_count=1, sizes=sizes)
    found = [next(iterator) for _ in range(3)]
    iterator.close()
    return found


def test_clips_and_single_frames_have_sizes_too(config, folder):
    config = dataclasses.replace(
        config, source="motion", frames=4, min_frames=2, image_share=0.5, cache_mb=64,
        image_source=f"folder:{folder}", sizes=((24, 16), (16, 16)),
    )  # fmt: skip
    found = take(config, 40, global_batch=2)
    shapes = {batch["pixels"].shape[1:4] for batch in found}
    assert shapes == set(batch_shapes(config, open_sizes(config)))
    assert shapes == {(2, 16, 16), (4, 16, 16), (1, 16, 16), (1, 24, 16)}
    for batch in found:  # as many clips whatever their length
        assert len(batch["pixels"]) == 2 * 256 // math.prod(batch["pixels"].shape[2:4])
    assert_same(take(config, 6, start=34, global_batch=2), found[34:])


def test_broken_files_are_replaced_by_the_next_of_their_size(tmp_path, folder, config):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for number in (1, 6):  # one whose header is readable, one of which nothing is
        data = (tmp_path / f"{number:02d}.png").read_bytes()
        (tmp_path / f"{number:02d}.png").write_bytes(data[: len(data) // 2] if number < 2 else b"")
    config = dataclasses.replace(config, source=f"folder:{tmp_path}", max_broken=0.2)
    iterator = train_batches(config, global_batch=8, shard_index=0, shard_count=1)
    belongs = assign(np.array(SHAPES), SIZES)
    for _ in range(64):
        batch = next(iterator)
        assert len(set(belongs[batch["index"]])) == 1
        assert not {1, 6} & set(batch["index"].tolist())
    assert iterator.stats()["broken_ids"] == ["01.png", "06.png"]
    iterator.close()
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 17 records that belong to .* can be read"):
        take(dataclasses.replace(config, max_broken=1.0), 1)


# --- evaluation ---


def evaluated(config, folder):
    return dataclasses.replace(
        config, source="synthetic", val_source=f"folder:{folder}", eval_crop="bucket"
    )


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("batch", [4, 12])
def test_evaluation_shows_each_picture_once_in_batches_of_one_size(config, folder, shards, batch):
    config = evaluated(config, folder)
    belongs, seen = assign(np.array(SHAPES), SIZES), []
    hosts = []
    for shard in range(shards):
        iterator = eval_batches(
            config, global_batch=batch, shard_index=shard, shard_count=shards, multiple=4
        )
        hosts.append(list(iterator))
        iterator.close()
    for row in zip(*hosts, strict=True):
        whole = {key: np.concatenate([part[key] for part in row]) for key in row[0]}
        size, index = whole["pixels"].shape[2:4], whole["index"]
        assert len(index) == max(batch * 256 // math.prod(size) // 4, 1) * 4
        np.testing.assert_array_equal(whole["mask"], index >= 0)
        assert all(SIZES[belongs[i]] == size for i in index[index >= 0])
        assert not whole["pixels"][index < 0].any()
        seen += index[index >= 0].tolist()
    assert sorted(seen) == list(range(len(SHAPES)))


def test_evaluation_is_a_resize_that_covers_and_a_centre_crop(config, folder):
    config, images = evaluated(config, folder), pictures_of(folder)
    belongs = assign(np.array(SHAPES), SIZES)
    iterator = eval_batches(config, global_batch=4, shard_index=0, shard_count=1)
    for batch in iterator:
        for index, pixels in zip(batch["index"], batch["pixels"], strict=True):
            if index < 0 or max(SHAPES[index]) > 100:
                continue
            size, image = SIZES[belongs[index]], images[index]
            height, width = image.shape[:2]
            cover = max(size[0] / height, size[1] / width)
            side = math.ceil(min(height, width) * cover - 1e-9)
            shape = (side, round(width * side / height))
            if width < height:
                shape = (round(height * side / width), side)
            resized = Image.fromarray(image).resize(shape[::-1], Image.Resampling.BILINEAR)
            top, left = (shape[0] - size[0]) // 2, (shape[1] - size[1]) // 2
            wanted = np.asarray(resized)[top : top + size[0], left : left + size[1]]
            np.testing.assert_array_equal(pixels[0], wanted)
    iterator.close()


def test_extremes_are_enlarged_or_cut(tmp_path, config):
    """From 1x1 to 6000x100, in training and evaluation, with square sizes alone too."""
    for number, (height, width) in enumerate([(1, 1), (1, 6000), (6000, 1), (6000, 100), (2, 3)]):
        Image.new("RGB", (width, height), (10 + number, 0, 0)).save(tmp_path / f"{number}.png")
    for sizes in (((16, 16),), SIZES):
        for resize in (0, 16, 40):
            train = dataclasses.replace(
                config, source=f"folder:{tmp_path}", sizes=sizes, resize=resize
            )
            for batch in take(train, 12):
                colors = batch["pixels"][..., 0].max(axis=(1, 2, 3))
                np.testing.assert_array_equal(colors, batch["index"] + 10)
        shown = dataclasses.replace(evaluated(config, tmp_path), sizes=sizes)
        examples = eval_examples(shown)
        iterator = eval_batches(
            shown, global_batch=4, shard_index=0, shard_count=1, examples=examples
        )
        colors = {}
        for batch in iterator:
            for index, pixels in zip(batch["index"], batch["pixels"], strict=True):
                if index >= 0:
                    colors[int(index)] = set(pixels[..., 0].ravel().tolist())
        iterator.close()
        assert colors == {number: {10 + number} for number in range(5)}


def test_broken_files_are_masked_in_evaluation(tmp_path, folder, config):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "03.png").write_bytes(b"")
    config = dataclasses.replace(evaluated(config, tmp_path), max_broken=0.1)
    iterator = eval_batches(config, global_batch=4, shard_index=0, shard_count=1)
    found = {}
    for batch in iterator:
        found |= dict(zip(batch["index"].tolist(), batch["mask"].tolist(), strict=True))
    del found[-1]
    assert found == {number: float(number != 3) for number in range(len(SHAPES))}
    assert iterator.stats()["broken_ids"] == ["03.png"]
    iterator.close()


def test_without_buckets_evaluation_has_the_size_of_the_model(config):
    rows = take_eval(config, global_batch=16)
    assert rows["pixels"].shape == (64, 1, 16, 16, 3)


def test_the_same_data_of_one_size(config, folder):
    """For what has one size, such as token sets."""
    one = evaluated(config, folder).of_one_size()
    assert (one.sizes, one.eval_crop, one.crop) == ((), "center", (16, 16))
    assert dataclasses.replace(config, eval_crop="tiles").of_one_size().eval_crop == "tiles"
