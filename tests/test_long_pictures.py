"""Long and narrow pictures: only what is cut out of them is enlarged.

The oracle is a resize of the whole by Pillow; memory is bounded by the address space of a process
of its own, and by the pixels that are asked of Pillow.
"""

import dataclasses
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from shapes import data_config
from streams import assert_same, take, take_eval

from bsq_jax.core.errors import UserError
from bsq_jax.data import transforms
from bsq_jax.data.command_line_files import find_inputs
from bsq_jax.data.eval_pipeline import eval_batches, eval_examples, num_examples
from bsq_jax.data.reader import FrameCache, Reader
from bsq_jax.data.records import Record

CONFIG = data_config(
    image_size=16, resize=32, eval_resize=32, scale=(1.0, 1.5), seed=7, val_source="synthetic"
)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


class Few:
    """A source of pixels."""

    name = "few"

    def __init__(self, *contents, videos=False):
        self.contents, self.videos = contents, videos

    def __len__(self):
        return len(self.contents)

    def __getitem__(self, index):
        return Record(f"few#{index}", self.contents[index])


@pytest.fixture
def asked(monkeypatch):
    """The largest number of pixels that Pillow was asked to make, and to take."""
    most = {"made": 0, "taken": 0}
    whole, taken = Image.Image.resize, Image.fromarray

    def resize(self, size, *arguments, **named):
        most["made"] = max(most["made"], size[0] * size[1])
        assert size[0] * size[1] < 10**8, "this would take all memory"
        return whole(self, size, *arguments, **named)

    def fromarray(array, *arguments, **named):
        most["taken"] = max(most["taken"], array.shape[0] * array.shape[1])
        return taken(array, *arguments, **named)

    monkeypatch.setattr(Image.Image, "resize", resize)
    monkeypatch.setattr(Image, "fromarray", fromarray)
    return most


def whole(image, size, name):
    """Everything resized at once by Pillow."""
    height, width = transforms.resized_shape(*image.shape[:2], size)
    chosen = getattr(Image.Resampling, name.upper())
    return np.asarray(Image.fromarray(image).resize((width, height), chosen))


@pytest.mark.parametrize("name", list(transforms.FILTERS))
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(3, 400, 64), (400, 3, 64), (3, 401, 50), (7, 180, 60), (1, 90, 8)],
)
def test_a_window_is_what_a_resize_of_the_whole_gives(height, width, size, name):
    image = noise(height, width)
    expected = whole(image, size, name)
    long = transforms.resize_to_cut(image, size, name)
    assert isinstance(long, transforms.Long)
    assert long.shape == expected.shape
    assert long.nbytes == image.nbytes
    rng = np.random.default_rng(1)
    wrong = total = 0
    for number in range(60):
        window = [int(rng.integers(1, min(side, 2 * size) + 1)) for side in long.shape[:2]]
        room = [side - part for side, part in zip(long.shape, window, strict=False)]
        # The first and the last place too.
        top, left = [(0, side, int(rng.integers(side + 1)))[min(number, 2)] for side in room]
        got = long.window(top, left, *window)
        cut = expected[top : top + window[0], left : left + window[1]]
        assert got.shape == cut.shape
        difference = np.abs(got.astype(int) - cut)
        # A step between two source pixels may move where a place lies exactly between them.
        assert difference.max() <= 2 or name in ("nearest", "box")
        wrong, total = wrong + np.count_nonzero(difference), total + difference.size
    assert wrong / total < 0.01  # Pillow keeps where a window begins in float32


def test_which_pictures_are_long():
    assert transforms.is_long(1, 30_000, 256)
    assert transforms.is_long(30_000, 1, 256)
    assert transforms.is_long(10, 161, 11)
    assert not transforms.is_long(10, 160, 11)  # 16 to 1
    assert not transforms.is_long(10, 1600, 10)  # not enlarged
    assert not transforms.is_long(2_000, 40_000, 256)  # reduced
    assert not transforms.is_long(480, 640, 4096)
    for size in (0, 8, 100):  # as ever: pixels, resized or not
        image = noise(8, 100)
        got = transforms.resize_to_cut(image, size, "lanczos")
        expected = whole(image, size, "lanczos") if size else image
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("shape", [(1, 30_000), (30_000, 1), (2, 20_000)])
@pytest.mark.parametrize("crop", [(256, 256), (128, 64)])
def test_crops_of_strips_ask_for_little(asked, shape, crop):
    image = noise(*shape)
    ready = transforms.resize_to_cut(image, 256, "lanczos")
    rng = np.random.default_rng(0)
    for _ in range(5):
        clip = transforms.random_clip_crop([ready, ready], crop, rng, (0.5, 2.0), "lanczos")
        assert clip.shape == (2, *crop, 3)
    assert transforms.center_crop(ready, crop).shape == (*crop, 3)
    assert asked["made"] <= 256 * 512
    assert asked["taken"] <= 256 * 512


def test_random_crops_draw_as_those_of_the_whole():
    image = noise(3, 400)
    ready, expected = transforms.resize_to_cut(image, 64, "bilinear"), whole(image, 64, "bilinear")
    for seed in range(20):
        one, other = np.random.default_rng(seed), np.random.default_rng(seed)
        got = transforms.random_clip_crop([ready], (32, 24), one, (0.7, 2.0), "bilinear")
        want = transforms.random_clip_crop([expected], (32, 24), other, (0.7, 2.0), "bilinear")
        assert np.abs(got.astype(int) - want).max() <= 2
        assert one.random() == other.random()


