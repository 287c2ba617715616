"""Checkpoints. Oracle: the arrays that were saved, compared to the bit."""

import contextlib
import json
import logging
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bsq_jax.core.errors import UserError
from bsq_jax.training import checksums
from bsq_jax.training.checkpoint import Checkpointer

DEVICES = 8

ROOT = pathlib.Path(__file__).parent.parent


class State(struct.PyTreeNode):
    step: jax.Array
    params: dict
    opt_state: optax.OptState
    ema: dict | None = None


def make_state(seed=0, *, ema=True):
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "encoder": {"kernel": jax.random.normal(keys[0], (8, 16)), "bias": jnp.arange(16.0)},
        "head": {"scale": jax.random.normal(keys[1], (4,), jnp.bfloat16)},
        "layers": [jax.random.bits(keys[2], (3, 2), jnp.uint8), jnp.array([True, False])],
    }
    weights = {"encoder": params["encoder"], "head": params["head"]}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return State(
        step=jnp.int32(seed),
        params=params,
        opt_state=optimizer.init(weights),
        ema=weights if ema else None,
    )


def abstract(state, sharding=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), state
    )


def assert_same_bits(found, expected):
    """Structure, shapes, types and values; compared as bytes, so that -0 and NaN count too."""
    chex.assert_trees_all_equal_structs(found, expected)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    as_bytes = lambda leaf: np.frombuffer(np.asarray(leaf).tobytes(), np.uint8)  # noqa: E731
    chex.assert_trees_all_equal(*(jax.tree.map(as_bytes, tree) for tree in (found, expected)))


def save(directory, *steps, keep=2):
    with Checkpointer(directory, keep=keep) as checkpointer:
        checkpointer.restore_latest(abstract(make_state()))
        for step in steps:
            checkpointer.save(step, make_state(step), {"step": step})


def restored_step(directory):
    with Checkpointer(directory) as checkpointer:
        step, state, meta = checkpointer.restore_latest(abstract(make_state()))
    assert_same_bits(state, make_state(step))
    assert meta == {"step": step}
    return step


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def data_files(directory, step):
    """The files that hold the arrays, the largest first."""
    files = [p for p in (directory / str(step) / "state").rglob("*") if p.parent.name == "d"]
    return sorted(files, key=lambda path: -path.stat().st_size)


def test_a_state_may_gain_a_field_without_leaves_alone(tmp_path):
    """Checkpoints of older versions do not have it; the comparison of leaves does not see it."""

    @struct.dataclass
    class Grown(State):
        another: object = None

    state = make_state()
    save(tmp_path, 0)
    fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
    grown = Grown(**fields)
    with Checkpointer(tmp_path) as checkpointer:
        assert_same_bits(checkpointer.restore_latest(abstract(grown))[1], grown)
        with pytest.raises(
            UserError, match=r"was written before runs had 'another': begin a new run"
        ):
            checkpointer.restore_latest(abstract(Grown(**fields, another=(jnp.zeros(2),))))


@pytest.mark.parametrize("process", [0, 1])
def test_a_step_is_complete_once_process_zero_has_completed_it(process, tmp_path, monkeypatch):
    """Process 0 writes the table of checksums after the others have written their parts."""
    seen = []
    with Checkpointer(tmp_path) as saves:
        saves.save(1, make_state(), {})
        saves.wait()
        assert saves.complete == 1
        finished = []
        monkeypatch.setattr(saves._folder, "finish", finished.append)
        monkeypatch.setattr(saves._orbax, "save", lambda *_, **__: None)
        saves.save(2, make_state(), {})
        saves._thread.join()
        saves._complete, saves._under_way = 1, 2
        with monkeypatch.context() as several:
            several.setattr(jax, "process_index", lambda: process)
            several.setattr(jax, "process_count", lambda: 2)
            several.setattr(
                jax.experimental.multihost_utils,
                "sync_global_devices",
                lambda _: seen.append((saves.complete, saves.under_way)),
            )
            saves._finish(2)
            saves.wait()
        assert finished == [2, 2]
        assert seen == [(1, 2) if process else (2, None)]
        assert (saves.complete, saves.under_way) == (2, None)


@pytest.mark.smoke
def test_round_trip_to_the_bit(tmp_path):
    state, meta = make_state(7), {"config": {"bits": 18}, "history": [[1, 0.5]], "text": "ü"}
    with Checkpointer(tmp_path / "new" / "checkpoints") as checkpointer:
        assert checkpointer.restore_latest(abstract(state)) is None
        assert checkpointer.read_meta() is None
        assert checkpointer.latest_step() is None
        assert not (tmp_path / "new").exists()  # looking makes no folders
        checkpointer.save(7, state, meta)
    with Checkpointer(tmp_path / "new" / "checkpoints") as checkpointer:
        assert checkpointer.read_meta() == meta
        step, found, found_meta = checkpointer.restore_latest(abstract(state))
    assert (step, found_meta) == (7, meta)
    assert_same_bits(found, state)


