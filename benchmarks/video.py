"""Encode and decode of a clip at the published size. Run ``python -m benchmarks.video``."""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import in_turn, report
from bsq_jax.config import default_config, finalize
from bsq_jax.models.factory import make_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="rounds, of which the median counts")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=128, help="pixels a side")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--attention", nargs="+", default=["dense", "by_head", "blocked"])
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    args = parser.parse_args()

    side = args.size
    shape = (1, args.frames, side, side, 3)
    pixels = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, shape), jnp.float32)
    functions, memory = {}, {}
    for dtype in args.dtypes:
        params: Any = None
        for attention in args.attention:
            config = default_config()
            config.model.update(dtype=dtype, layers=args.layers, image_size=(side, side))
            config.model.update(frames=args.frames, attention=attention)
            model = make_tokenizer(finalize(config))
            if params is None:
                params = jax.jit(model.init)(jax.random.key(0), pixels[:, :1])
            forward = jax.jit(lambda p, x, m=model: m.apply(p, x).pixels)
            compiled = forward.lower(params, pixels).compile()
            used: Any = compiled.memory_analysis()
            memory[dtype, attention] = used.temp_size_in_bytes
            functions[dtype, attention] = lambda c=compiled, p=params: c(p, pixels)
    seconds = in_turn({str(key): function for key, function in functions.items()}, args.runs)
    rows = []
    for key in functions:
        dtype, attention = key
        took = seconds[str(key)]
        rows.append(
            {
                "dtype": dtype,
                "attention": attention,
                "frames/s": args.frames / took,
                f"x {args.attention[0]}": seconds[str((dtype, args.attention[0]))] / took,
                "MiB of temporary memory": memory[key] / 2**20,
            }
        )
    title = f"encode + decode, {args.frames}x{side}x{side}, 36 bits, {args.layers} layers"
    report(title, rows, args.json, runs=args.runs)


if __name__ == "__main__":
    main()
