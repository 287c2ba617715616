"""Encode and decode of a clip at the published size, beside PyTorch's.

Run ``python -m benchmarks.video``.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.compare import compare
from benchmarks.peer import add_flags, start
from benchmarks.timing import report
from benchmarks.work import work_of
from bsq_jax.config import default_config, finalize
from bsq_jax.models.factory import make_tokenizer


def make_config(args: argparse.Namespace, dtype: str, attention: str) -> Any:
    """The finalised config of a row."""
    config = default_config()
    config.model.update(dtype=dtype, layers=args.layers, image_size=(args.size, args.size))
    config.model.update(frames=args.frames, attention=attention)
    return finalize(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="rounds, of which the median counts")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=128, help="pixels a side")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--attention", nargs="+", default=["dense", "by_head", "blocked"])
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    add_flags(parser)
    args = parser.parse_args()

    rows = []
    with start(args.torch_python) as peer:
        for dtype in args.dtypes:
            configs = {each: make_config(args, dtype, each) for each in args.attention}
            work = work_of(configs[args.attention[0]], 1, train=False)
            noise = np.random.default_rng(0).uniform(-1, 1, work.pixels)
            pixels = jnp.asarray(noise, jnp.float32)
            params: Any = None
            functions, memory = {}, {}
            for attention, config in configs.items():
                model = make_tokenizer(config)
                if params is None:
                    params = jax.jit(model.init)(jax.random.key(0), pixels[:, :1])
                forward = jax.jit(lambda p, x, m=model: m.apply(p, x).pixels)
                compiled = forward.lower(params, pixels).compile()
                used: Any = compiled.memory_analysis()
                memory[attention] = used.temp_size_in_bytes / 2**20
                functions[attention] = lambda c=compiled, p=params, x=pixels: c(p, x)
            found = compare(functions, work, peer, args.runs, args.torch_modes)
            for attention in configs:
                cells = found.columns(attention, args.frames, "frames")
                more = {"MiB of temporary memory": memory[attention]}
                rows.append({"dtype": dtype, "attention": attention, **cells, **more})
    title = f"encode + decode, {args.frames}x{args.size}x{args.size}, 36 bits, {args.layers} layers"
    report(title, rows, args.json, runs=args.runs, peer=peer and peer.text)


if __name__ == "__main__":
    main()
