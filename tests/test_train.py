"""The training loop. Oracle: what a task that only counts must have seen."""

import contextlib
import os
import signal
import time
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bsq_jax.core import signals
from bsq_jax.core.errors import INTERRUPTED, RUN_AGAIN, NonFiniteError
from bsq_jax.core.sharding import make_mesh, replicate
from bsq_jax.training import stop_signal
from bsq_jax.training.loop import AHEAD, TrainingLoop
from bsq_jax.training.schedule import Left, Schedule
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

    data_wait = progress = restart_rates = arrived = done = lambda self, *values: None

    def saving(self, *_, **__):
        return contextlib.nullcontext()

    evaluating = pause = saving


def run(
    task, mesh, batches, steps, log, saved, log_every, state=None, save_every=100,
    evaluate=None, count_tokens=None, **every,
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
            count_tokens=count_tokens,
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


class OfSizes(Batches):
    """Batches of the given sizes, of 16 // height examples on each of eight devices."""

    def __next__(self):
        frames, height, width = next(self._lengths)
        count = 8 * (16 // height)
        pixels = np.zeros((count, frames, height, width, 3), np.uint8)
        return {"pixels": pixels, "frames": np.full(count, frames, np.int32)}


@pytest.mark.smoke
def test_frames_of_several_sizes():
    """A program for each pair of length and size; examples and tokens of each step are told."""
    log, done = Log(), []
    log.progress = lambda step, flops, examples, tokens: done.append((step, examples, tokens))
    sizes = [(1, 4, 8), (1, 8, 8), (2, 8, 8), (1, 4, 8), (2, 8, 8)]
    run(
        Counting(), make_mesh(), OfSizes(sizes), 5, log, [], log_every=1,
        count_tokens=lambda batch: batch["pixels"][..., 0].size,
    )  # fmt: skip
    assert [line for line in log.lines if not line.startswith("first step")] == [
        "step 2: compiling for single frames of 8x8",
        "step 3: compiling for clips of 2 frames of 8x8",
    ]
    wanted = []
    for step, (frames, height, width) in enumerate(sizes, 1):
        count = 8 * (16 // height)
        wanted.append((step, count, count * frames * height * width))
    assert done == wanted


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
    log.history = lambda: history
    state = TrainState(*replicate((np.int32(4), {"seen": np.int32(0)}), make_mesh()), None, None)
    every = {"evaluate_every": 2, "picture_every": 4}
    evaluate = lambda state, pictures: found.append((int(state.step), pictures))  # noqa: E731
    run(Counting(), make_mesh(), Batches([1] * 4), 8, log, [], 1, state, evaluate=evaluate, **every)
    assert found == looked


# --- signals ---


class Saves:
    """A checkpointer that only notes what it saves, and what was saved when it was waited for."""

    def __init__(self):
        self.steps, self.waited, self.complete, self.under_way = [], [], None, None
        self.saving = lambda: None

    def save(self, step, state, meta):
        self.steps.append(step)
        self.under_way = step
        self.saving()
        self.complete, self.under_way = step, None

    def wait(self):
        self.waited.append(self.complete)


class Stopping:
    """A run of eight steps with a checkpoint at 4 and an evaluation at 6, and what it said."""

    def __init__(self):
        self.log, self.saves, self.evaluated = Log(), Saves(), []
        # What to do when a batch is asked for, the step is traced or an evaluation begins.
        self.during = {}
        self.stop = StopSignal()
        self.stop.say = self.log.info
        self.stop.saves = self.saves

    def _batches(self):
        number = [0]

        def asked():
            number[0] += 1
            self.during.get(number[0], lambda: None)()

        return Asking([1] * 8, asked)

    def _evaluate(self, state, drawn):
        self.during.get("evaluation", lambda: None)()
        self.evaluated.append(int(state.step))

    def run(self):
        """Whether the loop ended by itself, and the exit status otherwise."""
        mesh = make_mesh()
        state = TrainState(*replicate((np.int32(0), {"seen": np.int32(0)}), mesh), None, None)
        done, task = False, Counting()

        def train_step(*arguments):
            self.during.get("step", lambda: None)()  # it is traced once
            return Counting.train_step(task, *arguments)

        task.train_step = train_step
        with self.stop as stop:
            loop = TrainingLoop(
                task,
                mesh,
                Schedule(8, 1, 4, evaluate_every=6),
                checkpointer=self.saves,
                monitor=self.log,
                stop=stop,
                meta={},
                evaluate=self._evaluate,
            )
            done = loop.run(state, self._batches())[1]
        return done, stop.status


def send(number):
    os.kill(os.getpid(), number)


def press(stopping, lines=1):
    """Ctrl-C, and until it is answered."""
    send(signal.SIGINT)
    give_up = time.monotonic() + 30
    said = lambda: [line for line in stopping.log.lines if "Ctrl-C" in line]  # noqa: E731
    while len(said()) < lines and time.monotonic() < give_up:
        time.sleep(0.01)


@pytest.fixture
def handlers():
    """Those of this process must be the same afterwards."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(signal.SIGINT, signal.default_int_handler), None]
    found = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == found
    signal.signal(signal.SIGINT, before[0])


@pytest.mark.parametrize(
    ("number", "name", "status"),
    [(signal.SIGINT, "Ctrl-C", INTERRUPTED), (signal.SIGTERM, "SIGTERM", RUN_AGAIN)],
)
@pytest.mark.usefixtures("handlers")
def test_a_signal_finishes_the_step_and_saves_it(number, name, status):
    stopping = Stopping()
    stopping.during[3] = lambda: send(number)  # while the third step waits for its data
    assert stopping.run() == (False, status)
    assert stopping.saves.steps == [3]
    assert stopping.saves.waited == [3, 3]
    last = stopping.log.lines[-1]
    assert last.startswith(f"stopped by {name} after step 3: saved in 0.")
    assert last.endswith(" s, run the same command again to go on")
    answered = [line for line in stopping.log.lines if line.startswith("Ctrl-C: ")]
    told = "Ctrl-C: finishing step 3 and saving; press it again to leave at once"
    assert answered in ([told], []) if number == signal.SIGINT else answered == []


@pytest.mark.usefixtures("handlers")
def test_ctrl_c_beats_sigterm():
    """A terminal sends one and a launcher that forwards it the other: nobody starts it again."""
    stopping = Stopping()

    def both():
        send(signal.SIGTERM)
        press(stopping)
        send(signal.SIGINT)  # passed on by another program: the same press
        send(signal.SIGTERM)

    stopping.during[2] = both
    assert stopping.run() == (False, INTERRUPTED)
    assert stopping.saves.steps == [2]
    assert len([line for line in stopping.log.lines if line.startswith("Ctrl-C")]) == 1


@pytest.mark.usefixtures("handlers")
def test_a_signal_while_the_first_step_is_made_is_answered_and_the_step_saved():
    stopping = Stopping()
    stopping.during["step"] = lambda: press(stopping)
    assert stopping.run() == (False, INTERRUPTED)
    assert stopping.saves.steps == [1]
    (line,) = (line for line in stopping.log.lines if line.startswith("Ctrl-C"))
    assert line == (
        "Ctrl-C: finishing step 1 (it is being compiled, which cannot be cut short) and saving; "
        "press it again to leave at once"
    )


@pytest.mark.usefixtures("handlers")
def test_before_the_first_step_nothing_is_saved(capsys):
    stopping = Stopping()
    stopping.during[1] = lambda: send(signal.SIGINT)
    assert stopping.run() == (False, INTERRUPTED)
    assert stopping.saves.steps == []
    assert capsys.readouterr().err == (
        "stopped by Ctrl-C before the first step: nothing is lost, run the same command again to "
        "begin\n"
    )


@pytest.mark.usefixtures("handlers")
def test_an_evaluation_is_left_once_its_step_is_saved(capsys):
    stopping = Stopping()

    def pressed():
        assert (stopping.saves.steps, stopping.saves.waited) == ([4, 6], [6])
        send(signal.SIGINT)
        time.sleep(30)

    stopping.during["evaluation"] = pressed
    assert stopping.run() == (False, INTERRUPTED)
    assert stopping.evaluated == []
    assert capsys.readouterr().err == (
        "stopped by Ctrl-C in the evaluation of step 6: the step is saved, run the same command "
        "again to go on\n"
    )


@pytest.mark.usefixtures("handlers")
def test_after_an_evaluation_a_signal_is_not_said_to_be_in_it(capsys):
    stopping = Stopping()
    stopping.during[7] = lambda: send(signal.SIGINT)
    assert stopping.run() == (False, INTERRUPTED)
    assert stopping.evaluated == [6]
    assert capsys.readouterr().err == (
        "stopped by Ctrl-C after step 6: the step is saved, run the same command again to go on\n"
    )


@pytest.mark.parametrize(
    ("when", "line"),
    [
        (2, "left at once: no step had been saved, all are lost"),
        (5, "left at once: the steps after 4 are lost"),
        (
            "save of 2",
            "left at once while step 2 was being saved: no step had been saved, all are lost",
        ),
        ("save of 5", "left at once while step 5 was being saved: the steps after 4 are lost"),
        ("evaluation", "left at once in the evaluation of step 6: the step is saved"),
    ],
)
@pytest.mark.usefixtures("handlers")
def test_a_second_ctrl_c_leaves_at_once(monkeypatch, when, line):
    monkeypatch.setattr(signals, "ONE_PRESS", 0.0)
    left, stopping = [], Stopping()
    monkeypatch.setattr(stop_signal, "_leave", left.append)

    def press_again():
        with contextlib.suppress(BaseException):  # the first one's reason to end, once more
            send(signal.SIGINT)
        give_up = time.monotonic() + 30
        while not left and time.monotonic() < give_up:
            time.sleep(0.01)

    def twice():
        try:
            press(stopping)
        finally:
            press_again()

    if when in ("save of 2", "save of 5"):
        step = int(when[-1])
        stopping.during[step] = lambda: press(stopping)
        stopping.saves.saving = lambda: press_again() if stopping.saves.steps[-1] == step else None
    else:
        stopping.during[when] = twice
    assert stopping.run() == (False, INTERRUPTED)
    assert left == [line]


def test_a_process_in_the_background_goes_on_ignoring_ctrl_c():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stopping = Stopping()
        stopping.during[3] = lambda: send(signal.SIGINT)
        assert stopping.run() == (True, RUN_AGAIN)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("every", [(4, 6, 0), (4, 6, 3), (5, 0, 3), (7, 0, 0), (1, 1, 1)])
def test_what_is_left_of_a_schedule(every):
    schedule = Schedule(13, 1, *every)
    for step in range(1, 14):
        rest = range(step, 13)
        evaluated = [each for each in rest if schedule.evaluates(each)]
        drawn = sum(map(schedule.draws, evaluated))
        saves = sum(map(schedule.saves, rest)) + 1
        assert schedule.left(step) == Left(13 - step, saves, len(evaluated) - drawn, drawn + 1)