def test_donating_the_state_after_save_does_not_change_what_is_saved(tmp_path):
    state = jax.tree.map(jnp.copy, make_state(3))  # one buffer a leaf: each is donated once
    expected = jax.tree.map(np.array, state)
    spoil = jax.jit(lambda tree: jax.tree.map(lambda x: ~x if x.dtype == bool else x + 1, tree),
                    donate_argnums=0)  # fmt: skip
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(3, state, {})
        spoil(state)
        checkpointer.wait()
        _, found, _ = checkpointer.restore_latest(abstract(make_state()))
    assert_same_bits(found, expected)


def test_only_the_newest_complete_ones_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 10)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["10", "4"]
    save(tmp_path, 11, 12, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["12"]


def test_nothing_is_pruned_before_the_new_one_has_its_checksums(tmp_path, monkeypatch):
    save(tmp_path, 1, 2)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    with Checkpointer(tmp_path, keep=2) as checkpointer:
        checkpointer.restore_latest(abstract(make_state()))
        monkeypatch.setattr(checksums, "write", full_disk)
        checkpointer.save(3, make_state(3), {})
        with pytest.raises(UserError, match=r"step 3 .*No space left on device"):
            checkpointer.wait()
        monkeypatch.undo()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2", "3"]
        assert restored_step(tmp_path) == 2
        checkpointer.save(4, make_state(4), {"step": 4})
    # The one without checksums went; it is none of the two that are kept.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "4"]
    assert restored_step(tmp_path) == 4


def flipped_data(folder):
    flip_bit(data_files(folder.parent, folder.name)[0])


def flipped_meta(folder):
    flip_bit(folder / "meta" / "metadata")


def flipped_table(folder):
    path = folder / checksums.NAME
    path.write_bytes(path.read_bytes().replace(b'"files"', b'"filez"'))


def edited_table(folder):
    table = json.loads((folder / checksums.NAME).read_text())
    table["files"].popitem()
    (folder / checksums.NAME).write_text(json.dumps(table))


def truncated(folder):
    path = data_files(folder.parent, folder.name)[0]
    os.truncate(path, path.stat().st_size - 1)


def missing_file(folder):
    (folder / "state" / "_METADATA").unlink()


def missing_table(folder):
    (folder / checksums.NAME).unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flipped_data, r"state/(.*/)?d/\w+ differs from its checksum"),
        (flipped_meta, r"meta/metadata differs from its checksum"),
        (flipped_table, r"checksums\.json is damaged"),
        (edited_table, r"checksums\.json is damaged"),
        (truncated, r"state/(.*/)?d/\w+ has \d+ bytes instead of \d+"),
        (missing_file, r"state/_METADATA is missing"),
        (missing_table, r"it has no checksums\.json"),
    ],
)
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, caplog, damage, words):
    save(tmp_path, 10, 20)
    damage(tmp_path / "20")
    with Checkpointer(tmp_path) as checkpointer, caplog.at_level(logging.WARNING, "bsq_jax"):
        assert checkpointer.read_meta() == {"step": 10}
        step, state, _ = checkpointer.restore_latest(abstract(make_state()))
        assert step == 10
        assert_same_bits(state, make_state(10))
        (record,) = caplog.records  # one line, however often we look
        assert "\n" not in record.getMessage()
        assert f"{tmp_path}/20 is not used" in record.getMessage()
        assert re.search(words, record.getMessage())
        # The run goes on from step 10 and comes to step 20 again.
        checkpointer.save(20, make_state(20), {"step": 20})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["10", "20", "20.damaged"]
    assert restored_step(tmp_path) == 20
    save(tmp_path, 30, 40)  # past the damaged one by as many as are kept, it goes too
    assert sorted(p.name for p in tmp_path.iterdir()) == ["30", "40"]


@pytest.mark.parametrize("newest", [truncated, missing_table])
def test_all_damaged_is_an_error_and_not_a_fresh_start(tmp_path, newest):
    save(tmp_path, 1, 2)
    flipped_data(tmp_path / "1")
    newest(tmp_path / "2")
    with (
        Checkpointer(tmp_path) as checkpointer,
        pytest.raises(UserError, match=r"no checkpoint .* is usable .*2 there, all damaged"),
    ):
        checkpointer.restore_latest(abstract(make_state()))


