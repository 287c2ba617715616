"""The tokenizer's training step at 128x128 with reconstruction and entropy losses alone.

Run ``python -m benchmarks.train_step``.
"""

from __future__ import annotations

import argparse
import pathlib

import jax
import numpy as np

from benchmarks.timing import in_turn, report
from bsq_jax.config import default_config, finalize
from bsq_jax.core.sharding import make_mesh, to_global
from bsq_jax.training.tasks.tokenizer import make_tokenizer_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="rounds, of which the median counts")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--remats", nargs="+", default=["none"], help="none, dots, full")
    parser.add_argument("--size", type=int, default=128, help="pixels a side")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    args = parser.parse_args()

    mesh = make_mesh()
    pixels = np.random.default_rng(0).integers(
        0, 256, (args.batch, 1, args.size, args.size, 3), np.uint8
    )
    batch = to_global({"pixels": pixels}, mesh)
    rows = []
    for dtype in args.dtypes:
        for remat in args.remats:
            config = default_config()
            config.model.update(
                dtype=dtype, remat=remat, layers=args.layers, image_size=(args.size, args.size)
            )
            config.loss.update(perceptual=0.0, adversarial=0.0)
            task = make_tokenizer_task(finalize(config))
            state = task.init_state(mesh)
            step = jax.jit(task.train_step, donate_argnums=0)

            def run(step=step):
                nonlocal state
                state, values = step(state, batch, {})
                return values

            # One at a time: four states of 174M parameters do not fit side by side.
            seconds = in_turn({"step": run}, args.runs)["step"]
            del state
            speed = args.batch / seconds
            rows.append(
                {
                    "dtype": dtype,
                    "remat": remat,
                    "seconds": seconds,
                    "images/s": speed,
                }
            )
    title = f"training step, {args.size}x{args.size}, batch {args.batch}, 36 bits"
    report(title, rows, args.json, runs=args.runs)


if __name__ == "__main__":
    main()
