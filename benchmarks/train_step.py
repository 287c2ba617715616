"""The tokenizer's training step with pixel and entropy losses alone, beside PyTorch's.

Run ``python -m benchmarks.train_step`` for the published size at 128x128; ``--config
quickstart:adamw`` takes a config in place of it.
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
from benchmarks.work import not_in_peer, work_of
from bsq_jax.config import default_config, finalize, load_config_file
from bsq_jax.core.sharding import make_mesh, to_global
from bsq_jax.training.state import jit_step
from bsq_jax.training.tasks.tokenizer import make_tokenizer_task


def make_config(args: argparse.Namespace, dtype: str, remat: str) -> Any:
    """The finalised config of a row."""
    config = load_config_file(args.config) if args.config else default_config()
    if not args.config:
        config.model.update(layers=args.layers, image_size=(args.size, args.size))
        config.train.batch_size = args.batch
    config.model.update(dtype=dtype, remat=remat)
    config.loss.update(perceptual=0.0, adversarial=0.0)
    return finalize(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="rounds, of which the median counts")
    parser.add_argument("--config", help="a config of the tokenizer, in place of the next three")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, default=128, help="pixels a side")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--remats", nargs="+", default=["none"], help="none, dots, full")
    parser.add_argument("--spell", type=float, default=6.0, help="seconds of steps in a row")
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    add_flags(parser)
    args = parser.parse_args()

    rows = []
    with start(args.torch_python) as peer:
        mesh = make_mesh()
        for dtype in args.dtypes:
            for remat in args.remats:
                config = make_config(args, dtype, remat)
                work = work_of(config, config.train.batch_size, train=True)
                pixels = np.random.default_rng(0).integers(0, 256, work.pixels, np.uint8)
                batch = to_global({"pixels": pixels}, mesh)
                task = make_tokenizer_task(config)
                state = task.init_state(mesh)
                shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
                step = jit_step(task, mesh, shardings)

                def run(step=step, batch=batch):
                    nonlocal state
                    state, values = step(state, batch, {})
                    return values

                other = peer
                if absent := not_in_peer(config, train=True):
                    print(f"PyTorch and the limit are without {', '.join(absent)}: no comparison")
                    other = None
                # One at a time: the states of several do not fit side by side.
                found = compare({"step": run}, work, other, args.runs, args.torch_modes, args.spell)
                del state
                cells = found.columns("step", work.batch, "images")
                rows.append({"dtype": dtype, "remat": remat, **cells})
    title = f"training step, {args.config or 'published size'}, batch {work.batch}, "
    title += f"{work.height}x{work.width}, {work.bits} bits"
    report(title, rows, args.json, runs=args.runs, peer=peer and peer.text)


if __name__ == "__main__":
    main()