def test_killed_during_the_first_save_the_run_starts_anew(tmp_path, caplog):
    save(tmp_path, 8)
    missing_table(tmp_path / "8")  # what a kill between Orbax's rename and our checksums leaves
    with Checkpointer(tmp_path) as checkpointer, caplog.at_level(logging.WARNING, "bsq_jax"):
        assert checkpointer.read_meta() is None
        assert checkpointer.restore_latest(abstract(make_state())) is None
        (record,) = caplog.records
        assert "it has no checksums.json" in record.getMessage()
        checkpointer.save(8, make_state(8), {"step": 8})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["8", "8.damaged"]
    assert restored_step(tmp_path) == 8


def test_each_file_is_read_for_its_checksum_once(tmp_path, monkeypatch):
    save(tmp_path, 1, 2)
    flipped_data(tmp_path / "2")
    looked = []
    original = checksums.problem
    monkeypatch.setattr(
        checksums, "problem", lambda f, *share: looked.append(f.name) or original(f, *share)
    )
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.read_meta()
        checkpointer.restore_latest(abstract(make_state()))
        checkpointer.save(2, make_state(2), {})
        checkpointer.wait()
        assert checkpointer.latest_step() == 2
    assert looked == ["2", "1"]


def test_the_step_we_started_from_is_not_written_again(tmp_path):
    save(tmp_path, 5)
    before = (tmp_path / "5" / checksums.NAME).stat().st_mtime_ns
    save(tmp_path, 5)
    assert (tmp_path / "5" / checksums.NAME).stat().st_mtime_ns == before


def test_a_run_that_did_not_resume_may_not_write_over_another(tmp_path):
    save(tmp_path, 5)
    with (
        Checkpointer(tmp_path) as checkpointer,
        pytest.raises(UserError, match="resume from it, or take another workdir"),
    ):
        checkpointer.save(2, make_state(2), {})
    assert restored_step(tmp_path) == 5


@pytest.mark.parametrize("target", [(1, 1), (4, 2), (2, 4)])
def test_restores_onto_another_mesh(tmp_path, target):
    def shardings(rows, columns):
        devices = np.array(jax.devices()[: rows * columns]).reshape(rows, columns)
        return NamedSharding(Mesh(devices, ("data", "fsdp")), PartitionSpec("data", "fsdp"))

    array = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    state = {"w": jax.device_put(array, shardings(8, 1))}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state, {})
    with Checkpointer(tmp_path) as checkpointer:
        _, found, _ = checkpointer.restore_latest(abstract(state, shardings(*target)))
    assert found["w"].sharding == shardings(*target)
    assert_same_bits(found, state)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p["encoder"].update(kernel=jnp.zeros((8, 32))),
         r"'params/encoder/kernel' is float32\[8, 16\] there and float32\[8, 32\] here"),
        (lambda p: p["head"].update(scale=jnp.zeros(4)),
         r"'params/head/scale' is bfloat16\[4\] there and float32\[4\] here"),
        (lambda p: p.update(decoder=jnp.zeros(2)), r"it has no 'params/decoder'"),
        (lambda p: p["encoder"].pop("bias"), r"it has 'ema/encoder/bias', which is not"),
    ],
)  # fmt: skip
def test_another_model_is_refused_by_the_name_of_the_first_leaf(tmp_path, change, words):
    save(tmp_path, 1)
    other = make_state()
    change(other.params)
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(UserError, match=words):
        checkpointer.restore_latest(abstract(other))


def test_partial_restore_reads_the_fields_asked_for(tmp_path):
    save(tmp_path, 4)
    with Checkpointer(tmp_path) as checkpointer:
        step, found, meta = checkpointer.restore_partial(["params", "ema"])
        assert (step, meta) == (4, {"step": 4})
        assert sorted(found) == ["ema", "params"]
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found))
        assert_same_bits(found, {"params": make_state(4).params, "ema": make_state(4).ema})
        with pytest.raises(UserError, match=r"has no 'parms', only \["):
            checkpointer.restore_partial(["parms"])
    with Checkpointer(tmp_path / "no") as checkpointer, pytest.raises(UserError, match="train"):
        checkpointer.restore_partial(["params"])


def test_a_field_that_is_none_is_not_there(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, make_state(ema=False), {})
        checkpointer.wait()
        _, found, _ = checkpointer.restore_latest(abstract(make_state(ema=False)))
        assert found.ema is None
        with pytest.raises(UserError, match="has no 'ema'"):
            checkpointer.restore_partial(["ema"])


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(UserError, match="keep at least 1"):
        Checkpointer(tmp_path, keep=0)
    with pytest.raises(UserError, match="mount the bucket"):
        Checkpointer("gs://bucket/run")


