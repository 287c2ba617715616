"""Recipes of a small tokenizer at equal data, model size and minutes of training.

    python -m benchmarks.recipes --photographs FOLDER --minutes 2 --seeds 0 1 2 --torch-python PATH

FOLDER has photographs in ``train`` and ``val``. The recipes (`benchmarks.recipe_kinds`) have a
network as large as that of configs/quickstart.py, 18 bits for each patch of 8x8 pixels, and the
same crops in the same order. Seconds a step are measured first, in turn, and each recipe gets the
steps that fit into the minutes, over which its learning rate is laid out; compiling and decoding
the photographs do not count. Then all are trained in turn, seed by seed, each in a process of its
own. The validation photographs, with the short side at 384 pixels, are coded in tiles of 64 by the
averaged weights; PSNR, SSIM and LPIPS are those of whole photographs. Further settings follow as
``--config.KEY=VALUE``, for all recipes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import pathlib
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks.native_and_tiles import run, seconds_a_step
from benchmarks.peer import Peer, PeerError, add_python_flag, start, torch_command
from benchmarks.photograph_scores import Photographs, Scores
from benchmarks.recipe_kinds import RECIPES, Recipe
from benchmarks.timing import report
from benchmarks.work import not_in_peer, schedule_of, work_of
from bsq_jax import Tokenizer
from bsq_jax.data.factory import make_data_config
from bsq_jax.data.train_pipeline import train_batches

_CALIBRATION = 60  # steps
_LOG_EVERY = 5  # of a calibration
_AT_ONCE = 64  # tiles that are reconstructed at once


def common_settings(photographs: pathlib.Path) -> dict[str, Any]:
    """The settings of all recipes, by dotted key: the same crops, and little beside training."""
    data: dict[str, Any] = {
        "source": f"folder:{photographs}",
        **{"resize": 768, "scale": "1,3", "permute_channels": 0, "filter": "bilinear"},
        **{"threads": 1, "cache_mb": 1024, "eval_resize": 384, "eval_crop": "center"},
    }
    quiet = {"evaluate_every": 0, "picture_every": 0, "checkpoint_every": 10**6}
    evaluation: dict[str, Any] = {
        "lpips": "false",
        "frechet": "false",
        "neighbours": 0,
        "starter": "false",
    }
    sections = {"data": data, "train": quiet, "eval": evaluation}
    return {f"{name}.{key}": x for name, found in sections.items() for key, x in found.items()}


@dataclasses.dataclass(frozen=True)
class Trainings:
    """Trainings of recipes on the same photographs.

    Attributes:
      out: folder for what they write.
      photographs: the data.
      python: interpreter with PyTorch.
      last: flags of all recipes.
    """

    out: pathlib.Path
    photographs: pathlib.Path
    python: str
    last: Sequence[str]

    def config(self, recipe: Recipe, steps: int, seed: int) -> ConfigDict:
        """The finalised config of a training."""
        return recipe.finalized(steps, seed, common_settings(self.photographs), self.last)

    def write_crops(self, path: pathlib.Path, config: ConfigDict) -> None:
        """Writes the crops of all steps as ``bsq_jax.main`` takes them, raw uint8 pixels."""
        data = make_data_config(config)
        count = config.train.batch_size
        batches = train_batches(data, global_batch=count, shard_index=0, shard_count=1)
        with contextlib.closing(batches), path.open("wb") as file:
            for _, batch in zip(range(config.train.steps), batches, strict=False):
                file.write(batch["pixels"].tobytes())

    def package(self, recipe: Recipe, workdir: pathlib.Path, steps: int, seed: int) -> None:
        """Trains with ``bsq_jax.main``."""
        flags = recipe.flags(steps, seed, common_settings(self.photographs), self.last)
        run("bsq_jax.main", "--config", recipe.config, "--workdir", workdir, *flags)

    def pytorch(
        self, recipe: Recipe, steps: int, seed: int, tiles: np.ndarray | None = None
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Trains in PyTorch: seconds a step and parameters, and the tiles as it has them."""
        config = self.config(recipe, steps, seed)
        if lacking := not_in_peer(config, train=True):
            raise PeerError(f"plain PyTorch lacks {', '.join(lacking)}")
        work = work_of(config, config.train.batch_size, train=True)
        files = {name: self.out / f"{name}.bytes" for name in ("crops", "pictures", "made")}
        self.write_crops(files["crops"], config)
        if tiles is None:
            tiles = np.zeros((0, work.height, work.width, 3), np.uint8)
        files["pictures"].write_bytes(tiles.tobytes())
        files["made"].write_bytes(bytes(tiles.size))
        with contextlib.closing(Peer(torch_command(self.python))) as peer:
            found = peer.ask(
                do="train",
                work=dataclasses.asdict(work),
                schedule=dataclasses.asdict(schedule_of(config)),
                seed=seed,
                crops=str(files["crops"]),
                pictures=str(files["pictures"]) if tiles.size else "",
                reconstructions=str(files["made"]),
            )
        made = np.frombuffer(files["made"].read_bytes(), np.uint8).reshape(tiles.shape)
        for file in files.values():
            file.unlink()
        return found, made

    def measure_speed(self, names: Sequence[str], rounds: int) -> dict[str, float]:
        """Median seconds a step of each recipe; they are trained in turn."""
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for number in range(rounds):
            for name in names:
                recipe = RECIPES[name]
                if recipe.torch:
                    found, _ = self.pytorch(recipe, _CALIBRATION, number)
                    seconds[name].append(found["seconds"])
                    continue
                workdir = self.out / f"speed_{name}_{number}"
                brief = dataclasses.replace(self, last=[*self.last, *_LOG_OFTEN])
                brief.package(recipe, workdir, _CALIBRATION, number)
                seconds[name].append(seconds_a_step(workdir))
                shutil.rmtree(workdir)
        return {name: statistics.median(found) for name, found in seconds.items()}

    def train(
        self, name: str, steps: int, seed: int, photographs: Photographs, scores: Scores
    ) -> dict[str, Any]:
        """Trains a recipe and measures it; what an earlier call has measured is kept.

        Raises:
          subprocess.CalledProcessError: the training failed.
          PeerError: likewise, in PyTorch.
        """
        path = self.out / f"{name}_{seed}.json"
        if path.exists():
            kept: dict[str, Any] = json.loads(path.read_text())
            return kept
        recipe, workdir = RECIPES[name], self.out / f"{name}_{seed}"
        if recipe.torch:
            found, made = self.pytorch(recipe, steps, seed, photographs.tiles)
        else:
            self.package(recipe, workdir, steps, seed)
            tokenizer = Tokenizer.load(workdir, weights="ema", dtype="float32")
            found = {"seconds": mean_seconds(workdir), "parameters": tokenizer.num_params}
            made = reconstruct(tokenizer, photographs.tiles)
        values = scores(photographs.pictures, photographs.assembled(made))
        result = {"recipe": name, "seed": seed, "steps": steps, **found, **values}
        path.write_text(json.dumps(result))
        return result


