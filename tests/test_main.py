"""The command line. Oracle: messages written by hand, PIL, and a second run of the same numbers."""

import gzip
import json
import pathlib
import subprocess
import sys

import pytest
from PIL import Image

from bsq_jax import main as module
from bsq_jax.config import to_json
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.training import train_run, workdir

TINY = str(pathlib.Path(__file__).parent / "tiny.py")
CLIPS = f"{TINY}:clips"
JUDGE_OF_CLIPS = ("--config.loss.adversarial=0.1", "--config.discriminator.name=stylegan3d")


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs a command line in this process: ``(status, standard output, standard error)``."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["bsq-jax", *map(str, words)])
        with pytest.raises(SystemExit) as raised:
            module.main()
        return raised.value.code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a short run."""
    workdir = tmp_path_factory.mktemp("main") / "run"
    flags = [f"--config.train.{key}" for key in ("steps=3", "checkpoint_every=2")]
    assert module.run(["--config", TINY, "--workdir", str(workdir), *flags]) == 0
    return workdir


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "--workdir: see --help"),
        (("--config", "missing.py", "--workdir", "W"), "config file missing.py does not exist"),
        (("--config", TINY), "--workdir: see --help"),
        (("--config", TINY, "--workdir", "W", "--profile", "7"), "first and the last step, such"),
        (("--config", TINY, "--workdir", "W", "--profile=7:5"), "first and the last step, such"),
        (("--config", TINY, "--workdir", "W", "--profile=0:5"), "first and the last step, such"),
        (("--confg", TINY, "--workdir", "W"), "unknown flag --confg: did you mean --config?"),
        (("--mode", "tain", "--workdir", "W"), "invalid choice: 'tain'"),
        (("--config", TINY, "--workdir", "W", "--config.train.stesp=3"), "mean train.steps ("),
        (("--config", TINY, "--workdir", "W", "--config.train.steps"), "has no value"),
        (("--config", TINY, "--workdir", "W", "--config.train.steps", "x"), "a whole number"),
        (("--config", TINY, "--workdir", "W", "--config.train.steps=0"), "must be positive"),
        (("--workdir", "W"), "give a config, by name (quickstart) or FILE.py"),
        (("--config", TINY, "--workdir", "gs://W/run"), "gs://W/run is not a path"),
        (("--mode", "evaluate", "--workdir", "gs://W/run"), "mount the bucket"),
        (("--mode", "evaluate", "--workdir", "W"), "W is not the workdir of a run"),
        (
            ("--config", TINY, "--workdir", "W", "--config.data.source=folder:/no/such"),
            "/no/such",
        ),
        (("--config", TINY, "--workdir", "W", "--config.data.source=fodler:/x"), "fodler"),
        (("--config", TINY, "--workdir", "W", "--config.data.resize=8"), "resize=8 is below"),
        (
            ("--config", TINY, "--workdir", "W", "--config.mesh.fsdp=3"),
            "needs 6 devices, but there are 8: change config.mesh",
        ),
        (
            ("--config", TINY, "--workdir", "W", "--config.train.batch_size=12"),
            "train.batch_size 12 does not divide into 1 micro-batches (train.accumulate) over 8",
        ),
        (
            ("--config", TINY, "--workdir", "W", "--config.train.accumulate=2"),
            "train.batch_size 8 does not divide into 2 micro-batches",
        ),
        (
            ("--config", TINY, "--workdir", "W", *JUDGE_OF_CLIPS, "--config.model.frames=4"),
            "stylegan3d is for clips, and the data are single frames: set discriminator.name=",
        ),
        (  # whereas of clips the next mistake is told
            ("--config", CLIPS, "--workdir", "W", *JUDGE_OF_CLIPS, "--config.train.init=/no/such"),
            "/no/such is not the workdir of a run",
        ),
        (
            ("--config", CLIPS, "--workdir", "W", "--config.data.frames=5"),
            "data.frames is 5, and model.positions=learned has embeddings for model.frames=4",
        ),
        (
            ("--config", CLIPS, "--workdir", "W", "--config.data.min_frames=5"),
            "min_frames must be from 0 (all clips equally long) to frames=4, got 5",
        ),
        (("--config", TINY, "--workdir", "FILE"), "FILE"),
        (("--mode", "evaluate", "--workdir", "FILE"), "FILE"),
        (("--config", TINY, "--workdir", "W", "--processes", "2"), "give all or none"),
        (("--config", TINY, "--workdir", "W", "--processes", "two"), "invalid int value: 'two'"),
    ],
)
@pytest.mark.usefixtures("eight_devices")
def test_a_mistake_is_one_line_and_status_2(command, tmp_path, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("FILE").write_text("not a folder")
    status, out, err = command(*words)
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert expected in err
    assert [path.name for path in pathlib.Path().iterdir()] == ["FILE"]


def test_help_shows_how_to_start(command):
    status, out, _ = command("--help")
    assert status == 0
    assert "--config configs/tokenizer.py" in out


def test_a_run_leaves_metrics_config_evaluation_and_pictures(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["prefix"] == "train"] == [1, 2, 3]
    assert {line["prefix"] for line in lines} == {"train", "val_raw", "val_ema"}
    assert json.loads((trained / "config.json").read_text())["train"]["steps"] == 3
    report = json.loads((trained / "evaluation.json").read_text())
    assert report["step"] == 3
    assert set(report["results"]) == {"raw", "ema"}
    pictures = sorted((trained / "pictures").iterdir())
    assert [str(path) for path in pictures] == sorted(report["pictures"])
    assert len(pictures) == 2
    for path in pictures:
        with Image.open(path) as picture:
            assert min(picture.size) > 16
            assert picture.mode == "RGB"


def test_evaluation_alone_gives_the_same_numbers(trained, command):
    before = json.loads((trained / "evaluation.json").read_text())
    status, out, _ = command("--mode", "evaluate", "--workdir", trained)
    assert status == 0
    assert json.loads((trained / "evaluation.json").read_text()) == before
    assert "PSNR (dB)" in out
    assert f"{trained.name}, step 3: 64 crops of 16x16 (center) from synthetic" in out
    for path in before["pictures"]:
        assert f"picture: {path}\n" in out


def test_a_finished_run_says_so(trained, command):
    checkpoints = trained / "checkpoints"
    before = {path: path.stat().st_mtime_ns for path in checkpoints.rglob("*")}
    config = (trained / "config.json").read_text()
    # The rest of the config is in the workdir, and stays what was trained.
    status, out, err = command("--workdir", trained, "--config.optimizer.learning_rate=0.5")
    assert (trained / "config.json").read_text() == config
    assert status == 0
    assert "all 3 steps are done: raise config.train.steps to go on" in err
    assert "PSNR (dB)" in out
    assert {path: path.stat().st_mtime_ns for path in checkpoints.rglob("*")} == before


def test_steps_are_recorded_on_demand(command, tmp_path):
    flags = ["--config", TINY, "--workdir", tmp_path, "--config.train.steps=3"]
    status, _, err = command(*flags, "--profile=3:4")
    assert (status, err) == (2, "error: profile 3 to 4: this run does the steps 1 to 3\n")
    status, _, err = command(*flags, "--profile=2:3")
    assert status == 0
    assert f"profile: {tmp_path / 'profile'} (open it with XProf or TensorBoard)" in err
    assert "first step after " in err
    (recorded,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert recorded.stat().st_size > 10_000
    (events,) = (tmp_path / "profile").rglob("*.trace.json.gz")
    names = gzip.decompress(events.read_bytes()).decode()
    # The program of a step, as often as steps were recorded on the eight devices.
    assert "train_step" in names


def test_another_model_cannot_go_on(trained, command):
    config = (trained / "config.json").read_text()
    status, _, err = command(
        *("--config", TINY, "--workdir", trained, "--config.model.bits=5"),
        *("--config.model.width=32", "--config.train.steps=9"),
    )
    assert status == 2
    assert "another model (model.bits: 6 -> 5; model.width: 16 -> 32)" in err
    assert err.count("\n") == 1
    assert (trained / "config.json").read_text() == config


def test_fewer_steps_than_done_are_refused(trained, command):
    config = (trained / "config.json").read_text()
    status, _, err = command("--workdir", trained, "--config.train.steps=2")
    assert status == 2
    assert "is at step 3 already: raise config.train.steps above 2" in err
    assert err.count("\n") == 1
    assert (trained / "config.json").read_text() == config


@pytest.mark.parametrize("text", ["{", "[1]", '{"train": {"steps": "x"}}', '{"a": 1}', "\xff\0"])
def test_a_damaged_saved_config(command, tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    status, _, err = command("--mode", "evaluate", "--workdir", tmp_path)
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "config.json" in err


def test_other_validation_pictures_do_not_replace_the_runs_evaluation(trained, command):
    endings = (".json", ".jsonl", ".png")

    def contents():
        return {p: p.read_bytes() for p in trained.rglob("*") if p.suffix in endings}

    before = contents()
    names = set()
    for mode in ("evaluate", "train"):  # there is nothing left to train
        words = ("--mode", mode, "--workdir", trained, "--config.data.val_source=photos")
        status, out, _ = command(*words)
        assert status == 0
        assert "crops of 16x16 (center) from photos" in out
        (report,) = (line for line in out.splitlines() if line.startswith("report: "))
        names.add(pathlib.Path(report.removeprefix("report: ")).name)
    after = contents()
    assert {path: after[path] for path in before} == before
    (name,) = names
    suffix = name.removeprefix("evaluation").removesuffix(".json")
    assert len(suffix) == 9
    added = sorted(path.name for path in after.keys() - before.keys())
    assert added == [f"crops_0000003{suffix}.png", name, f"photographs_0000003{suffix}.png"]
    assert command("--mode", "evaluate", "--workdir", trained, "--config.data.threads=0")[0] == 0
    assert contents().keys() == after.keys()  # how fast is read changes no number


@pytest.fixture(scope="module")
def clips(trained):
    """The workdir of a short run on clips that begins with the image model of the other run."""
    workdir = trained.parent / "clips"
    words = ["--config", CLIPS, "--workdir", str(workdir), f"--config.train.init={trained}"]
    words += ["--config.train.steps=2", "--config.data.image_share=0", "--config.eval.videos=1"]
    assert module.run(words) == 0
    return workdir


def test_a_run_on_clips(clips, command):
    report = json.loads((clips / "evaluation.json").read_text())
    assert report["measured"]["frames"] == 4
    assert len(report["results"]["ema"]["per_frame"]["psnr"]) == 4
    lines = [json.loads(line) for line in (clips / "metrics.jsonl").read_text().splitlines()]
    assert "clips_per_second" in lines[1]
    status, out, err = command("--mode", "evaluate", "--workdir", clips)
    assert (status, err) == (0, "")
    assert json.loads((clips / "evaluation.json").read_text()) == report
    for kind in ("picture", "video"):
        for path in report[f"{kind}s"]:
            assert f"{kind}: {path}\n" in out
            assert pathlib.Path(path).stat().st_size
    assert len(report["videos"]) == 1
    status, _, err = command("--workdir", clips)  # all is done
    assert status == 0
    assert "attention (auto): blocked\n" in err
    assert "all 2 steps are done" in err


def test_evaluation_computes_in_float32_unless_told_otherwise(trained, tmp_path, command):
    Tokenizer.load(trained, dtype="bfloat16").save(tmp_path)
    reports = []
    for words in ((), ("--config.model.dtype=bfloat16",)):
        status, out, _ = command("--mode", "evaluate", "--workdir", tmp_path, *words)
        assert status == 0
        (path,) = (line for line in out.splitlines() if line.startswith("report: "))
        reports.append(json.loads(pathlib.Path(path.removeprefix("report: ")).read_text()))
        assert ("computed in bfloat16, in which some bits differ" in out) == bool(words)
    exact, quick = reports
    assert exact["measured"]["dtype"] == "float32"
    assert quick["measured"]["dtype"] == "bfloat16"
    run = json.loads((trained / "evaluation.json").read_text())["results"]["ema"]
    assert exact["results"]["ema"] == run
    assert quick["results"]["ema"]["psnr"] != run["psnr"]


def test_an_image_model_is_evaluated_on_the_same_clips(trained, clips, command):
    words = ("--config.data.source=motion", "--config.data.frames=4")
    status, out, _ = command("--mode", "evaluate", "--workdir", trained, *words)
    assert status == 0
    (path,) = (line for line in out.splitlines() if line.startswith("report: "))
    report = json.loads(pathlib.Path(path.removeprefix("report: ")).read_text())
    other = json.loads((clips / "evaluation.json").read_text())
    assert report["measured"] == other["measured"]
    assert report["oracle"] == other["oracle"]  # of the originals alone
    assert len(report["results"]["raw"]["per_frame"]["psnr"]) == 4


def test_a_run_of_before_video_goes_on(tmp_path, monkeypatch, command, caplog):
    def of_before(config):
        """What an older version saved."""
        saved = to_json(config)
        for key in ("positions", "causality", "window", "spatial_window", "min_bits"):
            del saved["model"][key]
        del saved["task"], saved["prior"]
        for key in ("frames", "stride", "min_frames", "image_share", "image_source", "eval_clips"):
            del saved["data"][key]
        del saved["eval"]["videos"]
        return saved

    with monkeypatch.context() as patch:
        for place in (train_run, workdir):
            patch.setattr(place, "to_json", of_before)
        words = ["--workdir", str(tmp_path), "--config.train.steps=2"]
        assert module.run(["--config", TINY, *words]) == 0
    assert '"window"' not in (tmp_path / "config.json").read_text()
    status, _, err = command("--workdir", tmp_path, "--config.train.steps=3")
    assert status == 0
    assert "resuming at step 2" in err
    (warning,) = (record.getMessage() for record in caplog.records)
    assert warning == "settings that differ from the checkpoint's: train.steps: 2 -> 3"
    assert '"window"' in (tmp_path / "config.json").read_text()


def test_the_package_is_imported_without_loading_jax():
    # So that --help and a wrong flag answer at once.
    code = "import sys, bsq_jax, bsq_jax.main; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
