"""What the parts of a small model's training step cost: the step with and without each, in turn.

Run ``python -m benchmarks.step_parts``. A part's time is what the step takes less without it, so
the parts need not add up: programs overlap, and arrays that stay in the cache are faster.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.timing import in_turn, report
from bsq_jax.config import finalize, load_config_file
from bsq_jax.core.sharding import make_mesh, to_global
from bsq_jax.training.state import jit_step
from bsq_jax.training.tasks.tokenizer import make_tokenizer_task

WHOLE = "the whole step"

PARTS: dict[str, dict[str, dict[str, Any]]] = {
    WHOLE: {},
    "one of two layers, encoder and decoder": {"model": {"layers": 1}},
    "convolutions behind the pixel head": {"model": {"head_channels": 0}},
    "Muon in place of AdamW": {"optimizer": {"name": "adamw"}},
    "two of three residual stages": {"quantizer": {"stages": 1}},
    "averaged weights": {"optimizer": {"ema": 0.0}},
    "clipping": {"optimizer": {"clip": "none"}},
}


def make_step(changes: dict[str, dict[str, Any]]) -> tuple[Callable[[], Any], int]:
    """A function that does a step of ``quickstart:whole`` with these changes; its batch size."""
    config = load_config_file("quickstart:whole")
    for section, values in changes.items():
        config[section].update(values)
    config = finalize(config)
    mesh = make_mesh()
    size = (config.train.batch_size, 1, *config.model.image_size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    batch = to_global({"pixels": pixels}, mesh)
    task = make_tokenizer_task(config)
    state = task.init_state(mesh)
    step = jit_step(task, mesh, jax.tree.map(lambda leaf: leaf.sharding, state))

    def run() -> Any:
        nonlocal state
        state, values = step(state, batch, {})
        return values

    return run, config.train.batch_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30, help="rounds, of which the median counts")
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    args = parser.parse_args()

    steps = {name: make_step(changes) for name, changes in PARTS.items()}
    seconds = in_turn({name: run for name, (run, _) in steps.items()}, args.runs)
    whole = seconds[WHOLE]
    rows = [
        {
            "without": "nothing" if name == WHOLE else name,
            "ms": 1e3 * seconds[name],
            "images/s": batch / seconds[name],
            "share of the step": 1 - seconds[name] / whole,
        }
        for name, (_, batch) in steps.items()
    ]
    report("parts of the step of quickstart:whole", rows, args.json, runs=args.runs)


if __name__ == "__main__":
    main()
