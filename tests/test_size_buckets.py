"""The sizes of pictures and the steps that have them. Oracles: loops over pictures and steps."""

import collections
import math
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from bsq_jax.config import default_config, finalize, set_value
from bsq_jax.core.errors import UserError
from bsq_jax.data.batch_sizes import BatchSizes
from bsq_jax.data.records import BrokenRecord, Record
from bsq_jax.data.size_buckets import assign, choices, covering_side, open_sized, shapes_of
from bsq_jax.data.size_schedule import SizeSchedule, batch_of_size
from bsq_jax.data.sources import make_source
from bsq_jax.data.transforms import resized_shape

SIZES = ((64, 64), (48, 80), (80, 48), (32, 32), (24, 40), (32, 128))
EXTREMES = [(1, 1), (1, 6000), (6000, 1), (6000, 100), (100, 6000), (3, 5), (30000, 2)]


def belongs_by_hand(height, width):
    """The number of the size of a picture, in the words of the rule."""
    distance = [abs(math.log(height / width) - math.log(h / w)) for h, w in SIZES]
    ratios = [Fraction(*size) for size in SIZES]
    first = next(n for n, d in enumerate(distance) if d <= min(distance) + 1e-9)
    alike = [n for n in range(len(SIZES)) if ratios[n] == ratios[first]]
    filled = [n for n in alike if height >= SIZES[n][0] and width >= SIZES[n][1]]
    if filled:
        return max(filled, key=lambda n: SIZES[n][0] * SIZES[n][1])
    return min(alike, key=lambda n: SIZES[n][0] * SIZES[n][1])


@pytest.mark.smoke
def test_each_picture_has_the_size_of_the_rule():
    rng = np.random.default_rng(0)
    shapes = [tuple(map(int, pair)) for pair in np.exp(rng.uniform(0, 9, (500, 2))).astype(int)]
    shapes += EXTREMES + list(SIZES) + [(96, 96 * 4), (512, 1024)]
    wanted = [belongs_by_hand(*shape) for shape in shapes]
    np.testing.assert_array_equal(assign(np.array(shapes), SIZES), wanted)
    assert set(wanted) == set(range(len(SIZES)))
    assert assign(np.array([(1, 1), (6000, 100), (100, 6000)]), SIZES).tolist() == [3, 2, 5]


def test_between_two_that_are_equally_far_it_is_the_first():
    assert assign(np.array([(100, 100)] * 2), ((16, 32), (32, 16))).tolist() == [0, 0]
    assert assign(np.array([(100, 100)] * 2), ((32, 16), (16, 32))).tolist() == [0, 0]


def test_what_cannot_be_read_is_with_most_others():
    shapes = np.array([(0, 0), (64, 64), (48, 80), (50, 90)])
    assert assign(shapes, SIZES).tolist() == [1, 0, 1, 1]
    assert assign(np.zeros((2, 2), int), SIZES).tolist() == [3, 3]


def test_sizes_of_one_aspect_ratio_are_trained_together():
    assert [choices(n, SIZES) for n in range(6)] == [(3, 0), (4, 1), (2,), (3,), (4,), (5,)]


@pytest.mark.parametrize("factor", [Fraction(1), Fraction(5, 4), Fraction(72, 64)])
def test_a_resized_picture_covers_its_size_and_is_no_larger_than_it_must_be(factor):
    rng = np.random.default_rng(1)
    shapes = [*EXTREMES, *map(tuple, rng.integers(1, 700, (200, 2)).tolist())]
    for shape in shapes:
        for size in SIZES:
            side = covering_side(shape, size, factor)
            height, width = resized_shape(*shape, side)
            assert height >= size[0]
            assert width >= size[1]
            # With a short side of one pixel less it would not be covered so many times.
            scale = (side - 1) / min(shape)
            assert min(shape[0] * scale / size[0], shape[1] * scale / size[1]) < factor
    assert covering_side((0, 0), (48, 80)) == 80


@pytest.mark.parametrize("multiple", [1, 2, 8, 12])
def test_the_budget_is_kept(multiple):
    for batch in (multiple, 3 * multiple, 8 * multiple):
        for size in SIZES:
            count = batch_of_size(size, batch, (64, 64), multiple)
            assert count % multiple == 0
            pixels, budget = size[0] * size[1], batch * 64 * 64
            assert count * pixels <= budget or count == multiple
            assert (count + multiple) * pixels > budget
    assert batch_of_size((64, 64), 24, (64, 64), 8) == 24


class Simulation:
    """Step by step: the records of each size in turn, and how many examples each kind had."""

    def __init__(self, records, schedules):
        self.seen = collections.Counter()
        self.steps = []
        for number, schedule in schedules:
            found = schedule.step(number)
            assert found.first == self.seen[found.belongs]
            self.seen[found.belongs] += found.examples
            self.steps.append(found)


RECORDS = {0: 40, 1: 25, 2: 10, 3: 5, 5: 1}


def schedule_of(batches, seed=3):
    return SizeSchedule(RECORDS, SIZES, (64, 64), batches, seed)


def test_positions_against_a_walk_over_all_steps():
    """Also where batch sizes change, within blocks of 64 steps and at their ends."""
    batches = BatchSizes(((0, 8),)).going_on(70, 16, 4).going_on(128, 12, 4).going_on(200, 12, 6)
    walk = Simulation(RECORDS, ((step, schedule_of(batches)) for step in range(300)))
    whole = schedule_of(batches)
    assert [whole.step(step) for step in reversed(range(300))] == walk.steps[::-1]
    for step, found in enumerate(walk.steps):
        part = [part for part in batches.with_multiples() if part[0] <= step][-1]
        wanted = batch_of_size(SIZES[found.size], part[1], (64, 64), part[2])
        assert found.examples == wanted
        assert found.size in choices(found.belongs, SIZES)
    # What came before a change is what it was without.
    assert [schedule_of(BatchSizes(((0, 8),))).step(step) for step in range(70)] == walk.steps[:70]


