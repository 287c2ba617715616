"""How fast pictures and clips come, on one core. Run ``python -m benchmarks.data``.

One thread reads, so the figures are per core; a training step that needs more uses more threads.
Of a long video the clips are also decoded from its beginning, for comparison.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import av
import numpy as np
from PIL import Image

from bsq_jax.config import default_config, finalize
from bsq_jax.data import transforms
from bsq_jax.data.decoding import stills
from bsq_jax.data.decoding.record_frames import first_frame
from bsq_jax.data.decoding.video import Video
from bsq_jax.data.factory import make_data_config
from bsq_jax.data.settings import DataConfig
from bsq_jax.data.sources import make_source
from bsq_jax.data.sources.motion import CameraPath, channels_of, render
from bsq_jax.data.train_pipeline import train_batches

JPEG_SIZE = (500, 375)  # width and height of a typical ImageNet file
LARGE_SIZE = (2000, 1500)  # of a photograph of 3 megapixels
VIDEO_SIZE = (320, 240)  # width and height of the files of UCF-101
CLIP = 16  # frames


def write_pictures(
    folder: pathlib.Path, count: int, size: tuple[int, int] = JPEG_SIZE, kind: str = "jpg"
) -> None:
    """Saves cuts of the embedded photographs as files of a kind, ``size`` being (width, height)."""
    source = make_source("photos", "train")
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = first_frame(source[number % len(source)])
        (crop,) = transforms.random_clip_crop([pixels], size[::-1], rng, (0.5, 1.0))
        Image.fromarray(crop).save(folder / f"{number:03d}.{kind}", quality=92)


def write_video(path: pathlib.Path, frames: int, gop: int) -> None:
    """Saves a camera's path over a photograph as H.264 with a key frame every ``gop``."""
    source = make_source("photos", "train")
    photograph = transforms.resize_short_side(first_frame(source[2]), 480)
    channels = channels_of(photograph)
    camera = CameraPath(photograph.shape[0], photograph.shape[1], (0,))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height = VIDEO_SIZE
        stream.pix_fmt, stream.gop_size = "yuv420p", gop
        for number in range(frames):
            pixels = render(channels, camera.view(number), VIDEO_SIZE[::-1])
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def examples_per_second(config: DataConfig, batch: int, examples: int, runs: int) -> list[float]:
    """Speed of each run, after one batch that starts threads and fills the cache."""
    batches = train_batches(config, global_batch=batch, shard_index=0, shard_count=1)
    next(batches)
    speeds = []
    steps = max(1, examples // batch)
    for _ in range(runs):
        begin = time.perf_counter()
        for _ in range(steps):
            next(batches)
        speeds.append(steps * batch / (time.perf_counter() - begin))
    batches.close()
    return speeds


def clip_seconds(path: pathlib.Path, clips: int) -> dict[str, float]:
    """Mean seconds for a clip anywhere in a video: as the pipeline does it, and without a seek."""
    with Video(path) as video:
        table = video.frame_index
    starts = np.linspace(0, len(table.times) - CLIP, clips).astype(int)
    seconds = {"seek": 0.0, "from the beginning": 0.0}
    for start in starts:
        begin = time.perf_counter()
        with Video(path, table, exact=False) as video:
            for number, render_ in video.frames(range(start, start + CLIP)):
                if number >= start:
                    render_()
        seconds["seek"] += time.perf_counter() - begin
        begin = time.perf_counter()
        with Video(path, table, exact=False) as video:
            for number, render_ in video.frames(range(start + CLIP)):
                if number >= start:
                    render_()
        seconds["from the beginning"] += time.perf_counter() - begin
    return {name: total / clips for name, total in seconds.items()}


def stage_milliseconds(folder: pathlib.Path, rounds: int = 5) -> dict[str, float]:
    """Median time of each stage of a JPEG to 256 pixels, bicubic, with both backends."""
    paths = sorted(folder.iterdir())
    files = [path.read_bytes() for path in paths]
    pictures = [stills.decode(file) for file in files]
    draw = np.random.default_rng(0)
    crops = [transforms.random_clip_crop([one], (256, 256), draw) for one in pictures]
    stages: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
        "read": (pathlib.Path.read_bytes, paths)
    }
    for backend in ("pillow", "simd"):
        how: dict[str, Any] = {"backend": backend}
        stages[f"decode, {backend}"] = functools.partial(stills.decode, **how), files
        resize = functools.partial(transforms.resize_short_side, size=256, filter="bicubic", **how)
        stages[f"resize, {backend}"] = resize, pictures
    stages["decode at 1/8, pillow"] = functools.partial(stills.decode, draft_side=1), files
    stages["mirror"] = transforms.flip, crops
    stages["batch"] = lambda crop: np.stack([crop] * 32), crops
    found = {}
    for name, (work, given) in stages.items():
        times = []
        for _ in range(rounds):
            begin = time.perf_counter()
            for one in given:
                work(one)
            times.append(1e3 * (time.perf_counter() - begin) / len(given))
        found[name] = statistics.median(times) / (32 if name == "batch" else 1)
    return found


