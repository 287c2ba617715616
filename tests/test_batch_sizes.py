"""Runs that go on with another batch size. Oracle: the examples in the order of one stream."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import tiny
from shapes import data_config
from streams import assert_same, take

from bsq_jax import main
from bsq_jax.config import finalize
from bsq_jax.core.errors import UserError
from bsq_jax.data.batch_sizes import BatchSizes
from bsq_jax.data.batches import EpochOrder
from bsq_jax.data.factory import make_data_config
from bsq_jax.data.sources import open_source
from bsq_jax.data.tokens import (
    TokenSet,
    read_description,
    token_batches,
    write_description,
    write_split,
)
from bsq_jax.quantizers.layout import TokenLayout
from bsq_jax.training import checksums
from bsq_jax.training.workdir import open_checkpoints

TINY = str(pathlib.Path(__file__).parent / "tiny.py")
SMALL = data_config(
    source="synthetic", image_size=16, resize=24, eval_resize=24, scale=(1.0, 1.5), seed=7
)
EIGHT = BatchSizes(((0, 8),))


def joined(batches):
    """All examples of some batches, in order."""
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


@pytest.mark.smoke
def test_sizes_of_the_steps_of_a_run():
    sizes = EIGHT.going_on(3, 8)
    assert sizes == EIGHT
    sizes = sizes.going_on(3, 6).going_on(5, 2)
    assert sizes.parts == ((0, 8), (3, 6), (5, 2))
    assert [sizes.examples(step) for step in (0, 1, 3, 4, 5, 7)] == [0, 8, 24, 30, 36, 40]
    even = [sizes.examples(step, lambda step: (step + 1) // 2) for step in range(8)]
    assert even == [0, 8, 8, 16, 16, 22, 22, 24]
    # Steps of a checkpoint that was not used, of a later size, are no steps of this run.
    assert sizes.going_on(4, 8).parts == ((0, 8), (3, 6), (4, 8))
    assert sizes.going_on(3, 8) == EIGHT
    assert sizes.going_on(0, 5).parts == ((0, 5),)
    assert BatchSizes.read(json.loads(json.dumps(sizes.parts)), "x") == sizes
    for wrong in ([], [[1, 8]], [[0, 0]], [[0, 8], [0, 6]], [[0, 8], [5, 6], [4, 6]], 3, [[0]]):
        with pytest.raises(UserError, match="impossible batch sizes"):
            BatchSizes.read(wrong, "the checkpoint")


@pytest.mark.parametrize(("size", "shards"), [(6, 1), (12, 3), (16, 2), (4, 4)])
def test_no_example_is_left_out_or_repeated(size, shards):
    whole = joined(take(SMALL, 12))
    later = joined(take(SMALL, 2, global_batch=size, shards=shards, start=3, earlier=EIGHT))
    wanted = {key: rows[24 : 24 + 2 * size] for key, rows in whole.items()}
    assert_same([later], [wanted])
    # And once more with another size, which 24 and what came since need not divide.
    twice = EIGHT.going_on(3, size)
    last = joined(take(SMALL, 1, global_batch=10, start=5, earlier=twice))
    begin = 24 + 2 * size
    assert_same([last], [{key: rows[begin : begin + 10] for key, rows in whole.items()}])


@pytest.mark.smoke
def test_the_same_size_goes_on_to_the_bit():
    assert_same(take(SMALL, 3, start=4, earlier=EIGHT), take(SMALL, 7)[4:])


def test_each_of_two_sources_goes_on_where_it_was():
    config = tiny.get_config("clips")
    config.data.update(image_share=0.5, image_source="synthetic")
    data = make_data_config(finalize(config))
    before = take(data, 9)
    after = take(data, 9, global_batch=6, start=9, earlier=EIGHT)
    assert {batch["pixels"].shape[1] for batch in after} > {1}
    for single, spec, number in ((True, "synthetic", (1,)), (False, "motion", ())):
        source = open_source(dataclasses.replace(data, source=spec, image_source=""), "train")
        order = EpochOrder(len(source), data.seed, *number)
        batches = [b for b in before + after if (b["pixels"].shape[1] == 1) == single]
        found = np.concatenate([batch["index"] for batch in batches])
        np.testing.assert_array_equal(found, [order[n] for n in range(len(found))])


def test_token_sets_go_on_where_they_were(tmp_path):
    pytest.importorskip("array_record")
    bits = np.random.default_rng(0).integers(0, 2, (50, 1, 2, 2, 6)).astype(np.uint8)
    write_split(tmp_path / "train.array_record", [(clip, -1) for clip in bits])
    described = TokenSet(tmp_path, "0", 1, (2, 2), 6, {"train": 50}, "test")
    write_description(described)
    tokens = read_description(tmp_path)

    def read(steps, size, start=0, earlier=None):
        batches = token_batches(
            *(tokens, "train", SMALL),
            names_code=TokenLayout(1, 6, 64).names_code,
            global_batch=size,
            shard_index=0,
            shard_count=1,
            start_step=start,
            earlier=earlier,
        )
        found = joined([next(batches) for _ in range(steps)])
        batches.close()
        return found

    whole, later = read(12, 8), read(3, 6, 3, EIGHT)
    assert_same([later], [{key: rows[24:42] for key, rows in whole.items()}])


def test_a_run_goes_on_with_another_batch_size(tmp_path, capsys):
    """Its checkpoints say the sizes; one that does not was always of its config's."""
    words = ["--config", TINY, "--workdir", str(tmp_path)]

    def run(steps, size):
        flags = [f"--config.train.steps={steps}", f"--config.train.batch_size={size}"]
        assert main.run([*words, *flags]) == 0
        with open_checkpoints(tmp_path) as checkpoints:
            return checkpoints.read_meta()["batch_sizes"], capsys.readouterr().err

    assert run(2, 8)[0] == [[0, 8]]
    sizes, said = run(3, 16)
    assert sizes == [[0, 8], [2, 16]]
    assert "batch size 8 -> 16: the data go on after the 16 examples seen so far\n" in said
    sizes, said = run(4, 16)
    assert sizes == [[0, 8], [2, 16]]
    assert "the data go on" not in said
    for path in (tmp_path / "checkpoints").glob("*/meta/*"):  # as an older version wrote them
        if "batch_sizes" in path.read_text(errors="ignore"):
            meta = json.loads(path.read_text())
            del meta["batch_sizes"]
            path.write_text(json.dumps(meta))
    for path in (tmp_path / "checkpoints").glob("*/"):
        checksums.write(path)
    sizes, said = run(5, 8)
    assert sizes == [[0, 16], [4, 8]]
    assert "batch size 16 -> 8: the data go on after the 64 examples seen so far\n" in said
