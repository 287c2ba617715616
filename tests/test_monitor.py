"""Watching a run. Oracle: a clock set by hand, JSON, and the event file read record by record."""

import io
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tensorboardX.proto import event_pb2
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from bsq_jax.config import default_config, finalize
from bsq_jax.config.settings import declared
from bsq_jax.core.errors import NonFiniteError, UserError
from bsq_jax.core.text import duration
from bsq_jax.training import remaining, throughput
from bsq_jax.training.deferred_metrics import DeferredMetrics
from bsq_jax.training.finite_check import check_finite
from bsq_jax.training.monitor import Monitor
from bsq_jax.training.remaining import Remaining, about
from bsq_jax.training.schedule import Schedule
from bsq_jax.training.writers import json_lines


class Clock:
    """Stands for the ``time`` module; moves only when told to."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    time = monotonic


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (json_lines, throughput, remaining):
        monkeypatch.setattr(module, "time", clock)
    return clock


def make(tmp_path, **options):
    stream = io.StringIO()
    options = {"total_steps": 2000, "batch_size": 16, "stream": stream, **options}
    return Monitor(tmp_path, **options), stream


def lines_of(tmp_path):
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def events_of(tmp_path):
    """(step, tag, kind, value) of everything in TensorBoard's files."""
    found = []
    for event in events(tmp_path):
        for value in event.summary.value:
            kind = value.WhichOneof("value")
            found.append((event.step, value.tag, kind, getattr(value, kind)))
    return found