def chosen(backend: str) -> dict[str, Any]:
    """The setting for a backend; none for Pillow, so that earlier versions run this file too."""
    return {} if backend == "pillow" else {"backend": backend}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512, help="images a run")
    parser.add_argument("--runs", type=int, default=5, help="runs, of which the median counts")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--files", type=int, default=64, help="JPEG files written for the test")
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    parser.add_argument("--frames", type=int, default=1500, help="of the long video")
    parser.add_argument("--stages", action="store_true", help="time stages alone")
    backends = ["pillow", "simd"]
    parser.add_argument("--backends", nargs="+", default=backends, choices=backends)
    parser.add_argument("--gop", type=int, default=12, help="frames from key frame to key frame")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for kind in ("jpegs", "large", "png", "webp", "clips"):
            (folder / kind).mkdir()
        write_pictures(folder / "jpegs", args.files)
        write_pictures(folder / "large", args.files // 4, LARGE_SIZE)
        for kind in ("png", "webp"):
            write_pictures(folder / kind, args.files // 4, kind=kind)
        if args.stages:
            for name, milliseconds in stage_milliseconds(folder / "jpegs").items():
                print(f"{name:<44}{milliseconds:>10.3f} ms")
            return
        long = folder / "clips" / "long.mp4"
        write_video(long, args.frames, args.gop)
        settings = default_config()
        settings.data.update(threads=0, cache_mb=256, filter="lanczos")  # read in this very thread
        settings.data.update(resize=160, eval_resize=160, max_broken=0.01)
        settings.model.image_size = (64, 64)
        photos = make_data_config(finalize(settings))
        uncached = dataclasses.replace(photos, val_source="photos", cache_mb=0)
        jpegs = dataclasses.replace(
            uncached, source=f"folder:{folder}/jpegs", image_size=256, resize=256, eval_resize=256
        )
        clips = dataclasses.replace(
            uncached, source=f"clips:{folder}/clips", image_size=128, frames=CLIP, filter="bicubic"
        )
        # Name, settings, and how much less or more of it fills the clock.
        cases: list[tuple[str, DataConfig, float]] = []
        for backend in args.backends:
            cases += [
                (
                    f"500x375 JPEG to 256, {name}, {backend}",
                    dataclasses.replace(jpegs, filter=name, **chosen(backend)),
                    1,
                )
                for name in ("bilinear", "bicubic", "lanczos")
            ]
            cases += [
                (
                    f"{name} to 256, bicubic, {backend}",
                    dataclasses.replace(
                        jpegs, source=f"folder:{folder}/{kind}", filter="bicubic", **chosen(backend)
                    ),
                    1 / 4,
                )
                for kind, name in (
                    ("large", "2000x1500 JPEG"),
                    ("png", "500x375 PNG"),
                    ("webp", "500x375 WebP"),
                )
            ]
            cases.append(
                (
                    f"clips of {CLIP}, 320x240 to 128, {backend}",
                    dataclasses.replace(clips, **chosen(backend)),
                    1 / 8,
                )
            )
        cases += [
            ("photos, 64-pixel crops, cached", photos, 20),
            (
                f"motion, clips of {CLIP} to 128, not cached",
                dataclasses.replace(clips, source="motion"),
                1 / 16,
            ),
        ]
        results = {
            name: examples_per_second(config, args.batch, int(args.images * share), args.runs)
            for name, config, share in cases
        }
        seconds = clip_seconds(long, 25)
    print(f"{'examples/s on one core':<44}{'median':>10}{'lowest':>10}{'highest':>10}")
    medians = {name: statistics.median(speeds) for name, speeds in results.items()}
    for name, speeds in results.items():
        print(f"{name:<44}{medians[name]:>10.1f}{min(speeds):>10.1f}{max(speeds):>10.1f}")
    ratio = seconds["from the beginning"] / seconds["seek"]
    print(
        f"a clip of {CLIP} anywhere in {args.frames} frames, a key frame every {args.gop}: "
        f"{1e3 * seconds['seek']:.1f} ms, from the beginning "
        f"{1e3 * seconds['from the beginning']:.1f} ms: {ratio:.1f} times"
    )
    result = {
        "examples_per_second_per_core": medians,
        "runs": results,
        "batch": args.batch,
        "clip_seconds": seconds,
        "frames": args.frames,
        "gop": args.gop,
    }
    text = json.dumps(result)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
