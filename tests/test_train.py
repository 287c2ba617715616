"""The training loop. Oracle: what a task that only counts must have seen."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsq_jax.core.sharding import make_mesh, replicate
from bsq_jax.tasks.state import TrainState
from bsq_jax.train import StopSignal, train


class Counting:
    """A task whose one parameter is the number of real frames it has seen."""

    def load_frozen(self, mesh):
        return {}

    def train_step(self, state, batch, frozen):
        assert set(batch) == {"pixels", "frames"}
        seen = state.params["seen"] + jnp.sum(batch["frames"])
        length = jnp.float32(batch["pixels"].shape[1])
        return state.replace(step=state.step + 1, params={"seen": seen}), {"length": length}


class Batches:
    """Batches of the given lengths; in each the first clip has one frame."""

    def __init__(self, lengths):
        self._lengths = iter(lengths)

    def __next__(self):
        time = next(self._lengths)
        frames = np.full(8, time, np.int32)
        frames[0] = 1
        pixels = np.zeros((8, time, 2, 2, 3), np.uint8)
        return {"pixels": pixels, "frames": frames, "index": np.arange(8)}

    def stats(self):
        return {"broken": 0}

    def close(self):
        pass


class Log:
    """What a run says, and the metrics of its steps."""

    def __init__(self):
        self.lines, self.lengths = [], []

    def info(self, line):
        self.lines.append(line)

    def push(self, step, values):
        self.lengths.append(float(values["length"]))

    def history(self):
        return []

    def flush(self):
        pass

    data_wait = progress = restart_rates = lambda self, *values: None


def run(task, mesh, batches, steps, log, saved, log_every):
    state = TrainState(*replicate((np.int32(0), {"seen": np.int32(0)}), mesh), None, None)
    with StopSignal() as stop:
        state, finished = train(
            task,
            mesh,
            lambda start, index, count: batches,
            state=state,
            steps=steps,
            batch_size=8,
            checkpointer=types.SimpleNamespace(
                save=lambda step, state, meta: saved.append(step), wait=lambda: None
            ),
            monitor=log,
            stop=stop,
            meta={},
            log_every=log_every,
            checkpoint_every=100,
            evaluate=None,
        )
    assert finished
    return state


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("lengths", "lines"),
    [
        ([1, 1, 1], []),
        (
            [2, 4, 2, 1, 4],
            [
                "step 1: compiling for clips of 2 frames",
                "step 2: compiling for clips of 4 frames",
                "step 4: compiling for single frames",
            ],
        ),
    ],
)
def test_clips_of_several_lengths(lengths, lines):
    log, saved = Log(), []
    state = run(Counting(), make_mesh(), Batches(lengths), len(lengths), log, saved, log_every=1)
    (first,) = (line for line in log.lines if line.startswith("first step after "))
    assert [line for line in log.lines if line != first] == lines
    assert log.lengths == lengths
    assert saved == [len(lengths)]
    assert int(state.params["seen"]) == sum(7 * length + 1 for length in lengths)
    assert jax.tree.leaves(state)[0].sharding.is_fully_replicated


class Asking(Batches):
    """Calls a function when a batch is asked for."""

    def __init__(self, lengths, asked):
        super().__init__(lengths)
        self._asked = asked

    def __next__(self):
        self._asked()
        return super().__next__()


class Deferring(Log):
    """Keeps metrics as they are."""

    def push(self, step, values):
        self.lengths.append(values)


@pytest.mark.parametrize("log_every", [1, 2, 100])
def test_the_loop_waits_for_no_device_between_steps(log_every, monkeypatch):
    """After the first step, whose time is told, nothing is fetched or waited for."""
    waits, at_batches = [], []

    def noting(name, function):
        return lambda *words, **more: (waits.append(name), function(*words, **more))[1]

    kind = type(jnp.zeros(()))
    monkeypatch.setattr(jax, "block_until_ready", noting("jax", jax.block_until_ready))
    for name in ("block_until_ready", "__array__", "__int__", "__float__", "__bool__", "item"):
        monkeypatch.setattr(kind, name, noting(name, getattr(kind, name)))
    batches = Asking([1] * 6, lambda: at_batches.append(len(waits)))
    run(Counting(), make_mesh(), batches, 6, Deferring(), [], log_every)
    # Before the first step, after it (which is waited for), and after each of the others.
    assert at_batches[0] < at_batches[1]
    assert set(at_batches[1:]) == {at_batches[1]}
    assert len(waits) > at_batches[-1]  # before the checkpoint