def events(tmp_path):
    """The records of TensorBoard's files, in the order in which they were written."""
    for path in sorted((tmp_path / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


@pytest.mark.smoke
def test_plain_lines_when_not_a_terminal(tmp_path, clock):
    monitor, stream = make(tmp_path)
    with monitor:
        for step, loss in ((100, 0.0625), (200, 0.03125)):
            clock.now += 4
            monitor.data_wait(0.5)
            monitor.data_wait(0.5)
            monitor.log(step, {"loss": np.float32(loss), "psnr": 18.25, "other": 1.0})
        monitor.info("a picture is in x.png")
        monitor.log(200, {"psnr": 17.5, "ssim": 0.5}, prefix="validation")
    # 100 steps of 16 images in 4 s; a second of it waiting; 1800 steps left at 25 a second.
    first, second, info, validation = stream.getvalue().splitlines()
    for line, facts in (
        (first, ("100/2000", "loss 0.0625", "psnr 18.25", "400 images/s", "25.0%", "1m16s")),
        (second, ("200/2000", "loss 0.03125", "psnr 18.25", "400 images/s", "25.0%", "1m12s")),
        (validation, ("200/2000", "validation", "psnr 17.5", "ssim 0.5")),
    ):
        assert [fact for fact in facts if fact not in line] == []
    assert "other" not in first
    assert info == "a picture is in x.png"
    train = {"images_per_second": 400.0, "data_wait": 0.25, "psnr": 18.25, "other": 1.0}
    assert lines_of(tmp_path) == [
        {"step": 100, "time": 1004.0, "prefix": "train", "loss": 0.0625, **train},
        {"step": 200, "time": 1008.0, "prefix": "train", "loss": 0.03125, **train},
        {"step": 200, "time": 1008.0, "prefix": "validation", "psnr": 17.5, "ssim": 0.5},
    ]
    assert [event[:2] for event in events_of(tmp_path)] == [
        *((100, f"train/{name}") for name in ("loss", "psnr", "other", "images_per_second")),
        (100, "train/data_wait"),
        *((200, f"train/{name}") for name in ("loss", "psnr", "other", "images_per_second")),
        (200, "train/data_wait"),
        (200, "validation/psnr"),
        (200, "validation/ssim"),
    ]


def test_the_rate_of_clips_is_named_after_them(tmp_path, clock):
    monitor, stream = make(tmp_path, unit="clips")
    with monitor:
        clock.now += 4
        monitor.log(100, {"loss": 0.5})
    assert "400 clips/s" in stream.getvalue()
    assert "images" not in stream.getvalue()
    assert lines_of(tmp_path)[0]["clips_per_second"] == 400


def test_the_time_before_a_restart_counts_in_no_rate(tmp_path, clock):
    monitor, stream = make(tmp_path, total_steps=300)
    with monitor:
        clock.now += 60
        monitor.data_wait(50)
        monitor.restart_rates(100)
        clock.now += 10
        monitor.log(200, {"loss": 1.0})
    (line,) = lines_of(tmp_path)
    assert (line["images_per_second"], line["data_wait"]) == (160, 0)
    assert "eta 10s" in stream.getvalue()


@pytest.mark.parametrize("peak", [None, 8e12 * jax.device_count()])
@pytest.mark.usefixtures("eight_devices")
def test_useful_operations_of_a_window_and_their_share_of_the_peak(tmp_path, clock, peak):
    """100 steps of 1e12 operations a device in 50 seconds are 2e12 a second, a quarter of 8e12."""
    monitor, stream = make(tmp_path, total_steps=300, peak_flops=peak)
    with monitor:
        for step in range(1, 201):
            monitor.progress(step, (7e12 if step <= 100 else 1e12) * jax.device_count())
            if step == 100:
                clock.now += 60
                monitor.log(step, {"loss": 1.0})
        clock.now += 50
        monitor.log(200, {"loss": 1.0})
    last = lines_of(tmp_path)[-1]
    np.testing.assert_allclose(last["tflops_per_device"], 2.0)
    shown = stream.getvalue().splitlines()[-1]
    assert "2 TFLOP/s" in shown
    assert ("mfu 25.0%" in shown) == bool(peak)
    assert last.get("mfu") == (0.25 if peak else None)


def test_examples_and_tokens_of_steps_of_several_sizes(tmp_path, clock):
    """Steps of 12 and of 20 examples, of 100 and 96 tokens in all: 10 of each in 4 seconds."""
    monitor, stream = make(tmp_path, total_steps=300)
    with monitor:
        for step in range(1, 41):
            monitor.progress(step, 0.0, *((12, 100) if step % 2 else (20, 96)))
            if step % 20 == 0:
                clock.now += 4 if step == 40 else 60
                monitor.log(step, {"loss": 1.0})
    last = lines_of(tmp_path)[-1]
    assert (last["images_per_second"], last["tokens_per_second"]) == (80, 490)
    assert "80 images/s  490 tokens/s" in stream.getvalue().splitlines()[-1]


class Timed:
    """A run by the clock: steps, saves and evaluations that take known times."""

    def __init__(self, tmp_path, clock, schedule, *, start=0, examples=0):
        self.clock, self.schedule, self.start = clock, schedule, start
        estimate = Remaining(schedule, start, examples, 16)
        options = {"total_steps": schedule.steps, "start_step": start, "remaining": estimate}
        self.monitor, self.stream = make(tmp_path, **options)

    def steps(self, last, *, of_step=2.0, save=3.0, evaluation=40.0, drawn=50.0, compiling=20.0):
        """Up to the end of step `last`; what is left to say of it has been said."""
        for step in range(self.start + 1, last + 1):
            if step == self.start + 1:
                self.clock.now += compiling
                self.monitor.restart_rates(step)
            else:
                self.clock.now += of_step
            self.monitor.done(step)
            if step % 10 == 0:
                self.monitor.log(step, {"loss": 1.0})
            if self.schedule.saves(step) and step < last:
                with self.monitor.saving():
                    self.clock.now += save
            if self.schedule.evaluates(step) and step < last:
                draws = self.schedule.draws(step)
                with self.monitor.evaluating(step, drawn=draws):
                    self.clock.now += drawn if draws else evaluation

    def lines(self):
        return self.stream.getvalue().splitlines()


@pytest.fixture
def timed(tmp_path, clock):
    """Makes such runs, one after the other."""
    runs = []

    def make_run(schedule, **options):
        runs.append(Timed(tmp_path / str(len(runs)), clock, schedule, **options))
        return runs[-1]

    yield make_run
    for run in runs:
        run.monitor.close()


def test_the_estimated_time_reaches_the_end_of_the_last_evaluation(timed):
    """Against the sum of all that is to come, with a clock that keeps to it."""
    schedule = Schedule(100, 10, 15, evaluate_every=20, picture_every=40)
    last = {}
    for end in (10, 30, 50, 70, 100):
        run = timed(schedule, examples=80)
        run.steps(end)
        last[end] = run.lines()[-1].rpartition("eta ")[2]
    # Saved after 15, 20, 30, 40, 45, 60, 75, 80, 90 and 100; evaluated after 20 and 60, with
    # pictures after 40, 80 and 100.
    guess = 20 + 80 / 16 * 2  # startup, and its examples as in training
    want = {
        10: 90 * 2 + 5 * guess,  # no save and no evaluation has been timed
        30: 70 * 2 + 8 * 3 + 4 * 40,  # no evaluation with pictures has been timed
        50: 50 * 2 + 5 * 3 + 40 + 2 * 50,
        70: 30 * 2 + 4 * 3 + 2 * 50,
        100: 3 + 50,
    }
    assert last == {end: duration(seconds) for end, seconds in want.items()}


@pytest.mark.parametrize(
    ("start", "of_step", "first", "line"),
    [
        # 10 steps and 5 seconds after the first one; 2,499 steps and five evaluations, guessed.
        (0, 0.6, 11, "about 27 minutes for 2,500 steps and 5 evaluations"),
        (0, 0.125, 41, "about 7 minutes for 2,500 steps and 5 evaluations"),
        (0, 45.0, 2, "about 31.3 hours for 2,500 steps and 5 evaluations"),
        (2490, 4.0, 2499, "about 60 seconds for the 10 steps left and 1 evaluation"),
    ],
)
def test_the_first_estimate_comes_once_the_first_steps_are_timed(
    timed, start, of_step, first, line
):
    schedule = Schedule(2500, 50, 500, evaluate_every=500, picture_every=500)
    run = timed(schedule, start=start, examples=16)
    for step in range(start + 1, first + 1):
        assert "about" not in run.stream.getvalue()
        run.clock.now += 20 if step == start + 1 else of_step
        if step == start + 1:
            run.monitor.restart_rates(step)
            with run.monitor.pause():
                run.clock.now += 1000
        run.monitor.done(step)
    (found,) = run.lines()
    assert found == f"{line} (whose time is a guess until one is done)"
    run.monitor.done(first + 1)
    assert len(run.lines()) == 1


def test_an_evaluation_says_how_long_the_last_one_took(timed):
    run = timed(Schedule(50, 10, 10, evaluate_every=10))
    run.steps(30)
    found = [line for line in run.lines() if "evaluating" in line]
    assert found == [
        "step 10/50  evaluating",
        "step 20/50  evaluating: the last time it took 40s",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "about 1 second"),
        (89.4, "about 89 seconds"),
        (90, "about 2 minutes"),
        (351, "about 6 minutes"),
        (5400, "about 1.5 hours"),
        (7200, "about 2 hours"),
    ],
)
def test_rough_durations(seconds, text):
    assert about(seconds) == text


