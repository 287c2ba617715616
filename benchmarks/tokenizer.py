"""Encode and decode at the published size, beside PyTorch's.

Run ``python -m benchmarks.tokenizer``.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import jax
import numpy as np

from benchmarks.compare import compare
from benchmarks.peer import add_flags, start
from benchmarks.timing import report
from benchmarks.work import work_of
from bsq_jax import Tokenizer
from bsq_jax.config import default_config, finalize
from bsq_jax.core.sharding import make_mesh
from bsq_jax.training.tasks.tokenizer import make_tokenizer_task


def make_config(dtype: str, size: int, layers: int) -> Any:
    """A finalised config of the published width."""
    config = default_config()
    config.model.update(dtype=dtype, layers=layers, image_size=(size, size))
    config.optimizer.ema = 0.0
    return finalize(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="rounds, of which the median counts")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    add_flags(parser)
    args = parser.parse_args()

    rows = []
    with start(args.torch_python) as peer:
        for dtype in args.dtypes:
            config = make_config(dtype, args.size, args.layers)
            params = make_tokenizer_task(config).init_state(make_mesh()).params
            tokenizer = Tokenizer(config, jax.device_get(params))
            for batch in args.batches:
                work = work_of(config, batch, train=False)
                images = np.random.default_rng(0).integers(0, 256, work.pixels, np.uint8)[:, 0]

                def run(tokenizer=tokenizer, images=images):
                    return tokenizer.reconstruct(images, dtype="uint8")

                found = compare({"": run}, work, peer, args.runs, args.torch_modes)
                cells = found.columns("", batch, "images")
                rows.append({"dtype": dtype, "batch": batch, **cells})
    title = f"encode + decode, {args.size}x{args.size}, 36 bits"
    report(title, rows, args.json, runs=args.runs, peer=peer and peer.text)


if __name__ == "__main__":
    main()
