"""Time of each frame of a stream at the published size. Run ``python -m benchmarks.streaming``."""

from __future__ import annotations

import argparse
import pathlib
import statistics
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import report
from bsq_jax import Tokenizer
from bsq_jax.config import default_config, finalize
from bsq_jax.media.figures import line_figure
from bsq_jax.models.factory import make_tokenizer


def make_tokenizers(args: argparse.Namespace) -> dict[int, Tokenizer]:
    """By window, all with the same random weights."""
    tokenizers: dict[int, Tokenizer] = {}
    params: Any = None
    for window in args.windows:
        config = default_config()
        config.model.update(dtype=args.dtype, layers=args.layers, positions="rotary")
        config.model.update(image_size=(args.size, args.size), frames=args.frames, window=window)
        config = finalize(config)
        if params is None:
            pixels = jnp.zeros((1, 1, args.size, args.size, 3))
            made = jax.jit(make_tokenizer(config).init)(jax.random.key(0), pixels)["params"]
            params = jax.device_get(nn.meta.unbox(made))
        tokenizers[window] = Tokenizer(config, params)
    return tokenizers


def one_pass(tokenizer: Tokenizer, frames: np.ndarray) -> list[tuple[float, float]]:
    """Seconds to encode and to decode each frame."""
    stream, seconds = tokenizer.stream(), []
    for frame in frames:
        begin = time.perf_counter()
        bits = stream.encode(frame)
        between = time.perf_counter()
        stream.decode(bits)
        seconds.append((between - begin, time.perf_counter() - between))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="passes, of which the median counts")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--windows", type=int, nargs="+", default=[0, 4], help="0 for none")
    parser.add_argument("--size", type=int, default=128, help="pixels a side")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    parser.add_argument("--figure", type=pathlib.Path, help="also draw it, as a PNG file")
    args = parser.parse_args()

    tokenizers = make_tokenizers(args)
    shape = (args.frames, 1, args.size, args.size, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for tokenizer in tokenizers.values():
        one_pass(tokenizer, frames)  # compiles
    passes: dict[int, list[list[tuple[float, float]]]] = {window: [] for window in tokenizers}
    for _ in range(args.runs):
        for window, tokenizer in tokenizers.items():
            passes[window].append(one_pass(tokenizer, frames))
    lines = {}
    for window, measured in passes.items():
        label = f"window of {window}" if window else "no window"
        for half, what in enumerate(("encode", "decode")):
            lines[f"{what}, {label}"] = [
                (index, 1e3 * statistics.median(done[index][half] for done in measured))
                for index in range(args.frames)
            ]
    rows = [
        {"frame": index, **{f"{name}, ms": points[index][1] for name, points in lines.items()}}
        for index in range(args.frames)
    ]
    title = f"streams of {args.size}x{args.size}, {args.dtype}, 36 bits, {args.layers} layers"
    report(title, rows, args.json, runs=args.runs)
    if args.figure:
        line_figure(args.figure, lines, x="frame of the stream", y="milliseconds")


if __name__ == "__main__":
    main()