def test_time_spent_elsewhere_does_not_count(tmp_path, clock):
    monitor, _ = make(tmp_path)
    with monitor:
        clock.now += 2
        with monitor.pause():
            clock.now += 50
        clock.now += 2
        monitor.log(100, {"loss": 1.0})
    assert lines_of(tmp_path)[0]["images_per_second"] == 400


class OnDevice:
    """A metric that is there once the device has worked for so many seconds more."""

    def __init__(self, clock, value, seconds):
        self.clock, self.value, self.seconds = clock, value, seconds

    def __array__(self, dtype=None, copy=None):
        self.clock.now += self.seconds
        self.seconds = 0
        return np.array(self.value, np.float32)


def test_push_writes_one_push_later_with_the_rates_of_finished_work(tmp_path, clock):
    monitor, stream = make(tmp_path)
    with monitor:
        clock.now += 0.5  # dispatching 100 steps takes no time beside the 4 s of computing them
        monitor.data_wait(0.25)
        monitor.push(100, {"loss": OnDevice(clock, 0.5, 3)})
        assert lines_of(tmp_path) == []
        clock.now += 0.5
        monitor.data_wait(0.25)
        monitor.push(200, {"loss": OnDevice(clock, 0.25, 7.5)})
        # Time until step 100 was finished: 4 s, of which the loop waited half a second for data.
        assert [fact in stream.getvalue() for fact in ("400 images/s", "12.5%")] == [True] * 2
        clock.now += 0.5
        monitor.flush()  # step 200 is finished 8 s later
        monitor.flush()  # nothing is left, nothing is written twice
        clock.now += 2
        monitor.data_wait(1)
        monitor.push(300, {"loss": OnDevice(clock, 0.125, 2)})
        monitor.flush()
    names = ("step", "loss", "images_per_second", "data_wait")
    assert [tuple(line[name] for name in names) for line in lines_of(tmp_path)] == [
        (100, 0.5, 400, 0.125),
        (200, 0.25, 200, 0),
        (300, 0.125, 400, 0.25),
    ]
    assert stream.getvalue().count("\n") == 3


