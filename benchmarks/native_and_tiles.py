r"""Pictures coded as a whole and in tiles of 64, by models trained for equally many minutes.

    python -m benchmarks.native_and_tiles --photographs FOLDER --minutes 10 --out runs/native

FOLDER has photographs in ``train`` and ``val``. ``tiles`` is configs/quickstart.py:whole, whose
attention sees the 64x64 pixels of a tile, coded with the codec's usual overlap; ``native`` is
configs/any_size.py. Seconds a step of both are measured in turn first, and each gets the steps that
fit into the minutes. Their priors then see equally many tokens. The table has the real files of the
validation photographs with the short side at 384 pixels, and what a native file of the same PSNR
takes, along the curve of its stages. OUT gets the table and a photograph coded in both ways.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import pathlib
import re
import statistics
import subprocess
import sys
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.timing import report

CONFIGS = {"tiles": "configs/quickstart.py:whole", "native": "configs/any_size.py"}
PRIORS = {"tiles": "configs/prior.py", "native": "configs/prior.py:any_size"}
SIZE = 384  # short side of the photographs that are coded, pixels
_CALIBRATION = 60  # steps
_WARM = 20  # of them that do not count
_NUMBER = re.compile(r"\d+")


def run(*arguments: str | pathlib.Path) -> None:
    """A command of the package, in a process of its own."""
    subprocess.run([sys.executable, "-m", *map(str, arguments)], check=True)


def train(config: str, workdir: pathlib.Path, **settings: Any) -> None:
    """Trains to the end, or goes on where an earlier call was stopped."""
    flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in settings.items()]
    run("bsq_jax.main", "--config", config, "--workdir", workdir, *flags)


def seconds_a_step(workdir: pathlib.Path) -> float:
    """Between the logged steps of a short run, the first of them left out."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["prefix"] == "train" and line["step"] >= _WARM]
    return statistics.median(
        (after["time"] - before["time"]) / (after["step"] - before["step"])
        for before, after in itertools.pairwise(steps)
    )


def measure_steps(out: pathlib.Path, data: dict[str, Any], rounds: int) -> dict[str, float]:
    """Median seconds a step of each model; they are trained in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in CONFIGS}
    for number in range(rounds):
        for name, config in CONFIGS.items():
            workdir = out / f"speed_{name}_{number}"
            every = {"train__log_every": 5, "train__evaluate_every": 0, "train__picture_every": 0}
            train(config, workdir, **data, **every, train__steps=_CALIBRATION)
            seconds[name].append(seconds_a_step(workdir))
    return {name: statistics.median(found) for name, found in seconds.items()}


def train_all(
    out: pathlib.Path, data: dict[str, Any], minutes: float, rounds: int
) -> dict[str, int]:
    """Trains both tokenizers and their priors; gives the steps of the tokenizers.

    What an earlier call has done is kept.
    """
    path = out / "steps.json"
    if not path.exists():
        seconds = measure_steps(out, data, rounds)
        steps = {name: int(60 * minutes / each) for name, each in seconds.items()}
        path.write_text(json.dumps(steps))
    steps = json.loads(path.read_text())
    quiet = {"train__evaluate_every": 0, "train__picture_every": 0}
    for name, config in CONFIGS.items():
        train(config, out / name, **data, **quiet, train__steps=steps[name])
    for name, config in PRIORS.items():
        settings = {"prior__tokenizer": out / name, "data__source": data["data__source"]}
        if name == "tiles":
            settings["prior__reach"] = 0  # of tiles, too
        train(config, out / f"{name}_prior", **settings, **quiet)
    return steps


def curves(folder: pathlib.Path) -> dict[str, list[tuple[float, float, float]]]:
    """(bits, bits a pixel, PSNR) of each codec with its prior, by increasing rate."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    with (folder / "summary.csv").open() as file:
        for row in csv.DictReader(file):
            point = float(_NUMBER.findall(row["setting"])[0]), float(row["bpp"]), float(row["psnr"])
            found.setdefault(row["codec"], []).append(point)
    return {name: sorted(points, key=lambda point: point[1]) for name, points in found.items()}


def rate_at(points: list[tuple[float, float, float]], psnr: float) -> float:
    """Bits a pixel at a PSNR, between the points of a curve, or NaN beyond them."""
    rates, values = np.array(points)[:, 1], np.array(points)[:, 2]
    return float(np.exp(np.interp(psnr, values, np.log(rates), left=np.nan, right=np.nan)))


def draw(out: pathlib.Path, photograph: pathlib.Path) -> None:
    """The middle of a photograph, of its tiles and of the native one, twice as large."""
    from bsq_jax import Codec

    with Image.open(photograph) as image:
        scale = SIZE / min(image.size)
        size = round(image.width * scale), round(image.height * scale)
        original = np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))
    codecs = [Codec.load(out / f"{name}_prior") for name in CONFIGS]
    made = [codec.decode(codec.encode(original)).frames[0] for codec in codecs]
    top, left = (original.shape[0] - 256) // 2, (original.shape[1] - 256) // 2
    cut = [x[top : top + 256, left : left + 256] for x in (original, *made)]
    side_by_side = Image.fromarray(np.concatenate(cut, axis=1))
    larger = side_by_side.width * 2, side_by_side.height * 2
    side_by_side.resize(larger, Image.Resampling.NEAREST).save(out / "native_and_tiles.png")


def main() -> None:
    """Trains, codes, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3, help="of measuring the speed")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--picture", help="name of the photograph in val that is drawn")
    parser.add_argument("--json", type=pathlib.Path)
    flags = parser.parse_args()
    out = flags.out
    out.mkdir(parents=True, exist_ok=True)
    data = {
        "data__source": f"folder:{flags.photographs}",
        "data__resize": 768,
        "data__scale": "1,3",
        "data__permute_channels": 0,
    }
    steps = train_all(out, data, flags.minutes, flags.rounds)
    validation = flags.photographs / "val"
    models = [out / f"{name}_prior" for name in CONFIGS]
    measured = ["--against", "jpeg", "--metrics", "psnr", "--bits", "18,24", "--size", str(SIZE)]
    measured += ["--out", str(out / "curves"), "--force"]
    run("bsq_jax", "rd", validation, "--models", *models, *measured)
    found = curves(out / "curves")
    rows = []
    tiles = found["tiles_prior, prior"][-1]
    for name in CONFIGS:
        for bits, rate, psnr in found[f"{name}_prior, prior"]:
            raw = next(p[1] for p in found[f"{name}_prior, raw"] if p[0] == bits)
            rows.append(
                {
                    "coded": name,
                    "steps": steps[name],
                    "bits a token": int(bits),
                    "bits a pixel": rate,
                    "without prior": raw,
                    "PSNR": f"{psnr:.2f}",
                    "PSNR to tiles": f"{psnr - tiles[2]:+.2f}",
                }
            )
    report(f"native and tiles, {flags.minutes:g} minutes each", rows, flags.json)
    same = rate_at(found["native_prior, prior"], tiles[2])
    print(f"a native file of the PSNR of tiles: {same:.4f} bits a pixel, {same / tiles[1]:.1%}")
    names = sorted(path for path in validation.iterdir() if path.is_file())
    draw(out, validation / flags.picture if flags.picture else names[0])


if __name__ == "__main__":
    main()
