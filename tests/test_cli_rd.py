"""Rate-distortion curves. Oracles: a codec of PNG bytes, PSNR in float64 numpy, closed forms."""

import csv
import dataclasses
import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from video_files import write_video

from bsq_jax import cli
from bsq_jax.coding.codec import Codec
from bsq_jax.coding.rate_distortion import make_measure
from bsq_jax.coding.rate_distortion_tables import FILES, Point, bjontegaard_rates, means
from bsq_jax.core.pixels import to_float
from bsq_jax.evaluation import metrics
from bsq_jax.evaluation.metrics import bd_rate
from bsq_jax.evaluation.networks.lpips import load_lpips, lpips


@dataclasses.dataclass
class Header:
    """Of a file of `Standin`."""

    numbers: bytes

    def pack(self):
        return self.numbers


@dataclasses.dataclass
class Decoded:
    frames: np.ndarray
    header: Header


class Standin:
    """Keeps the first bits of every sample, as PNG; mode raw stores the same bytes twice."""

    variable_bits = (1, 2, 3, 4, 5, 6, 7)

    def __init__(self, name="standin", has_prior=True):
        self.name, self.has_prior, self.calls = name, has_prior, []

    def encode(self, frames, rate=None, bits=None, mode="prior", **more):
        self.calls.append((frames.shape, rate, bits, mode, more))
        file = io.BytesIO()
        Image.fromarray(self.kept(frames, bits).reshape(-1, *frames.shape[2:])).save(file, "PNG")
        head = bytes([len(frames), 2 if mode == "raw" else 1]) + b"header"
        return head + file.getvalue() * head[1]

    def decode(self, data):
        time, copies = data[0], data[1]
        picture = data[8 : 8 + (len(data) - 8) // copies]
        pixels = np.asarray(Image.open(io.BytesIO(picture)))
        return Decoded(pixels.reshape(time, -1, *pixels.shape[1:]), Header(data[:8]))

    @staticmethod
    def kept(frames, bits):
        step = 2 ** (8 - bits)
        return (frames // step * step + step // 2).astype(np.uint8)


def soft(number, height, width):
    """Soft colours with a little grain, uint8 [height, width, 3]."""
    rng = np.random.default_rng(number)
    y, x, c = np.ogrid[0:height, 0:width, 0:3]
    wave = np.sin(0.07 * x + 0.05 * y + number) + 0.2 * (c - 1) * np.sin(0.09 * x - 0.04 * y)
    return np.clip(127 + 90 * wave + rng.normal(0, 3, (height, width, 3)), 0, 255).astype(np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2))


@pytest.fixture
def models(monkeypatch):
    """Models by path; the real codec is not needed."""
    known = {"one": Standin(), "two": Standin(has_prior=False)}
    monkeypatch.setattr(Codec, "load", lambda path: known[path])
    return known


@pytest.mark.smoke
def test_curves_of_pictures(tmp_path, models, capsys):
    pictures = [soft(number, 40, 48 + 8 * number) for number in range(2)]
    for number, pixels in enumerate(pictures):
        save(tmp_path / "in" / f"kodim{number:02d}.png", pixels)
    flags = [str(tmp_path / "in"), "--models", "one", "two", "--against", "jpeg,webp"]
    flags += ["--bits", "2,3,4", "--metrics", "psnr"]
    assert cli.main(["rd", *flags, "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)

    rows = table(tmp_path / "out" / "points.csv")
    curves = ("standin, raw", "standin, prior", "standin (2), raw")
    assert [row["codec"] for row in rows[:9]] == [name for name in curves for _ in range(3)]
    assert len(rows) == 2 * (3 * 3 + 2 * 6)
    packets = next(name for name in rows[0] if name.startswith("packet_bytes"))
    assert "bsq: file minus header" in packets
    for row in rows[:9]:
        bits, mode = int(row["setting"].removeprefix("bits ")), row["codec"].split(", ")[1]
        data = models["one"].encode(pictures[0][None], None, bits, mode)
        assert int(row["bytes"]) == len(data)
        assert int(row[packets]) == len(data) - 8
        assert float(row["bpp"]) == pytest.approx(8 * len(data) / (40 * 48), rel=1e-5)
        expected = psnr(pictures[0], Standin.kept(pictures[0], bits))
        assert float(row["psnr"]) == pytest.approx(expected, abs=1e-3)
        assert (row["frames"], row["height"], row["width"]) == ("1", "40", "48")
    assert {call[1] for call in models["one"].calls} == {None}

    summary = table(tmp_path / "out" / "summary.csv")
    assert len(summary) == len(rows) // 2
    for mean, first, second in zip(summary, rows, rows[len(summary) :], strict=False):
        assert (mean["codec"], mean["setting"], mean["inputs"]) == (
            *(first["codec"], second["setting"]),
            "2",
        )
        for name in ("bpp", "packet_bpp", "psnr"):
            expected = (float(first[name]) + float(second[name])) / 2
            assert float(mean[name]) == pytest.approx(expected, rel=1e-5)

    # Twice the bytes at the same quality is a factor of two in Bjontegaard's rate.
    found = {(row["codec"], row["bits"]): row for row in table(tmp_path / "out" / "bd_rate.csv")}
    for kind in ("bd_rate_of_means_percent", "bd_rate_mean_percent"):
        raw, prior = (float(found[f"standin, {m}", "packets"][kind]) for m in ("raw", "prior"))
        if kind == "bd_rate_of_means_percent":
            assert 1 + raw / 100 == pytest.approx(2 * (1 + prior / 100), rel=1e-4)
        assert raw > prior
    points = [
        [(float(r["bpp"]), float(r["psnr"])) for r in summary if r["codec"] == name]
        for name in ("jpeg", "webp")
    ]
    assert float(found["webp", "file"]["bd_rate_of_means_percent"]) == pytest.approx(
        bd_rate(*points), abs=0.01
    )
    assert found["webp", "file"]["anchor"] == "jpeg"
    assert found["webp", "file"]["inputs_with_bd_rate"] == "2"

    captured = capsys.readouterr()
    lines = [line.split() for line in captured.out.splitlines()]
    assert "Means over 2 input(s)" in captured.out
    numbers = [f"{float(summary[4][name]):.{n}f}" for name, n in (("bpp", 4), ("psnr", 2))]
    packed = f"{float(summary[4]['packet_bpp']):.4f}"
    assert ["standin,", "prior", "bits", "3", numbers[0], packed, numbers[1]] in lines
    assert "Bjontegaard rate against jpeg" in captured.out
    percent = float(found["webp", "file"]["bd_rate_of_means_percent"])
    assert ["webp", "file", f"{percent:+.1f}%"] in lines
    with Image.open(tmp_path / "out" / "rate_distortion.png") as figure:
        assert figure.size == (990, 990)


def test_results_are_overwritten_only_when_told(tmp_path, models, capsys):
    save(tmp_path / "a.png", soft(0, 20, 24))
    flags = [str(tmp_path / "a.png"), "--against", "jpeg", "--out", str(tmp_path / "out")]
    flags += ["--models"]  # none
    assert cli.main(["rd", *flags]) == 0
    kept = {name: (tmp_path / "out" / name).read_bytes() for name in FILES}
    save(tmp_path / "a.png", soft(1, 20, 24))
    assert cli.main(["rd", *flags]) == 2
    captured = capsys.readouterr()
    assert "holds results (points.csv, " in captured.err
    assert "add --force" in captured.err
    assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == kept
    assert cli.main(["rd", *flags, "--force"]) == 0
    assert (tmp_path / "out" / "points.csv").read_bytes() != kept["points.csv"]
    assert "lpips needs frames of at least 31 pixels a side, and a.png has 20: left" in (
        capsys.readouterr().out
    )


def test_curves_of_videos(tmp_path, models):
    """A raw video of 4:2:0 and an MP4, at the rates that they tell, the first frames of each."""
    luma = np.stack([soft(number, 48, 64)[..., 0] for number in range(6)])
    chroma = np.full((6, 48 * 64 // 2), 128, np.uint8)
    raw = tmp_path / "in" / "videoSRC01_64x48_60.yuv"
    raw.parent.mkdir()
    raw.write_bytes(np.concatenate([luma.reshape(6, -1), chroma], axis=1).tobytes())
    write_video(tmp_path / "in" / "b.mp4", 6, size=(48, 64))
    flags = [str(tmp_path / "in"), "--models", "one", "--against", "h265,av1,h264-444"]
    flags += [
        "--frames",
        "4",
        "--size",
        "40",
        "--overlap",
        "3",
        "--tile",
        "24",
        "--metrics",
        "psnr",
    ]
    assert cli.main(["rd", *flags, "--axis", "linear", "--out", str(tmp_path / "out")]) == 0
    rows = table(tmp_path / "out" / "points.csv")
    assert {row["input"] for row in rows} == {"videoSRC01_64x48_60.yuv", "b.mp4"}
    assert len(rows) == 2 * (2 * 6 + 3 * 6)
    assert {(row["frames"], row["height"], row["width"]) for row in rows} == {("4", "40", "53")}
    assert list(rows[0])[-3:] == ["bpp", "packet_bpp", "psnr"]
    calls = models["one"].calls
    assert {(call[0], call[1]) for call in calls} == {
        ((4, 40, 53, 3), 60),
        ((4, 40, 53, 3), 25),
    }
    assert {call[2] for call in calls} == {1, 2, 3, 5, 6, 7}
    assert all(call[4] == {"overlap": 3, "tile": "24"} for call in calls)
    packets = next(name for name in rows[0] if name.startswith("packet_bytes"))
    for row in rows:
        container = int(row["bytes"]) - int(row[packets])
        assert container == 8 if row["codec"].startswith("standin") else 500 < container < 2000
        assert float(row["packet_bpp"]) == pytest.approx(8 * int(row[packets]) / 8480, rel=1e-5)
    with Image.open(tmp_path / "out" / "rate_distortion.png") as figure:
        assert figure.size == (990, 990)


@pytest.mark.parametrize(("name", "side"), [("psnr", 20), ("ms_ssim", 161), ("lpips", 32)])
def test_metrics_are_means_over_frames(name, side):
    """Against the metric of the whole clip at once; of its second frame all is kept."""
    original = np.stack([soft(number, side, side + 1) for number in range(2)])
    decoded = np.stack([Standin.kept(original[0], 3), original[1]])
    a, b = (jnp.asarray(frames[None]) for frames in (original, decoded))
    if name == "lpips":
        params = load_lpips("alexnet")
        expected = lpips(params, to_float(a), to_float(b), net="alexnet")[0]
    elif name == "ms_ssim":
        expected = metrics.ms_ssim(a, b).mean()
    else:
        expected = (psnr(original[0], decoded[0]) + 100) / 2
    measure = make_measure([name])
    assert measure(original, decoded) == {name: pytest.approx(float(expected), rel=1e-4)}
    best = {"psnr": 100, "ms_ssim": 1, "lpips": 0}[name]
    assert measure(original, original) == {name: pytest.approx(best, abs=1e-5)}


def test_means_and_rates_by_hand():
    """Two inputs: one at half the rate, the other at twice; one input shares no quality."""

    def point(one, curve, setting, size, quality):
        values = {"psnr": quality, "ms_ssim": 1 - 10 ** (-quality / 10), "lpips": -quality}
        return Point(one, curve, "", f"q {setting}", (2, 10, 20), size, size - 10, values)

    points = []
    for number, quality in enumerate((20.0, 24.0, 30.0)):
        size = 100 * 2**number
        points += [
            point("a", "old", number, size, quality),
            point("a", "new", number, size // 2, quality),
        ]
        points += [
            point("b", "old", number, size, quality),
            point("b", "new", number, 2 * size, quality),
        ]
        points += [
            point("c", "old", number, size, quality),
            point("c", "new", number, size, quality + 50),
        ]
    average = means(points)
    assert [(mean.curve, mean.setting, mean.inputs) for mean in average[:2]] == [
        ("old", "q 0", 3),
        ("new", "q 0", 3),
    ]
    assert average[1].bpp == pytest.approx(8 * (50 + 200 + 100) / 3 / 400)
    assert average[1].packet_bpp == pytest.approx(8 * (40 + 190 + 90) / 3 / 400)
    assert average[1].values["psnr"] == pytest.approx((20 + 20 + 70) / 3)
    found = {(c.metric, c.bits): c for c in bjontegaard_rates(points, "old")}
    assert len(found) == 6
    for metric in ("psnr", "ms_ssim", "lpips"):
        rate = found[metric, "file"]
        assert (rate.curve, rate.anchor, rate.inputs) == ("new", "old", 2)
        assert rate.mean == pytest.approx((-50 + 100) / 2, abs=1e-6)
        assert found[metric, "packets"].mean != rate.mean
    assert all(rate.mean is None for rate in bjontegaard_rates(points[4::6] + points[5::6], "old"))


def test_rates_at_equal_quality_are_on_scales_that_bend_alike():
    """LPIPS counts as its negative and MS-SSIM in dB, here both made from PSNR."""
    points = []
    for curve, sizes in {"old": (100, 200, 400), "new": (30, 150, 500)}.items():
        for size, quality in zip(sizes, (20.0, 24.0, 30.0), strict=True):
            values = {"psnr": quality, "ms_ssim": 1 - 10 ** (-quality / 10), "lpips": -quality}
            points.append(Point("a", curve, "", f"q {quality}", (1, 8, 1), size, size, values))
    curves = [
        [(size, q) for size, q in zip(sizes, (20.0, 24.0, 30.0), strict=True)]
        for sizes in ((100, 200, 400), (30, 150, 500))
    ]
    found = [rate.of_means for rate in bjontegaard_rates(points, "old")]
    assert found == pytest.approx([bd_rate(*curves)] * 6, rel=1e-6)
    assert abs(found[0]) > 5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["nowhere.png"], "nowhere.png does not exist: check the path"),
        (["a.png", "--against", "jpeg,h266"], "unknown codec 'h266'"),
        (["a.png", "--against", "jpeg,,webp"], "--against 'jpeg,,webp': give different names"),
        (["a.png", "--metrics", "vmaf"], "unknown metric 'vmaf': choose from psnr, ms_ssim, lpips"),
        (["a.png", "--metrics", "ms_ssim"], "ms_ssim needs frames of at least 161 pixels a side"),
        (["a.png", "--frames", "-1"], "--frames -1: give 0 or more"),
        (["a.png", "--models", "one", "--bits", "6,x"], "--bits 6,x: give whole numbers"),
        (["a.png", "--models", "one", "--bits", "18"], "--bits 18: standin takes 1 to 7"),
        (["a.png", "b.png"], "b.png is no picture that can be read: not a picture"),
        (["a.png", "--out", "a.png"], "a.png is a file: give a folder"),
        (["a.png", "--out", "gs://bucket/x"], "mount the bucket"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, models, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.png", soft(0, 40, 40))
    (tmp_path / "b.png").write_bytes(b"no picture")
    assert cli.main(["rd", *flags, *(["--out", "out"] if "--out" not in flags else [])]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_none(tmp_path, monkeypatch, capsys):
    """Through the real codec."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.png", soft(0, 40, 40))
    assert cli.main(["rd", "a.png", "--models", "nothing", "--out", "out"]) == 2
    assert capsys.readouterr().err.startswith("error: nothing does not exist")
