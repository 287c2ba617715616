"""The studies. Oracles: sums by hand, geometry, PSNR, entropies and k-means in float64 numpy."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from bsq_jax import cli
from bsq_jax.cli.studies import kinds, report, trained
from bsq_jax.cli.studies.entropy import comparison as of_entropy
from bsq_jax.cli.studies.entropy import terms
from bsq_jax.cli.studies.quantization_error import closed_forms, errors, inputs
from bsq_jax.cli.studies.variable_length import comparison as variable_length
from bsq_jax.cli.studies.vocabulary import comparison, points
from bsq_jax.core.errors import INTERRUPTED, RUN_AGAIN, Interrupted, UserError
from bsq_jax.data.clip_lengths import Schedule
from bsq_jax.data.factory import make_data_config
from bsq_jax.training import step_cost, train_run

TINY = (
    *("model.image_size=16", "model.width=8", "model.layers=1", "model.heads=1", "model.bits=4"),
    *("data.eval_resize=16", "data.eval_clips=1", "train.batch_size=8", "eval.batch_size=8"),
    "data.cache_mb=8",
)
FLAGS = [word for setting in TINY for word in ("--set", setting)]


def test_both_models_compute_the_same_number_of_frames():
    causal = variable_length.arm_config("block-causal", 8, 100, 0, ())
    full = variable_length.arm_config("full", 8, 100, 0, ())
    assert full.train.steps == 100
    schedule = Schedule(make_data_config(causal))
    frames = [schedule.step(step).frames for step in range(causal.train.steps + 1)]
    assert sum(frames[:-1]) <= 800 < sum(frames)
    assert {"block_causal", "full"} == {causal.model.causality, full.model.causality}


def test_lengths_are_powers_of_two_and_the_longest():
    assert variable_length.lengths(8) == [1, 2, 4, 8]
    assert variable_length.lengths(6) == [1, 2, 4, 6]
    assert variable_length.lengths(1) == [1]


class Brighter:
    """Stands for a model whose reconstruction is off by a known error that grows with time."""

    def __init__(self):
        self.given = []

    def reconstruct(self, pixels, dtype):
        assert dtype == "uint8"
        self.given.append(pixels)
        off = np.arange(1, pixels.shape[1] + 1, dtype=np.uint8)[None, :, None, None, None]
        return np.where(pixels < 128, pixels + off, pixels - off)


def test_measuring_against_the_closed_form():
    config = variable_length.arm_config("full", 4, 1, 0, TINY)
    model = Brighter()
    found = variable_length.measure(config, model, fill=4)
    each = 20 * np.log10(255 / np.arange(1, 5))
    assert found == pytest.approx({n: float(np.mean(each[:n])) for n in (1, 2, 4)}, abs=1e-9)
    assert all(given.shape[1] == 4 for given in model.given)
    np.testing.assert_array_equal(model.given[0][:, 1], model.given[0][:, 0])
    assert found.keys() == variable_length.measure(config, model).keys()


def test_the_whole_study_in_small(tmp_path, capsys):
    flags = ["--workdir", str(tmp_path), "--frames", "2", "--steps", "2", *FLAGS]
    assert cli.main(["studies", "variable_length", *flags]) == 0
    said = capsys.readouterr().out
    assert "full, filled up" in said
    (result,) = json.loads((tmp_path / "results.json").read_text())
    assert set(result["psnr"]) == {"block-causal", "full", "full, filled up"}
    assert result["psnr"]["full"]["2"] == result["psnr"]["full, filled up"]["2"]
    assert all(3 < value < 60 for values in result["psnr"].values() for value in values.values())
    assert (tmp_path / "variable_length.png").stat().st_size > 1000


def test_mistakes_are_one_line(tmp_path, capsys):
    for flags, message in (
        (["--set", "banana"], "write KEY=VALUE"),
        (["--set", "train.bananas=3"], "train.bananas"),
        (["--frames", "0"], "--frames 0: give 1 or more"),
    ):
        assert cli.main(["studies", "variable_length", "--workdir", str(tmp_path), *flags]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1


def test_the_table_gives_mean_and_spread():
    results = [{"psnr": {"a": {1: 20.0, 2: 21.0}}}, {"psnr": {"a": {1: 22.0, 2: 21.0}}}]
    assert variable_length.table_rows(results[:1]) == [
        ["frames", "a"],
        ["1", "20.00"],
        ["2", "21.00"],
    ]
    rows = variable_length.table_rows(results)
    assert rows[1:] == [["1", "21.00 +- 1.41"], ["2", "21.00 +- 0.00"]]
    assert report.text_table(rows).splitlines()[0] == "frames              a"
    assert report.markdown_table(rows).splitlines()[:2] == ["| frames | a |", "| --- | --- |"]


# --- the other studies ---

TINY_POINT = (
    *(setting for setting in TINY if not setting.startswith("model.bits")),
    *("data.source=synthetic", "data.resize=16", "data.threads=0", "optimizer.ema=0"),
)


def test_levels_have_as_many_codes_as_bits_name():
    for bits in range(1, 40):
        assert np.prod(kinds.fsq_levels(bits), dtype=np.int64) == 2**bits
    assert kinds.fsq_levels(18) == (8,) * 6


def test_points_of_the_vocabulary():
    found = points.points(["bsq", "residual", "leech", "vq"], [36, 9], [0, 1])
    assert found[:4] == [("bsq", 9, 0), ("bsq", 9, 1), ("bsq", 36, 0), ("bsq", 36, 1)]
    assert found[4:8] == [
        ("residual", 36, 0),
        ("residual", 36, 1),
        ("leech", 18, 0),
        ("leech", 18, 1),
    ]
    assert [point.codes for point in found[-4::2]] == [2**9, 2**36]
    assert found[7].codes == 196_560
    assert [point.learned for point in found[7:9]] == [False, True]
    overrides = ("train.batch_size=4", "quantizer.decay=0.5", "quantizer.commitment_weight=0.5")
    for point in found:
        config = points.point_config(point, 10, overrides)
        assert config.train.batch_size == 4
        assert config.model.bits == min(point.bits, 24 if point.learned else 64)
        has = point.kind != "leech"
        assert config.quantizer.commitment_weight == (0.5 if has else None)
        assert config.quantizer.decay == (0.5 if point.kind == "vq" else 0.99)
    assert config.quantizer.codes == 2**24
    assert points.point_config(found[-1], 10, (), 2**20).quantizer.codes == 2**20


def in_this_process(command, log, seconds):
    return trained.main(pathlib.Path(command[-1]))


def test_the_vocabulary_in_small(tmp_path, capsys, monkeypatch):
    """A second call finds what the first one did."""
    monkeypatch.setattr(trained, "run_apart", in_this_process)
    flags = ["--workdir", str(tmp_path), "--kinds", "bsq", "--bits", "4", "--steps", "2"]
    flags += [word for setting in TINY_POINT for word in ("--set", setting)]
    assert cli.main(["studies", "vocabulary", *flags]) == 0
    (row,) = json.loads((tmp_path / "results.json").read_text())
    assert row["status"] == "done"
    assert row["codes"] == 16
    assert 3 < row["results"]["psnr"] < 60
    assert 0 < row["step_bytes"] < row["process_bytes"]
    assert row["ms"] > 0
    assert "bsq        2^4" in capsys.readouterr().out
    assert (tmp_path / "vocabulary.png").stat().st_size > 1000
    monkeypatch.setattr(trained, "run_apart", None)  # what is there is not computed again
    assert cli.main(["studies", "vocabulary", *flags]) == 0
    assert json.loads((tmp_path / "results.json").read_text()) == [row]
    assert cli.main(["studies", "vocabulary", *flags, "--set", "train.batch_size=4"]) == 2
    assert "train.batch_size: 8 -> 4): give another --workdir" in capsys.readouterr().err


def test_what_fails_is_an_outcome(tmp_path, monkeypatch):
    config = points.point_config(points.Point("bsq", 4, 0), 2, TINY_POINT)
    limits = trained.Limits(10.0, 1.0)

    def run(name, ended, **left):
        def run_apart(command, log, seconds):
            assert seconds == limits.seconds
            if left:
                (tmp_path / name / trained.OUTCOME).write_text(json.dumps(left))
            return ended

        monkeypatch.setattr(trained, "run_apart", run_apart)
        return trained.outcome(config, tmp_path / name, limits)

    begun = {"status": "begun", "step_bytes": 5}
    assert run("a", None, **begun) == {"status": "out of time after 0 of 2 steps", "step_bytes": 5}
    assert run("a", 0)["step_bytes"] == 5  # known, and not computed again
    assert run("b", -9, **begun)["status"] == "killed, probably for its memory"
    with pytest.raises(SystemExit, match=str(RUN_AGAIN)):
        run("c", RUN_AGAIN, **begun)
    with pytest.raises(Interrupted, match=r"are kept; in .*/c no step had been saved, the same"):
        run("c", INTERRUPTED, **begun)
    assert run("c", 0, status="done") == {"status": "done"}  # begun is not done
    with pytest.raises(UserError, match=r"ended with status 3: read .*d/log.txt"):
        run("d", 3)
    with pytest.raises(UserError, match="no such folder"):
        run("e", 0, mistake="no such folder")
    limits = trained.Limits(20.0, 1.0)
    assert run("a", 0, status="done") == {"status": "done"}  # with more time


def test_a_plan_above_the_limit_is_not_trained(tmp_path, monkeypatch):
    config = points.point_config(points.Point("bsq", 4, 0), 2, TINY_POINT)
    plan = {"parameters": 7, "memory": {"peak": 2**30}}
    monkeypatch.setattr(step_cost, "plan", lambda *_: plan)
    monkeypatch.setattr(train_run, "train", None)
    monkeypatch.setattr(trained, "run_apart", in_this_process)
    made = trained.outcome(config, tmp_path / "small", trained.Limits(10.0, 0.9))
    assert made == {"status": "out of memory by the plan", "parameters": 7, "step_bytes": 2**30}
    made = trained.outcome(config, tmp_path / "plan", trained.Limits(10.0, 2.0), trains=False)
    assert made["status"] == "planned"


def test_processes_apart(tmp_path, capsys):
    def python(source, seconds=20.0):
        return trained.run_apart([sys.executable, "-c", source], tmp_path / "log", seconds)

    assert python("print('x'); raise SystemExit(3)") == 3
    assert python("import os; os.kill(os.getpid(), 9)") == -9
    assert python("import time; time.sleep(60)", 0.2) is None
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    told = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
    told.start()
    assert python("import time; time.sleep(60)") == RUN_AGAIN
    assert (tmp_path / "log").read_text() == "x\n"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        told = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        told.start()
        assert python("import time; time.sleep(60)") == INTERRUPTED
        # A terminal sends it to both, and the other one ignores it; the second time it is killed.
        source = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: None)"
        source += "; print(signal.getsignal(signal.SIGINT).name, flush=True); time.sleep(60)"
        for wait in (1.0, 1.5):
            threading.Timer(wait, os.kill, (os.getpid(), signal.SIGINT)).start()
        assert python(source, 60.0) == INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "log").read_text() == "x\nSIG_IGN\n"
    assert "finishes its step and saves; press it again" in capsys.readouterr().err
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_ctrl_c_just_before_the_time_limit_is_no_result(tmp_path, monkeypatch):
    class Slow:
        """A process whose time is over while it saves."""

        def __init__(self, command, **streams):
            self.asked = 0

        def wait(self, seconds=None):
            self.asked += 1
            if self.asked == 1:
                os.kill(os.getpid(), signal.SIGINT)
                raise subprocess.TimeoutExpired("it", seconds)
            return RUN_AGAIN

        def terminate(self):
            pass

    monkeypatch.setattr(subprocess, "Popen", Slow)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert trained.run_apart(["it"], tmp_path / "log", 1.0) == INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, before)


def test_larger_codebooks_are_estimated_along_a_line():
    rows = [
        {"kind": "vq", "seed": 0, "codes": 10, "ms": 1.0, "status": "done"},
        {"kind": "vq", "seed": 0, "codes": 30, "ms": 5.0, "status": "done"},
        {"kind": "vq", "seed": 0, "codes": 100, "status": "out of memory", "step_bytes": 2**41},
        {"kind": "bsq", "seed": 0, "codes": 100, "status": "out of memory"},
        {"kind": "vq_ema", "seed": 0, "codes": 100, "status": "out of memory"},
    ]
    comparison.add_estimated_times(rows)
    assert rows[2]["ms"] == pytest.approx(5 + 4 / 20 * 70)
    assert all("ms" not in row for row in rows[3:])
    cells = comparison.table_rows(rows)
    assert cells[3][-4:] == ["~19", "2.0 TiB", "-", "out of memory"]
    assert comparison.extrapolated((1, 2, 4), (0, 10, 30), 5) == 40


def test_closed_forms_against_geometry_and_sampling():
    # Arcs of a circle; half of a sphere, whose mean height is 1/2.
    quarter = np.pi / 4
    assert closed_forms.least_mean(2, 2.0) == pytest.approx(2 - 2 * np.sin(quarter) / quarter)
    assert closed_forms.least_mean(3, 1.0) == pytest.approx(1.0, abs=1e-8)
    assert closed_forms.bsq_mean(2) == pytest.approx(closed_forms.least_mean(2, 2.0))
    large = closed_forms.least_mean(400, 400.0)
    assert large == pytest.approx(2 - 2 * np.sqrt(1 - 2**-2.0), abs=5e-3)  # Shannon
    assert closed_forms.bsq_mean(100_000) == pytest.approx(closed_forms.LIMIT, abs=1e-5)
    points = np.random.default_rng(0).standard_normal((200_000, 5))
    points /= np.linalg.norm(points, axis=-1, keepdims=True)
    error = np.sum((points - np.sign(points) / np.sqrt(5)) ** 2, axis=-1)
    assert closed_forms.bsq_mean(5) == pytest.approx(error.mean(), abs=2e-3)
    assert closed_forms.bsq_largest(5) > error.max()


def test_errors_on_the_axes_and_the_sphere():
    random = np.random.default_rng(0)
    for kind in ("bsq", "lfq"):
        found = errors.error(kinds.quantizer_of(kind, 9), {}, inputs.axis(random, 50, 9))
        assert found["relative"] == pytest.approx(2 - 2 / 3, rel=1e-5)
    found = errors.error(kinds.quantizer_of("bsq", 9), {}, inputs.uniform(random, 20_000, 9))
    assert found["relative"] == pytest.approx(closed_forms.bsq_mean(9), abs=5e-3)
    for make in inputs.DISTRIBUTIONS.values():
        power = np.mean(make(random, 50_000, 4) ** 2)
        assert power == pytest.approx(100 if make is inputs.long else 1, rel=0.1)


def test_k_means_against_numpy():
    sample = np.random.default_rng(0).standard_normal((60, 3))
    codes = sample[:4].astype(np.float64)
    for _ in range(errors._ITERATIONS):
        chosen = np.argmin(((sample[:, None] - codes) ** 2).sum(-1), axis=1)
        codes = np.stack([sample[chosen == code].mean(axis=0) for code in range(4)])
    np.testing.assert_allclose(errors.k_means(sample, 4), codes, atol=1e-5)


def test_the_bias_of_groups_against_all_codes(monkeypatch):
    monkeypatch.setattr(terms, "TIMED_BITS", (6,))
    rows = terms.measure([1, 3], 40, 1, 0, 10.0)
    assert [row["group"] for row in rows] == [1, 3, 6]
    codes = (np.arange(64)[:, None] >> np.arange(6)[::-1]) & 1
    for kind in terms.KINDS:
        u = np.asarray(terms.inputs(kind, 40, 6, 0), np.float64)
        ones = 1 / (1 + np.exp(-40 * u / np.sqrt(6)))
        each = np.where(codes, ones[:, None], 1 - ones[:, None]).prod(-1).mean(0)
        exact = -np.sum(each * np.log2(each))
        alone = ones.mean(0)
        single = -np.sum(alone * np.log2(alone) + (1 - alone) * np.log2(1 - alone))
        assert rows[0][kind] == pytest.approx(single - exact, abs=1e-4)
        assert rows[0][kind] > rows[1][kind] > rows[2][kind] == 0
    assert all(row["ms"] > 0 and row["compiled_bytes"] > 0 for row in rows)
    assert all(row["measured_bytes"] is None or row["measured_bytes"] >= 0 for row in rows)


def test_the_study_of_entropy_compares_trainings(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(terms, "TIMED_BITS", (6,))
    given = {}

    def outcome(config, folder, limits):
        given[folder.name] = config
        if config.quantizer.name == "lfq":
            return {"status": "out of memory"}
        results = {"psnr": 20.0 + config.seed, "codes_used": 7, "usage": 0.5, "bit_entropy": 1.0}
        return {"status": "done", "results": results}

    monkeypatch.setattr(of_entropy, "outcome", outcome)
    flags = ["--workdir", str(tmp_path), "--groups", "3", "--tokens", "8", "--runs", "1"]
    flags += ["--seeds", "0", "2", "--set", "quantizer.inv_temperature=2"]
    assert cli.main(["studies", "entropy", *flags]) == 0
    assert len(given) == 10
    assert given["bsq_no terms_0"].quantizer.codebook_weight == 0
    assert given["bsq_g=3_0"].quantizer.codebook_weight == 1
    assert given["bsq_g=3_2"].quantizer.group_size == 3
    assert given["leech_0"].quantizer.inv_temperature == 1  # which it does not have
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if line.startswith("bsq, g=3"))
    assert " ".join(line.split()[2:6]) == "21.00 +- 1.41 -"
    assert line.endswith("done")
    assert "(exact)" in out
    assert (tmp_path / "trainings.md").read_text().splitlines()[2].startswith("| bsq, no terms |")
    assert (tmp_path / "entropy.png").stat().st_size > 1000


def test_the_study_of_errors_in_small(tmp_path, capsys, monkeypatch):
    latents = np.random.default_rng(0).standard_normal((30, 4))
    monkeypatch.setattr(inputs, "latents_of", lambda model, tokens: latents)
    flags = ["--workdir", str(tmp_path), "--bits", "8", "--codebooks", "5", "--tokens", "30"]
    assert cli.main(["studies", "quantization_error", *flags, "--model", "m"]) == 0
    rows = {(row["quantizer"], row["bits"]): row for row in read_results(tmp_path)}
    assert {kind for kind, _ in rows} == {"bsq", "residual", "lfq", "fsq", "leech", *VQ}
    own = rows["bsq", 4]["relative"][inputs.LATENTS]  # bits as many as the latents have channels
    unit = latents / np.linalg.norm(latents, axis=-1, keepdims=True)
    assert own == pytest.approx(np.mean(2 - np.abs(unit).sum(-1)), rel=1e-5)
    assert inputs.LATENTS not in rows["bsq", 8]["relative"]
    assert rows["residual", 8]["relative"].keys() == rows["bsq", 4]["relative"].keys()
    leech = rows["leech", 18]
    assert leech["least"] < leech["relative"]["uniform on the sphere"] < 0.5
    assert "17.58" in capsys.readouterr().out
    for name in (errors.FIGURE, errors.RATES):
        assert (tmp_path / name).stat().st_size > 1000


def read_results(folder):
    return json.loads((folder / report.RESULTS).read_text())


VQ = ("vq, drawn", "vq, fitted")


def test_mistakes_in_flags_of_all_studies_are_one_line(tmp_path, capsys):
    for study, flags, message in (
        ("vocabulary", ["--bits", "0"], "--bits 0: give numbers from 1 to 64"),
        ("vocabulary", ["--kinds", "pq"], "invalid choice: 'pq'"),
        ("vocabulary", ["--set", "quantizer.nodes=3"], "quantizer.nodes"),
        ("quantization_error", ["--tokens", "0"], "--tokens must be 1 or more"),
        ("quantization_error", ["--model", str(tmp_path / "no")], "does not exist"),
        ("entropy", ["--groups", "17"], "--groups 17: give numbers from 1 to 16"),
        ("entropy", ["--steps", "-1"], "--steps -1: give 0 or more"),
    ):
        assert cli.main(["studies", study, "--workdir", str(tmp_path), *flags]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1
