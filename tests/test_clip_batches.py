"""Batches of clips, against videos whose pixels say which frame, row and column they are."""

import collections
import dataclasses
import shutil

import av
import numpy as np
import pytest
from PIL import Image
from shapes import data_config
from streams import assert_same, take, take_eval
from video_files import LOSSLESS, coordinates, numbers_of, write_video

from bsq_jax.core.errors import UserError
from bsq_jax.data import transforms
from bsq_jax.data.clip_lengths import Schedule
from bsq_jax.data.eval_pipeline import eval_examples, num_examples
from bsq_jax.data.reader import FrameCache, Reader
from bsq_jax.data.sources import open_source
from bsq_jax.data.train_pipeline import batch_frames, train_batches

COUNTS = {"a": 20, "b": 31, "c": 5, "d": 12, "e": 1, "f": 9}  # frames of each video
SIZE = (24, 32)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder of videos whose pixels are their row, column and frame."""
    folder = tmp_path_factory.mktemp("videos")
    for name, count in COUNTS.items():
        path = folder / f"{name}.mp4"
        write_video(path, count, picture=coordinates, size=SIZE, **LOSSLESS)
    return folder


@pytest.fixture(scope="module")
def copies(videos, tmp_path_factory):
    """The same videos in another folder, so that neither folder is divided."""
    return shutil.copytree(videos, tmp_path_factory.mktemp("copies") / "videos")


@pytest.fixture
def clips(videos, copies):
    """Settings that read the videos as they are."""
    return data_config(
        source=f"clips:{videos}",
        val_source=f"clips:{copies}",
        image_size=16,
        resize=0,
        eval_resize=24,
        frames=4,
        stride=3,
        flip=False,
        threads=1,
        seed=7,
    )


def everything(config):
    """The settings with all that is drawn at random."""
    return dataclasses.replace(
        config, flip=True, permute_channels=0.5, scale=(0.5, 1.5), min_frames=2, image_share=0.25
    )


@pytest.mark.smoke
def test_a_clip_is_one_window_of_evenly_spaced_frames(clips):
    starts = collections.defaultdict(set)
    for batch in take(clips, 40):
        assert batch["pixels"].shape == (8, 4, 16, 16, 3)
        assert batch["pixels"].dtype == np.uint8
        assert batch["frames"].dtype == np.int32
        for index, real, clip in zip(batch["index"], batch["frames"], batch["pixels"], strict=True):
            count = list(COUNTS.values())[index]
            assert real == min(4, (count - 1) // 3 + 1)
            top, left, first = (int(value) for value in clip[0, 0, 0])
            for number in range(4):  # the same window of each; after the last real one it stays
                frame = coordinates(first + 3 * min(number, real - 1), SIZE)
                np.testing.assert_array_equal(clip[number], frame[top : top + 16, left : left + 16])
            assert first + 3 * (real - 1) < count
            starts[index].add(first)
    assert starts[0] == set(range(11))  # 20 frames leave 11 places for a clip that spans 10
    assert starts[2] == {0, 1}  # two frames, three apart, in five
    assert starts[4] == {0}


def test_flips_permutations_and_scales_are_of_the_whole_clip(clips):
    config = dataclasses.replace(clips, flip=True, permute_channels=1.0, scale=(0.4, 1.4))
    orders, flipped, sides = set(), 0, set()
    for batch in take(dataclasses.replace(config, filter="nearest"), 10):
        for real, clip in zip(batch["frames"], batch["pixels"].astype(int), strict=True):
            time, rows, columns = (np.diff(clip[:real], axis=axis) for axis in range(3))
            # Which channel changes along which axis says in what order the channels are.
            along = [
                next((k for k in range(3) if np.any(change[..., k])), None)
                for change in (rows, columns, time)
            ]
            if real == 1:
                along[2] = 3 - along[0] - along[1]
            assert sorted(along) == [0, 1, 2]
            orders.add(tuple(along))
            flipped += columns[..., along[1]].min() < 0
            assert np.ptp(np.sign(columns[..., along[1]].sum(axis=2))) == 0  # all rows alike
            assert np.ptp(clip[:real, ..., along[2]], axis=(1, 2)).max() == 0  # one frame in each
            for axis in (0, 1):
                assert np.ptp(clip[..., along[axis]], axis=0).max() == 0  # one window in all
            sides.add(int(np.ptp(clip[..., along[0]])))
    assert len(orders) == 6
    assert 20 < flipped < 60  # 40 of 80 expected, 4.5 standard deviations
    assert min(sides) < 8
    assert max(sides) > 18


@pytest.mark.parametrize("shards", [2, 4])
def test_the_global_stream_is_the_same_for_any_number_of_hosts(clips, shards):
    config = everything(clips)
    one = take(config, 12)
    assert_same(take(config, 12, shards=shards), one)
    assert {batch["pixels"].shape[1] for batch in one} == {1, 2, 4}


@pytest.mark.parametrize("start", [1, 11])
def test_resuming_gives_what_was_left(clips, start):
    config = everything(clips)
    assert_same(take(config, 12 - start, start=start, shards=2), take(config, 12)[start:])


@pytest.mark.parametrize("change", [{"threads": 0}, {"threads": 5, "prefetch": 9}, {"cache_mb": 0}])
def test_threads_and_cache_change_nothing(clips, change):
    config = dataclasses.replace(everything(clips), resize=18)
    assert_same(take(dataclasses.replace(config, **change), 12), take(config, 12))


def test_every_epoch_takes_a_clip_of_each_video(clips):
    index = np.concatenate([batch["index"] for batch in take(clips, 6, global_batch=4)])
    np.testing.assert_array_equal(np.sort(index.reshape(4, 6)), [range(6)] * 4)


def test_batches_have_the_lengths_of_the_schedule(clips):
    config = dataclasses.replace(clips, frames=12, stride=1, min_frames=3)
    assert batch_frames(config) == (4, 8, 12)
    schedule = Schedule(config)
    for number, batch in enumerate(take(config, 20)):
        step = schedule.step(number)
        assert batch["pixels"].shape[1] == step.frames
        for index, real, clip in zip(batch["index"], batch["frames"], batch["pixels"], strict=True):
            count = list(COUNTS.values())[index]
            assert min(step.shortest, count) <= real <= min(step.frames, count)
            shown = clip[:, 0, 0, 2].astype(int) - clip[0, 0, 0, 2]
            np.testing.assert_array_equal(shown, np.minimum(range(step.frames), real - 1))


def test_single_frames_of_the_same_videos(clips):
    config = dataclasses.replace(clips, image_share=0.5)
    assert batch_frames(config) == (1, 4)
    seen = set()
    for number, batch in enumerate(take(config, 64)):
        images = Schedule(config).step(number).images
        assert batch["pixels"].shape[1] == (1 if images else 4)
        if images:
            np.testing.assert_array_equal(batch["frames"], np.ones(8))
            where = zip(batch["index"], batch["pixels"], strict=True)
            seen |= {int(clip[0, 0, 0, 2]) for index, clip in where if index == 1}
    assert len(seen) > 15  # any of the 31 frames


def test_single_frames_from_another_source_have_epochs_of_their_own(clips):
    config = dataclasses.replace(clips, image_share=0.5, image_source="synthetic", resize=24)
    batches = take(config, 64, global_batch=6)
    shown = {1: [], 4: []}
    for batch in batches:
        shown[batch["pixels"].shape[1]] += batch["index"].tolist()
    assert [len(shown[frames]) for frames in (1, 4)] == [192, 192]
    np.testing.assert_array_equal(np.sort(np.reshape(shown[1], (3, 64))), [range(64)] * 3)
    np.testing.assert_array_equal(np.sort(np.reshape(shown[4], (32, 6))), [range(6)] * 32)
    assert_same(take(config, 20, shards=3, start=44, global_batch=6), batches[44:])
    drawn = open_source(dataclasses.replace(config, source="synthetic"), "train")
    batch = next(batch for batch in batches if batch["pixels"].shape[1] == 1)
    whole = transforms.resize_short_side(drawn[int(batch["index"][0])].content, 24)
    windows = [whole[y : y + 16, x : x + 16] for y in range(9) for x in range(9)]
    assert any(np.array_equal(batch["pixels"][0, 0], window) for window in windows)


def test_the_image_source_is_never_validated_on(tmp_path, clips):
    for number in range(30):
        Image.new("RGB", (24, 24), (number, 0, 0)).save(tmp_path / f"{number:02d}.png")
    spec = f"folder:{tmp_path}"
    config = dataclasses.replace(clips, image_share=1.0, image_source=spec, val_source=spec)
    shown = np.concatenate([b["pixels"][:, 0, 0, 0, 0] for b in take(config, 20)])
    validated = take_eval(config, global_batch=8)
    validated = validated["pixels"][validated["mask"] > 0][:, 0, 0, 0, 0]
    assert sorted({*shown.tolist(), *validated.tolist()}) == list(range(30))
    assert not {*shown.tolist()} & {*validated.tolist()}
    with pytest.raises(UserError, match="is not a folder"):
        open_source(dataclasses.replace(config, image_source="folder:/nowhere"), "train")


def test_pictures_have_one_frame_whatever_is_asked(clips):
    config = dataclasses.replace(
        clips, source="synthetic", val_source="photos", resize=24, min_frames=2, eval_clips=3
    )
    assert batch_frames(config) == (1,)
    plain = dataclasses.replace(config, frames=1, min_frames=0, stride=1, eval_clips=1)
    assert_same(take(config, 4), take(plain, 4))
    rows = take_eval(config, global_batch=4)
    assert rows["pixels"].shape == (4, 1, 16, 16, 3)
    np.testing.assert_array_equal(rows["mask"], [1, 1, 1, 0])


@pytest.mark.parametrize("shards", [1, 2])
def test_evaluation_shows_evenly_spaced_clips_of_each_video(clips, shards):
    config = dataclasses.replace(clips, eval_clips=2)
    assert num_examples(config, "val") == 12
    examples = eval_examples(config)
    np.testing.assert_array_equal(examples.records, np.repeat(range(6), 2))
    np.testing.assert_array_equal(examples.clips, [0, 1] * 6)
    rows = take_eval(config, global_batch=8, shards=shards)
    np.testing.assert_array_equal(rows["index"], [*range(12), -1, -1, -1, -1])
    np.testing.assert_array_equal(rows["mask"], rows["index"] >= 0)
    np.testing.assert_array_equal(rows["frames"][:12], np.repeat([4, 4, 2, 4, 1, 3], 2))
    assert rows["frames"][12:].min() >= 1
    firsts = rows["pixels"][:12, 0, 0, 0, 2]
    np.testing.assert_array_equal(firsts, [0, 10, 0, 21, 0, 1, 0, 2, 0, 0, 0, 2])
    middle = coordinates(10 + 3 * 2, SIZE)[4:20, 8:24]
    np.testing.assert_array_equal(rows["pixels"][1, 2], middle)
    assert not rows["pixels"][12:].any()


def test_tiles_of_a_clip_are_the_same_in_all_frames(clips):
    config = dataclasses.replace(clips, eval_crop="tiles", image_size=8, eval_clips=2)
    examples = eval_examples(config)
    assert len(examples.records) == 6 * 2 * 12  # 24 x 32 holds twelve tiles
    np.testing.assert_array_equal(examples.records[:25], [0] * 24 + [1])
    np.testing.assert_array_equal(examples.clips[:25], [0] * 12 + [1] * 12 + [0])
    np.testing.assert_array_equal(examples.tiles[:25], [*range(12), *range(12), 0])
    rows = take_eval(config, global_batch=16)
    clip = rows["pixels"][12 + 6]  # the second clip of the first video, row 1, column 2
    for number in range(4):
        expected = coordinates(10 + 3 * number, SIZE)[8:16, 16:24]
        np.testing.assert_array_equal(clip[number], expected)


def break_some(folder):
    """Six videos of greys, two of them damaged."""
    for number in range(6):
        write_video(folder / f"{number}.mp4", 12, size=(24, 24))
    data = (folder / "3.mp4").read_bytes()
    (folder / "3.mp4").write_bytes(data[: len(data) // 2])
    (folder / "4.mp4").write_bytes(b"")
    return f"clips:{folder}"


def test_broken_videos_are_replaced_in_training_and_masked_in_evaluation(tmp_path, clips):
    spec = break_some(tmp_path)
    config = dataclasses.replace(
        clips, source=spec, val_source="photos", max_broken=0.34, stride=1, resize=24
    )
    iterator = train_batches(config, global_batch=6, shard_index=0, shard_count=1)
    for batch in (next(iterator) for _ in range(3)):
        np.testing.assert_array_equal(np.sort(batch["index"]), [0, 1, 2, 5, 5, 5])
        for clip in batch["pixels"]:
            np.testing.assert_array_equal(np.diff(numbers_of(clip)), [1, 1, 1])
    stats = iterator.stats()
    iterator.close()
    assert stats["broken_ids"] == ["3.mp4", "4.mp4"]
    config = dataclasses.replace(config, source="photos", val_source=spec)
    rows = take_eval(config, global_batch=6)
    np.testing.assert_array_equal(rows["mask"], [1, 1, 1, 0, 0, 1])
    assert not rows["pixels"][3:5].any()
    with pytest.raises(UserError, match="2 of 6 records are broken"):
        take_eval(dataclasses.replace(config, max_broken=0.1), global_batch=6)


def damaged(folder):
    """A video that can be opened but not decoded in the middle: frames 16 to 23 are zeros."""
    path = write_video(folder / "damaged.mkv", 40, size=(24, 24), bf="0")
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        start = 0
        for number, packet in enumerate(p for p in container.demux(video=0) if p.size):
            start = data.index(bytes(packet), start)
            if 16 <= number < 24:
                data[start : start + packet.size] = bytes(packet.size)
            start += packet.size
    path.write_bytes(data)
    return f"clips:{path}"


@pytest.mark.parametrize("megabytes", [0, 1])
def test_what_a_clip_holds_does_not_depend_on_what_was_read_before(tmp_path, clips, megabytes):
    """The clips that can be read are the same after damage was met as they are before."""
    config = dataclasses.replace(clips, source=damaged(tmp_path), val_source="photos")
    source = open_source(config, "train")

    def reader():
        return Reader(
            source,
            size=24,
            filter="box",
            draft=True,
            max_broken=1.0,
            cache=FrameCache(megabytes),
        )

    asked = [
        range(20, 24),
        range(0, 4),
        range(26, 38, 3),
        range(12, 16),
        range(14, 18),
        range(36, 40),
    ]
    apart = [reader().read(0, lambda _, n=numbers: n) for numbers in asked]
    one = reader()
    together = [one.read(0, lambda _, n=numbers: n) for numbers in asked]
    readable = [clip is not None for clip in apart]
    assert readable == [False, True, True, True, False, True]
    assert [clip is not None for clip in together] == readable
    for numbers, first, second in zip(asked, apart, together, strict=True):
        if first is not None:
            np.testing.assert_array_equal(first, second)
            np.testing.assert_array_equal(numbers_of(np.stack(first)), numbers)
    assert one.broken_ids() == ["damaged.mkv"]


def test_frames_on_the_way_are_kept_while_there_is_room(tmp_path, clips):
    path = write_video(tmp_path / "a.mp4", 20, size=(24, 24), gop=10)
    config = dataclasses.replace(clips, source=f"clips:{path}", val_source="photos")
    source = open_source(config, "train")
    for megabytes, kept in ((1, range(10, 16)), (0, [])):
        write_video(path, 20, size=(24, 24), gop=10)
        cache = FrameCache(megabytes)
        reader = Reader(source, size=0, filter="box", draft=True, max_broken=1.0, cache=cache)
        assert reader.read(0, lambda count: [count - 5]) is not None
        assert [n for n in range(20) if cache.get(0, n) is not None] == list(kept)
        path.unlink()  # from here on only the cache knows the video
        assert (reader.read(0, lambda _: [11, 13]) is not None) == bool(megabytes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_frames": 5}, "min_frames must be from 0 .* to frames=4, got 5"),
        ({"image_source": "photos"}, "image_source='photos' is not read while image_share is 0"),
    ],
)
def test_config_mistakes(clips, change, message):
    with pytest.raises(UserError, match=message) as raised:
        dataclasses.replace(clips, **change)
    assert "\n" not in str(raised.value)


def test_source_mistakes(tmp_path, videos, clips):
    def opened(spec, **changes):
        return open_source(dataclasses.replace(clips, source=spec, **changes), "train")

    with pytest.raises(UserError, match=r"holds videos, write clips:"):
        opened(f"folder:{videos}")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"clips:.* holds no videos: it holds pictures"):
        opened(f"clips:{tmp_path}")
    with pytest.raises(UserError, match=r"one video, which cannot be divided.*data\.val_source"):
        opened(f"clips:{videos}/a.mp4", val_source="")
    assert len(opened(f"clips:{videos}/a.mp4")) == 1
    with pytest.raises(UserError, match="is not a folder: check the path"):
        opened(f"clips:{tmp_path}/nowhere.mp4")
    with pytest.raises(UserError, match=r"for one of videos 'clips:"):
        opened(str(videos))