CHILD = """
import os, sys
import jax, numpy as np
from bsq_jax.training.checkpoint import Checkpointer
sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
shape = jax.ShapeDtypeStruct((64, 1024), np.uint32, sharding=sharding)
with Checkpointer(sys.argv[1]) as checkpointer:
    found = checkpointer.restore_latest({"a": shape, "b": shape})
    step = found[0] if found else 0
    while True:
        step += 1
        a = jax.device_put(np.random.default_rng(step).integers(0, 2**32, (64, 1024), np.uint32))
        checkpointer.save(step, {"a": a, "b": ~a}, {"step": step})
        print(step, flush=True)
"""


def spawn(code, *arguments, **more):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more,
    )  # fmt: skip


def test_kill_9_at_a_random_moment(tmp_path):
    generator = random.Random(0)
    last = 0
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shape = jax.ShapeDtypeStruct((64, 1024), np.uint32, sharding=sharding)
    for _ in range(3):
        child = spawn(CHILD, tmp_path / "run")
        try:
            printed = []
            while len(printed) < 4:  # warnings about what the last kill left come in between
                line = child.stdout.readline()
                assert line, "the child ended by itself"
                printed += [int(line)] if line.strip().isdecimal() else []
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(generator.uniform(0, 0.3))
        finally:
            child.kill()
        printed += [int(line) for line in child.communicate()[0].split() if line.isdecimal()]
        assert printed[0] == last + 1
        assert child.returncode == -signal.SIGKILL, printed
        with Checkpointer(tmp_path / "run") as checkpointer:
            step, state, meta = checkpointer.restore_latest({"a": shape, "b": shape})
        # The save before the one that was announced last had been waited for.
        assert step >= printed[-1] - 1
        expected = np.random.default_rng(step).integers(0, 2**32, (64, 1024), np.uint32)
        assert_same_bits(state, {"a": expected, "b": ~expected})
        assert meta == {"step": step}
        last = step


FULL = """
import resource, sys
import jax, jax.numpy as jnp
from bsq_jax.training.checkpoint import Checkpointer
from bsq_jax.core.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
small, large = ({"w": jax.random.normal(jax.random.key(0), (n, n))} for n in (10, 1000))
try:
    with Checkpointer(sys.argv[1]) as checkpointer:
        checkpointer.save(10, small, {})
        checkpointer.save(1000, large, {})
except UserError as error:
    print(error)
print(Checkpointer(sys.argv[1]).latest_step())
"""


def test_a_disk_that_takes_no_more_is_one_line_and_the_last_checkpoint_stays(tmp_path):
    output = spawn(FULL, tmp_path).communicate(timeout=60)[0]
    lines = [line for line in output.splitlines() if line == "10" or "cannot write" in line]
    assert lines == [
        f"cannot write the checkpoint of step 1000 to {tmp_path}: File too large; make room or "
        "take another workdir, then run again to continue",
        "10",
    ], output


TWO = """
import sys, pathlib
import jax, numpy as np
port, index, folder = int(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3])
jax.distributed.initialize(f"localhost:{port}", 2, index)
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from bsq_jax.training.checkpoint import Checkpointer
from bsq_jax.core.errors import UserError
sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
def state(step):
    host = np.full((3, 2), 10 * step + index, np.float32)
    return {"w": jax.make_array_from_process_local_data(sharding, host)}
shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state(0))
with Checkpointer(folder) as checkpointer:
    for step in (1, 2, 3):
        checkpointer.save(step, state(step), {"step": step})
    checkpointer.wait()
    if index == 0:
        (folder / "3" / "checksums.json").unlink()
    jax.experimental.multihost_utils.sync_global_devices("damaged")
for _ in range(2):
    with Checkpointer(folder) as checkpointer:
        step, found, meta = checkpointer.restore_latest(shapes)
        local = found["w"].addressable_shards[0].data
        print("restored", step, meta["step"], np.asarray(local).tolist() == np.asarray(
            state(step)["w"].addressable_shards[0].data).tolist())
        checkpointer.save(3, state(3), {"step": 3})
        part = checkpointer.restore_partial(["w"])[1]["w"]
        print("partial", part.shape, part[:, 0].tolist())
with Checkpointer(folder) as checkpointer:
    try:
        checkpointer.save(2, state(2), {})
    except UserError as error:
        print("refused", "resume from it" in str(error))
"""


def test_two_processes_agree(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children = [spawn(TWO, port, index, tmp_path) for index in range(2)]
    outputs = [child.communicate(timeout=120)[0] for child in children]
    for child, output in zip(children, outputs, strict=True):
        assert child.returncode == 0, output
        lines = [x for x in output.splitlines() if x.startswith(("restored", "partial", "refused"))]
        assert lines == [
            "restored 2 2 True",
            "partial (6, 2) [30.0, 30.0, 30.0, 31.0, 31.0, 31.0]",
            "restored 3 3 True",
            "partial (6, 2) [30.0, 30.0, 30.0, 31.0, 31.0, 31.0]",
            "refused True",
        ], output
    shutil.rmtree(tmp_path)