_LOG_OFTEN = (f"--config.train.log_every={_LOG_EVERY}",)


def mean_seconds(workdir: pathlib.Path) -> float:
    """Seconds a step between the first and the last logged one of a training."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = [line for line in lines if line["prefix"] == "train"]
    return (last["time"] - first["time"]) / (last["step"] - first["step"])


def reconstruct(tokenizer: Tokenizer, tiles: np.ndarray) -> np.ndarray:
    """Tiles ``[tile, height, width, 3]`` as a tokenizer has them, uint8."""
    parts = np.split(tiles, range(_AT_ONCE, len(tiles), _AT_ONCE))
    return np.concatenate([tokenizer.reconstruct(part, dtype="uint8") for part in parts])


def make_rows(names: Sequence[str], found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a recipe: means over its seeds, and the range of PSNR."""
    rows = []
    for name in names:
        of = [each for each in found if each["recipe"] == name]
        if not of:
            continue
        mean = {
            key: statistics.fmean(each[key] for each in of)
            for key in ("seconds", "psnr", "ssim", "lpips")
        }
        steps, values = of[0]["steps"], [each["psnr"] for each in of]
        rows.append(
            {
                "recipe": name,
                "seeds": len(of),
                "parameters": of[0]["parameters"],
                "steps": steps,
                "minutes": f"{steps * mean['seconds'] / 60:.2f}",
                "PSNR": f"{mean['psnr']:.2f}",
                "its range": f"{min(values):.2f} to {max(values):.2f}",
                "SSIM": f"{mean['ssim']:.3f}",
                "LPIPS": f"{mean['lpips']:.3f}",
            }
        )
    return rows


def choose(wanted: Sequence[str], python: str) -> list[str]:
    """The recipes that can be trained here: without PyTorch those of this package."""
    with start(python) as peer:
        return [name for name in wanted if peer is not None or not RECIPES[name].torch]


@contextlib.contextmanager
def folder(path: pathlib.Path | None) -> Iterator[pathlib.Path]:
    """The folder, made if need be; None: one that goes afterwards."""
    if path is not None:
        path.mkdir(parents=True, exist_ok=True)
        yield path.resolve()
        return
    with tempfile.TemporaryDirectory() as made:
        yield pathlib.Path(made)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures the speeds, trains, and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photographs", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=float, default=2, help="of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--rounds", type=int, default=2, help="of measuring the speed")
    parser.add_argument(
        "--out", type=pathlib.Path, help="keeps what is trained: a stopped run can be taken up"
    )
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    add_python_flag(parser)
    args, last = parser.parse_known_args(argv)

    names = choose(args.recipes, args.torch_python)
    if not names:
        parser.error("none of these recipes can be trained here: name others, or --torch-python")
    for name in names:
        print(f"{name}: {RECIPES[name].what}")
    with folder(args.out) as out:
        trainings = Trainings(out, args.photographs.resolve(), args.torch_python, last)
        photographs = Photographs(trainings.config(RECIPES[names[0]], 1, 0))
        scores, kept = Scores(), out / "steps.json"
        asked = {"minutes": args.minutes, "photographs": str(trainings.photographs), "flags": last}
        if not kept.exists():
            seconds = trainings.measure_speed(names, args.rounds)
            steps = {name: max(2, int(60 * args.minutes / x)) for name, x in seconds.items()}
            kept.write_text(json.dumps({"asked": asked, "steps": steps}))
        stored = json.loads(kept.read_text())
        steps = stored["steps"]
        if stored["asked"] != asked or not steps.keys() >= set(names):
            parser.error(f"{out} has trainings with other flags: name another --out")
        found = []
        for seed in args.seeds:
            for name in names:
                try:
                    result = trainings.train(name, steps[name], seed, photographs, scores)
                except (subprocess.CalledProcessError, PeerError) as error:
                    print(f"{name}, seed {seed}: left out, the training failed: {error}")
                    continue
                print(f"{name}, seed {seed}: {result['psnr']:.2f} dB", flush=True)
                found.append(result)
    title = f"recipes, {args.minutes:g} minutes each, seeds {', '.join(map(str, args.seeds))}"
    report(title, make_rows(names, found), args.json, minutes=args.minutes, trainings=found)


if __name__ == "__main__":
    main()