def test_training_reads_strips_beside_other_pictures(tmp_path, asked):
    for number, shape in enumerate([(1, 30_000), (30_000, 1), (40, 50), (33, 32)]):
        Image.fromarray(noise(*shape)).save(tmp_path / f"{number}.png")
    config = dataclasses.replace(CONFIG, source=f"folder:{tmp_path}", resize=256, threads=0)
    batches = take(config, 4)
    assert asked["made"] <= 10**6
    assert {int(index) for batch in batches for index in batch["index"]} == {0, 1, 2, 3}
    assert_same(batches, take(dataclasses.replace(config, cache_mb=0), 4))


def test_a_clip_of_strips(asked):
    """Frames are cached before they are enlarged, also those that lie between the wanted ones."""
    frames = [noise(1, 30_000, seed) for seed in range(6)]
    cache = FrameCache(1)  # 90 kB each
    source = Few(frames, videos=True)
    limits = {"size": 256, "filter": "lanczos", "draft": True, "max_broken": 0.0}
    reader = Reader(source, **limits, cache=cache)
    clip = reader.read(0, lambda count: range(0, count, 2))
    assert [image.shape for image in clip] == [(256, 7_680_000, 3)] * 3
    assert reader.read(0, lambda count: range(0, count, 2))[1] is clip[1]
    crops = transforms.random_clip_crop(clip, (256, 256), np.random.default_rng(0))
    assert crops.shape == (3, 256, 256, 3)
    assert asked["made"] <= 256 * 256


@pytest.mark.parametrize("eval_crop", ["center", "tiles"])
def test_evaluation_of_strips(tmp_path, asked, caplog, eval_crop):
    Image.fromarray(noise(1, 30_000)).save(tmp_path / "a.png")
    Image.fromarray(noise(40, 60)).save(tmp_path / "b.png")
    config = dataclasses.replace(
        CONFIG, source="synthetic", val_source=f"folder:{tmp_path}", eval_crop=eval_crop
    )
    with caplog.at_level("WARNING"):
        examples = eval_examples(config)
    # 32 x 960,000 would be 120,000 tiles of 16 x 16; 16 times as long as wide are 2 x 32.
    count = {"center": 2, "tiles": 2 * 32 + 2 * 3}[eval_crop]
    assert num_examples(config, "val") == count
    said = [message for message in caplog.messages if "cut from their middle" in message]
    assert len(said) == (eval_crop == "tiles")
    assert all("1 of 2 records" in message and "a.png" in message for message in said)
    iterator = eval_batches(config, global_batch=8, shard_index=0, shard_count=1, examples=examples)
    masks = np.concatenate([batch["mask"] for batch in iterator])
    iterator.close()
    assert masks.sum() == count
    assert asked["made"] <= 40 * 10**3


def test_tiles_of_a_long_picture_are_of_its_middle(tmp_path):
    image = noise(2, 100)
    Image.fromarray(image).save(tmp_path / "a.png")
    config = dataclasses.replace(
        CONFIG, source="synthetic", val_source=f"folder:{tmp_path}", eval_crop="tiles",
        image_size=8, eval_resize=8, eval_filter="bilinear",
    )  # fmt: skip
    rows = take_eval(config, global_batch=4)
    expected = whole(image, 8, "bilinear")  # 8 x 400: the middle 128
    tiles = expected[:, 136:264].reshape(8, 16, 8, 3).transpose(1, 0, 2, 3)
    assert np.abs(rows["pixels"][:, 0].astype(int) - tiles).max() <= 1


def test_inputs_that_would_be_too_large_are_refused(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(noise(1, 30_000)).save(path)
    (one,) = find_inputs([str(path)])
    assert one.shape() == (1, 30_000)
    for call in (one.shape, lambda size: one.read(size=size)):
        with pytest.raises(UserError, match=r"256x7680000: cut it"):
            call(256)
    assert one.read(size=2)[0].shape == (1, 2, 60_000, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space")
def test_a_strip_needs_little_memory(tmp_path):
    """A process that may take 2 GiB more than it has reads batches of a 1x30000 picture."""
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
        Image.fromarray(noise(1, 30_000)).save(tmp_path / name / "a.png")
    code = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from shapes import data_config
from bsq_jax.data.eval_pipeline import eval_batches
from bsq_jax.data.train_pipeline import train_batches
config = data_config(
    source=sys.argv[1], image_size=256, resize=256, eval_resize=256, threads=0, eval_crop="tiles",
)
pages = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (pages + 2**31,) * 2)
sizes = {"global_batch": 2, "shard_index": 0, "shard_count": 1}
print(next(train_batches(config, **sizes))["pixels"].shape)
print(sum(batch["mask"].sum() for batch in eval_batches(config, **sizes)))
"""
    tests = str(pathlib.Path(__file__).parent)
    command = [sys.executable, "-c", code, f"folder:{tmp_path}", tests]
    arenas = {**os.environ, "MALLOC_ARENA_MAX": "2"}  # a thread reserves more than it uses
    done = subprocess.run(command, capture_output=True, text=True, env=arenas)
    assert done.stdout.split("\n")[:2] == ["(2, 1, 256, 256, 3)", "16.0"], done.stderr[-2000:]
