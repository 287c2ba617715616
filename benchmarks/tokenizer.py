"""Encode and decode at the published size. Run ``python -m benchmarks.tokenizer``."""

from __future__ import annotations

import argparse
import pathlib

import jax
import numpy as np

from benchmarks.timing import in_turn, report
from bsq_jax import Tokenizer
from bsq_jax.config import default_config, finalize
from bsq_jax.core.sharding import make_mesh
from bsq_jax.training.tasks.tokenizer import make_tokenizer_task


def make_tokenizer(dtype: str, size: int, layers: int) -> Tokenizer:
    """A tokenizer of the published width with random weights."""
    config = default_config()
    config.model.update(dtype=dtype, layers=layers, image_size=(size, size))
    config.optimizer.ema = 0.0
    config = finalize(config)
    task = make_tokenizer_task(config)
    return Tokenizer(config, jax.device_get(task.init_state(make_mesh()).params))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="rounds, of which the median counts")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    args = parser.parse_args()

    functions = {}
    for dtype in ("float32", "bfloat16"):
        tokenizer = make_tokenizer(dtype, args.size, args.layers)
        for batch in args.batches:
            images = np.random.default_rng(0).integers(
                0, 256, (batch, args.size, args.size, 3), np.uint8
            )
            functions[dtype, batch] = lambda t=tokenizer, x=images: t.reconstruct(x)
    seconds = in_turn({str(key): function for key, function in functions.items()}, args.runs)
    rows = []
    for key in functions:
        dtype, batch = key
        speed = batch / seconds[str(key)]
        rows.append(
            {
                "dtype": dtype,
                "batch": batch,
                "images/s": speed,
            }
        )
    report(f"encode + decode, {args.size}x{args.size}, 36 bits", rows, args.json, runs=args.runs)


if __name__ == "__main__":
    main()