def test_every_record_is_seen_equally_often_and_at_each_of_its_sizes():
    schedule, count = schedule_of(BatchSizes(((0, 8),))), 64 * 60
    seen, kinds = collections.Counter(), collections.Counter()
    for step in map(schedule.step, range(count)):
        seen[step.belongs] += step.examples
        kinds[step.belongs, step.size] += step.examples
    total = sum(seen.values())
    for own, records in RECORDS.items():
        each = [kinds[own, size] for size in choices(own, SIZES)]
        # A block of 64 steps has each kind as often as it should, or once more or less.
        np.testing.assert_allclose(seen[own] / total, records / sum(RECORDS.values()), rtol=0.25)
        np.testing.assert_allclose(each, seen[own] / len(each), rtol=0.1)
    np.testing.assert_allclose(seen[0] / seen[1], 40 / 25, rtol=0.02)


def test_blocks_are_stratified_and_in_random_order():
    schedule = schedule_of(BatchSizes(((0, 8),)))
    blocks = [[schedule.step(64 * b + i)[:2] for i in range(64)] for b in range(20)]
    counts = [collections.Counter(block) for block in blocks]
    for kind in set().union(*counts):
        assert max(c[kind] for c in counts) - min(c[kind] for c in counts) <= 1
    assert len({tuple(block) for block in blocks}) == 20
    other = schedule_of(BatchSizes(((0, 8),)), seed=4)
    assert [other.step(i)[:2] for i in range(64)] != blocks[0]


def test_a_step_far_away_is_found_at_once():
    one, other = (schedule_of(BatchSizes(((0, 8),))) for _ in range(2))
    one.step(5)
    assert one.step(200_000) == other.step(200_000)
    with pytest.raises(UserError, match="impossible batch sizes"):
        BatchSizes.read([[0, 8, 4, 1]], "the checkpoint")
    sizes = BatchSizes(((0, 8),)).going_on(3, 8, 4)
    assert BatchSizes.read([list(part) for part in sizes.parts], "x") == sizes
    assert sizes.parts == ((0, 8), (3, 8, 4))


class Drawn:
    """Pictures of given sizes, one of them broken."""

    name, videos = "drawn", False

    def __init__(self, shapes):
        self.shapes = shapes

    def __len__(self):
        return len(self.shapes)

    def __getitem__(self, index):
        if self.shapes[index] is None:
            raise BrokenRecord("it is damaged")
        return Record(str(index), np.zeros((*self.shapes[index], 3), np.uint8))


@pytest.mark.parametrize("threads", [0, 3])
def test_a_source_is_read_once_and_sizes_without_pictures_are_named(caplog, threads):
    shapes = [(64, 64), (90, 60), None, (200, 210), (70, 100), (1, 1)]
    with caplog.at_level("WARNING"):
        sized = open_sized(Drawn(shapes), SIZES, threads)
    np.testing.assert_array_equal(sized.shapes, [shape or (0, 0) for shape in shapes])
    assert {n: list(v) for n, v in sized.members().items()} == {
        0: [0, 2, 3],
        1: [4],
        2: [1],
        3: [5],
    }
    if threads == 0:  # such a line is said once
        assert (
            "drawn: no record for training belongs to 24x40, 32x128 of data.sizes"
            in caplog.messages
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.eval_crop": "bucket"}, "data.eval_crop=bucket needs data.sizes"),
        ({"data.sizes": "64"}, r"data.sizes is .*: it must be HEIGHTxWIDTH each"),
        ({"data.sizes": "64x60"}, "data.sizes has 64x60, whose sides .* model.patch_size 8x8"),
        ({"data.sizes": "64x64,32x32,64x64"}, "data.sizes has 64x64 twice"),
        ({"data.sizes": "64x64", "task": "masked_lm"}, "a masked_lm has one size"),
        ({"data.sizes": "64x64", "task": "prior"}, "set prior.reach, or"),
        ({"data.sizes": "64x64", "data.source": "tokens:x"}, "is a token set, which has one grid"),
    ],
)
def test_what_does_not_fit_is_one_line(changes, message):
    config = default_config()
    config.prior.tokenizer = config.masked_lm.tokenizer = "somewhere"
    for key, text in changes.items():
        set_value(config, key, text)
    with pytest.raises(UserError, match=message) as caught:
        finalize(config)
    assert "\n" not in str(caught.value)


def test_of_jpegs_the_beginning_is_enough_and_of_others_all_is_read(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (300, 500, 3), np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    noise.save(tmp_path / "a.jpg", quality=100)
    noise.save(tmp_path / "b.jpg", quality=100, exif=turned.tobytes())
    noise.save(tmp_path / "c.jpg", quality=100, comment=bytes(60_000), icc_profile=bytes(90_000))
    noise.save(tmp_path / "d.png", exif=turned.tobytes())
    noise.save(tmp_path / "e.webp", quality=100, exif=turned.tobytes())
    (tmp_path / "f.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:100])
    source, whole = make_source(f"folder:{tmp_path}", "train", divide=False), []
    read = type(source).__getitem__
    monkeypatch.setattr(
        type(source), "__getitem__", lambda self, n: whole.append(n) or read(self, n)
    )
    found = shapes_of(source, 0)
    np.testing.assert_array_equal(
        found, [(300, 500), (500, 300), (300, 500), (500, 300), (500, 300), (0, 0)]
    )
    assert sorted(set(whole)) == [2, 3, 4, 5]
