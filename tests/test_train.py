"""The training loop. Oracle: what a task that only counts must have seen."""

import contextlib
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bsq_jax.core.errors import NonFiniteError
from bsq_jax.core.sharding import make_mesh, replicate
from bsq_jax.training.loop import AHEAD, Schedule, TrainingLoop
from bsq_jax.training.state import DiscriminatorState, TrainState
from bsq_jax.training.stop_signal import StopSignal


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

    data_wait = progress = restart_rates = arrived = lambda self, *values: None


def run(
    task, mesh, batches, steps, log, saved, log_every, state=None, save_every=100,
    evaluate=None, **every,
):  # fmt: skip
    if state is None:
        state = TrainState(*replicate((np.int32(0), {"seen": np.int32(0)}), mesh), None, None)
    with StopSignal() as stop:
        loop = TrainingLoop(
            task,
            mesh,
            Schedule(steps, log_every, save_every, **every),
            checkpointer=types.SimpleNamespace(
                save=lambda step, state, meta: saved.append(step), wait=lambda: None
            ),
            monitor=log,
            stop=stop,
            meta={},
            evaluate=evaluate,
        )
        state, finished = loop.run(state, batches)
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
    """The step is traced once for each length."""
    log, saved, task = Log(), [], Counting()
    chex.clear_trace_counter()
    task.train_step = chex.assert_max_traces(task.train_step, n=len(set(lengths)))
    state = run(task, make_mesh(), Batches(lengths), len(lengths), log, saved, log_every=1)
    (first,) = (line for line in log.lines if line.startswith("first step after "))
    assert [line for line in log.lines if line != first] == lines
    assert log.lengths == lengths
    assert saved == [len(lengths)]
    seen = sum(7 * length + 1 for length in lengths)
    chex.assert_trees_all_equal(state.params, {"seen": np.int32(seen)})
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


class Numbering(Counting):
    """Its metric is the number of the step, from 1."""

    def train_step(self, state, batch, frozen):
        state, _ = super().train_step(state, batch, frozen)
        return state, {"length": state.step.astype(jnp.float32)}


@pytest.mark.parametrize("log_every", [1, 2, 100])
@pytest.mark.usefixtures("eight_devices")
def test_the_loop_waits_for_no_step_but_those_long_under_way(log_every, monkeypatch):
    """The device always has a step to go on with, and never more than a few."""
    events, inside, steps = [], [], 8
    kind, ready = type(jnp.zeros(())), jax.block_until_ready
    as_array = kind.__array__

    def noting(name, function):
        def call(array, *words, **more):
            if not inside:
                events.append("codes" if array.dtype == jnp.int8 else name)
            return function(array, *words, **more)

        return call

    def wait(tree):
        numbers = tree["length"] if isinstance(tree, dict) else None
        events.append("state" if numbers is None else int(as_array(numbers)))
        inside.append(True)  # it calls a method of the array
        try:
            return ready(tree)
        finally:
            inside.pop()

    monkeypatch.setattr(jax, "block_until_ready", wait)
    for name in ("block_until_ready", "__array__", "__int__", "__float__", "__bool__", "item"):
        monkeypatch.setattr(kind, name, noting(name, getattr(kind, name)))
    batches = Asking([1] * steps, lambda: events.append("batch"))
    run(Numbering(), make_mesh(), batches, steps, Deferring(), [], log_every)

    wanted = []
    for step in range(1, steps):
        wanted.append("batch")
        if step == 1:
            wanted.append("state")  # its time is told
        elif step > AHEAD:
            wanted.append(step - AHEAD)
            wanted += ["codes"] if (step - AHEAD) % log_every == 0 else []
    first = events.index("batch")
    assert events[first : first + len(wanted)] == wanted
    assert events[first + len(wanted)] == "batch"  # of the last step, which is waited for