def test_deferred_metrics_hand_out_the_push_before():
    devices = np.array(jax.devices())
    everywhere = NamedSharding(Mesh(devices, ("data",)), PartitionSpec())
    deferred = DeferredMetrics()
    assert deferred.flush() is None
    first = {"loss": jax.device_put(jnp.bfloat16(0.5), everywhere), "bits": jnp.arange(3.0), "n": 2}
    assert deferred.push(10, first) is None
    step, values = deferred.push(20, {"loss": jnp.float32(4.0)})
    assert step == 10
    assert values["loss"] == 0.5
    assert values["bits"].tolist() == [0, 1, 2]
    assert values["n"] == 2
    assert isinstance(values["loss"], float)
    assert deferred.flush() == (20, {"loss": 4.0})
    assert deferred.flush() is None


def test_push_does_not_wait_for_the_device(tmp_path):
    class Slow:
        """Metric whose value is asked for only when the next one is there."""

        asked = 0

        def __array__(self, dtype=None, copy=None):
            Slow.asked += 1
            return np.array(1.0, np.float32)

    monitor, _ = make(tmp_path)
    with monitor:
        monitor.push(10, {"loss": Slow()})
        assert Slow.asked == 0
        monitor.push(20, {"loss": Slow()})
        assert Slow.asked == 1


def test_a_value_that_is_not_finite_stops_the_run_after_it_was_logged(tmp_path):
    monitor, stream = make(tmp_path)
    with monitor:
        monitor.push(300, {"loss": jnp.float32(jnp.nan), "l1": jnp.float32(1), "l2": jnp.inf})
        with pytest.raises(NonFiniteError, match="step 300: loss is NaN, l2 is infinite") as raised:
            monitor.push(400, {"loss": jnp.float32(1)})
    message = str(raised.value)
    for words in ("lower learning rate", "warm-up", "clipping", "float32", "last pictures"):
        assert words in message
    assert "\n" not in message
    assert "l1" not in message
    (line,) = lines_of(tmp_path)  # strict JSON: null, not NaN
    assert (line["step"], line["loss"], line["l1"], line["l2"]) == (300, None, 1.0, None)
    assert "loss nan" in stream.getvalue()
    assert "train/loss" not in [event[1] for event in events_of(tmp_path)]


def test_check_finite_takes_arrays_and_lets_finite_ones_pass():
    check_finite(1, {"a": 1.0, "b": np.zeros(3), "c": jnp.bfloat16(2)})
    assert issubclass(NonFiniteError, UserError)
    with pytest.raises(NonFiniteError, match="step 7: b is infinite"):
        check_finite(7, {"a": 1.0, "b": np.array([0, -np.inf])})


def test_arrays_are_lists_in_jsonl_and_histograms_in_tensorboard(tmp_path):
    monitor, _ = make(tmp_path)
    with monitor:
        monitor.log(5, {"bit_mean": np.array([0.25, 0.75])}, prefix="codes")
        assert [set(line) for line in monitor.history()] == [{"step", "time", "prefix"}]
    assert lines_of(tmp_path)[0]["bit_mean"] == [0.25, 0.75]
    ((step, tag, kind, histogram),) = events_of(tmp_path)
    assert (step, tag, kind, histogram.num) == (5, "codes/bit_mean", "histo", 2)
    assert (histogram.min, histogram.max) == (0.25, 0.75)


def test_pictures_go_to_tensorboard(tmp_path):
    monitor, _ = make(tmp_path)
    with monitor:
        monitor.image(5, "validation/grid", np.zeros((4, 6, 3), np.uint8))
    ((step, tag, kind, image),) = events_of(tmp_path)
    assert (step, tag, kind) == (5, "validation/grid", "image")
    assert (image.height, image.width) == (4, 6)


