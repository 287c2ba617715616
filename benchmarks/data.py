"""How fast pictures come: images a second on one core. Run ``python -m benchmarks.data``.

One thread reads, so the figures are per core; a training step that needs more uses more threads.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import tempfile
import time

import numpy as np
from PIL import Image

from bsq_jax.data import transforms
from bsq_jax.data.footage import first_frame
from bsq_jax.data.pipeline import DataConfig, train_batches
from bsq_jax.data.sources import make_source

JPEG_SIZE = (500, 375)  # width and height of a typical ImageNet file


def write_jpegs(folder: pathlib.Path, count: int) -> None:
    """Saves cuts of the embedded photographs as JPEGs of ``JPEG_SIZE``."""
    source = make_source("photos", "train")
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = first_frame(source[number % len(source)])
        crop = transforms.random_crop(pixels, JPEG_SIZE[::-1], rng, (0.5, 1.0))
        Image.fromarray(crop).save(folder / f"{number:03d}.jpg", quality=92)


def images_per_second(config: DataConfig, batch: int, images: int, runs: int) -> list[float]:
    """Speed of each run, after one batch that starts threads and fills the cache."""
    batches = train_batches(config, global_batch=batch, shard_index=0, shard_count=1)
    next(batches)
    speeds = []
    steps = max(1, images // batch)
    for _ in range(runs):
        begin = time.perf_counter()
        for _ in range(steps):
            next(batches)
        speeds.append(steps * batch / (time.perf_counter() - begin))
    batches.close()
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512, help="images a run")
    parser.add_argument("--runs", type=int, default=5, help="runs, of which the median counts")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--files", type=int, default=64, help="JPEG files written for the test")
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        write_jpegs(pathlib.Path(folder), args.files)
        photos = DataConfig(image_size=64, resize=160, threads=0)  # read in this very thread
        jpegs = dataclasses.replace(
            photos,
            source=f"folder:{folder}",
            val_source="photos",
            image_size=256,
            resize=256,
            eval_resize=256,
            cache_mb=0,
        )
        cases = {
            f"500x375 JPEG to 256, {name}": dataclasses.replace(jpegs, filter=name)
            for name in ("bilinear", "bicubic", "lanczos")
        }
        cases["photos, 64-pixel crops, cached"] = photos
        results: dict[str, list[float]] = {}
        for name, config in cases.items():
            factor = 20 if config.cache_mb else 1  # cached crops need more to fill the clock
            results[name] = images_per_second(config, args.batch, args.images * factor, args.runs)
    print(f"{'images/s on one core':<40}{'median':>10}{'lowest':>10}{'highest':>10}")
    medians = {name: statistics.median(speeds) for name, speeds in results.items()}
    for name, speeds in results.items():
        print(f"{name:<40}{medians[name]:>10.0f}{min(speeds):>10.0f}{max(speeds):>10.0f}")
    result = {"images_per_second_per_core": medians, "runs": results, "batch": args.batch}
    text = json.dumps(result)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