class Descending(Counting):
    """Adam with a gradient of 1e20 at one step; the metrics know nothing of it."""

    broken = 3

    def __init__(self, where):
        self._where, self._optimizer = where, optax.adam(0.1)

    def new_state(self, mesh):
        params = {"w": np.ones(3, np.float32)}
        opt_state = self._optimizer.init(params)
        second = DiscriminatorState(params, opt_state, np.zeros(2, np.float32), np.float32(0))
        return jax.tree.map(
            jnp.copy, replicate(TrainState(np.int32(0), params, params, opt_state, second), mesh)
        )

    def train_step(self, state, batch, frozen):
        def spoilt(name, value):
            here = (state.step + 1 == self.broken) & (name == self._where)
            return jnp.where(here, value, 0.0)

        gradient = {"w": jnp.ones(3) + spoilt("opt_state", 1e20)}
        updates, opt_state = self._optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = jax.tree.map(lambda leaf: leaf + spoilt("ema", jnp.nan), state.ema)
        second = state.adversary
        judged = {"w": jnp.ones(3) + spoilt("discriminator", 1e20)}
        _, second_opt = self._optimizer.update(judged, second.opt_state, second.params)
        second = second.replace(
            opt_state=second_opt, anchors=second.anchors + spoilt("anchors", -jnp.inf)
        )
        new = TrainState(state.step + 1, params, ema, opt_state, second)
        return new, {"length": jnp.float32(1)}


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("opt_state", r"statistics of the optimizer \(opt_state/0/nu/w is infinite\)"),
        ("ema", r"averaged parameters \(ema/w is NaN\)"),
        ("discriminator", r"discriminator's optimizer \(adversary/opt_state/0/nu/w is infinite\)"),
        ("anchors", r"averages of the discriminator \(adversary/anchors is infinite\)"),
    ],
)
@pytest.mark.parametrize(("log_every", "save_every"), [(4, 100), (100, 2)])
def test_nothing_in_the_state_may_be_infinite(where, told, log_every, save_every):
    """What one step breaks is found at the next line of the log, and before it is saved."""
    task, mesh, log, saved = Descending(where), make_mesh(), Log(), []
    state = task.new_state(mesh)
    batches = Asking([1] * 20, lambda: log.lengths.append("batch"))
    with pytest.raises(NonFiniteError, match=f"^step 4: not finite any more: .*{told}; a gradient"):
        run(task, mesh, batches, 20, log, saved, log_every, state, save_every)
    assert saved == ([2] if save_every == 2 else [])
    assert log.lengths.count("batch") <= 4 + AHEAD  # not at the next line after that


@pytest.mark.smoke
def test_an_optimizer_whose_statistics_overflow_never_moves_again():
    """Why infinite statistics are an error: float32 holds squares up to 3e38."""
    task = Descending("opt_state")
    state, batch = task.new_state(make_mesh()), {"pixels": np.zeros((8, 1)), "frames": np.ones(8)}
    values = []
    for _ in range(5):
        state = jax.jit(task.train_step)(state.replace(params=state.params), batch, {})[0]
        values.append(float(state.params["w"][0]))
    assert values[0] > values[1] > values[2] - 1e-6
    assert values[2] == values[3] == values[4]


@pytest.mark.parametrize(
    ("history", "looked"),
    [
        ([{"step": 4, "prefix": "train"}], [(4, True), (6, False)]),
        ([{"step": 4, "prefix": "train"}, {"step": 4, "prefix": "val_raw"}], [(6, False)]),
        ([{"step": 2, "prefix": "val_raw"}], [(4, True), (6, False)]),
    ],
)
def test_an_evaluation_that_a_signal_prevented_is_made_on_resuming(history, looked):
    log, found = Log(), []
    log.history, log.pause = lambda: history, contextlib.nullcontext
    state = TrainState(*replicate((np.int32(4), {"seen": np.int32(0)}), make_mesh()), None, None)
    every = {"evaluate_every": 2, "picture_every": 4}
    evaluate = lambda state, pictures: found.append((int(state.step), pictures))  # noqa: E731
    run(Counting(), make_mesh(), Batches([1] * 4), 8, log, [], 1, state, evaluate=evaluate, **every)
    assert found == looked