def test_settings_go_to_tensorboard_as_hyper_parameters_and_as_text(tmp_path):
    config = default_config()
    config.optimizer.update(learning_rate=0.003, ema=0.9)
    monitor, _ = make(tmp_path)
    with monitor:
        monitor.describe(finalize(config))
    found = {}
    for event in events(tmp_path):
        for value in event.summary.value:
            found[value.tag] = value
    (text,) = found["config/text_summary"].tensor.string_val
    assert "    optimizer.learning_rate = 0.003\n" in text.decode()
    session, experiment = (
        HParamsPluginData.FromString(found[f"_hparams_/{tag}"].metadata.plugin_data.content)
        for tag in ("session_start_info", "experiment")
    )
    values = session.session_start_info.hparams
    assert values.keys() == declared().keys()
    assert values["optimizer.learning_rate"].number_value == 0.003
    assert values["loss.adaptive"].bool_value is False
    assert values["model.image_size"].string_value == "(256, 256)"
    compared = [metric.name.tag for metric in experiment.experiment.metric_infos]
    assert compared == ["val_ema/psnr", "val_ema/ssim", "val_ema/lpips"]


def test_a_resumed_run_has_each_step_once(tmp_path):
    monitor, _ = make(tmp_path)
    for step in (100, 200, 300):
        monitor.log(step, {"loss": step, "bits": np.ones(2)})
    monitor.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 400, "time": 1.0, "pre')  # torn by a kill
    before = lines_of_text(tmp_path)
    monitor, _ = make(tmp_path, start_step=200)
    assert [line["step"] for line in monitor.history()] == [100, 200]
    monitor.log(300, {"loss": 1.0})
    monitor.close()
    after = lines_of_text(tmp_path)
    assert after[:2] == before[:2]
    assert [json.loads(line)["step"] for line in after] == [100, 200, 300]
    monitor, _ = make(tmp_path)  # from step 0 the run begins anew
    monitor.close()
    assert lines_of(tmp_path) == []


def lines_of_text(tmp_path):
    return (tmp_path / "metrics.jsonl").read_text().splitlines()


def test_the_history_of_a_checkpoint_replaces_a_lost_file(tmp_path):
    monitor, _ = make(tmp_path / "a")
    monitor.log(100, {"loss": 1.0})
    history = json.loads(json.dumps(monitor.history()))
    monitor.close()
    monitor, _ = make(tmp_path / "b", start_step=100, history=history)
    monitor.close()
    assert lines_of(tmp_path / "b") == lines_of(tmp_path / "a")


def test_history_is_short_and_ends_with_the_newest(tmp_path):
    monitor, _ = make(tmp_path)
    with monitor:
        assert monitor.history() == []
        for step in range(1, 502):
            monitor.log(step, {"loss": step}, prefix="x")
        steps = [line["step"] for line in monitor.history()]
    assert len(steps) == 167
    assert steps[-3:] == [495, 498, 501]


def test_a_bar_shows_progress_and_stays_whole_under_other_lines(tmp_path, clock):
    monitor, stream = make(tmp_path, start_step=1000, bar=True)
    with monitor:
        monitor.progress(1500)
        clock.now += 50
        monitor.log(1500, {"loss": 0.125, "psnr": 20.0})
        monitor.info("saved")
    text = stream.getvalue()
    assert " 50%|" in text
    assert "1000/2000" in text
    assert "1500/2000" in text
    assert "loss 0.125  psnr 20" in text
    assert "images/s" in text
    assert "<50s]" in text  # as many steps as before, beside the time that has passed
    assert "saved\n" in text


def test_other_processes_write_nothing_but_stop_all_the_same(tmp_path):
    monitor, stream = make(tmp_path / "run", is_main=False, bar=True)
    with monitor:
        monitor.push(1, {"loss": jnp.float32(jnp.inf)})
        monitor.progress(1)
        monitor.image(1, "x", np.zeros((2, 2, 3), np.uint8))
        monitor.info("x")
        monitor.log(1, {"psnr": 1.0}, prefix="validation")
        assert monitor.history() == []
        with pytest.raises(NonFiniteError):
            monitor.flush()
    assert stream.getvalue() == ""
    assert not (tmp_path / "run").exists()


def test_a_metric_may_not_take_the_place_of_the_step(tmp_path):
    monitor, _ = make(tmp_path)
    with monitor, pytest.raises(ValueError, match="'step'"):
        monitor.log(1, {"step": 3.0})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0s"),
        (48.4, "48s"),
        (59.6, "1m00s"),
        (192, "3m12s"),
        (7500, "2h05m"),
        (275000, "3d04h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
