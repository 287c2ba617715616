"""Training on several sizes against training on one, both in turn within one run.

Run ``python -m benchmarks.mixed_sizes``. Both read the same source with the same threads, have the
same model and about as many tokens a step: one has the config's ``data.sizes``, the other crops of
``model.image_size`` alone. The programs of all sizes are compiled before the clock starts; how many
there are is printed. Settings follow as ``--config.KEY=VALUE``.
"""

from __future__ import annotations

import argparse
import itertools
import math
import pathlib
import statistics
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks.timing import report
from bsq_jax.config import finalize, load_config_file, set_overrides
from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import batch_shards, make_mesh, to_global
from bsq_jax.data.factory import make_data_config
from bsq_jax.data.mixed_sizes import batch_shapes, open_sizes
from bsq_jax.data.size_schedule import batch_of_size
from bsq_jax.data.train_pipeline import train_batches
from bsq_jax.training.state import jit_step
from bsq_jax.training.tasks.forward import token_grid
from bsq_jax.training.tasks.tokenizer import make_tokenizer_task


class Training:
    """A run of one kind whose steps are timed; its programs are compiled when it is made.

    Attributes:
      programs: how many there are.
    """

    def __init__(self, config: ConfigDict):
        config = finalize(config)
        self._mesh = make_mesh()
        self._task = make_tokenizer_task(config)
        self._state = self._task.init_state(self._mesh)
        self._frozen = self._task.load_frozen(self._mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self._state)
        self._step = jit_step(self._task, self._mesh, shardings)
        data, count = make_data_config(config), config.train.batch_size
        multiple = batch_shards(self._mesh) * config.train.accumulate
        opened = open_sizes(data) if data.sizes else None
        shapes = batch_shapes(data, opened) if opened else ((data.frames, *data.crop),)
        for frames, *size in shapes:
            examples = batch_of_size((size[0], size[1]), count, data.crop, multiple)
            pixels = np.zeros((examples, frames, *size, 3), np.uint8)
            self._train({"pixels": pixels, "frames": np.full(examples, frames, np.int32)})
        self.programs = len(shapes)
        self._batches = train_batches(
            data,
            global_batch=count,
            shard_index=0,
            shard_count=1,
            sizes=opened,
            multiple=multiple,
        )
        next(self._batches)

    def _train(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        used = {name: batch[name] for name in ("pixels", "frames")}
        given = to_global(used, self._mesh)
        self._state, values = self._step(self._state, given, self._frozen)
        return jax.block_until_ready(values)

    def steps(self, count: int) -> tuple[int, float]:
        """Trains so many steps: tokens of all of them, and seconds until the last is finished."""
        tokens, begin = 0, time.perf_counter()
        for batch in itertools.islice(self._batches, count):
            pixels = batch["pixels"]
            rows, columns = token_grid(self._task.model.shape, pixels)
            tokens += math.prod(pixels.shape[:2]) * rows * columns
            self._train(batch)
        return tokens, time.perf_counter() - begin

    def close(self) -> None:
        """Stops reading."""
        self._batches.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="any_size", help="published config, or a file")
    parser.add_argument("--runs", type=int, default=5, help="rounds, of which the median counts")
    parser.add_argument("--steps", type=int, default=64, help="of each kind in a round")
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    args, settings = parser.parse_known_args()

    mixed = load_config_file(args.config)
    set_overrides(mixed, settings)
    if not mixed.data.sizes:
        raise UserError(f"config {args.config} has no data.sizes: give --config.data.sizes=...")
    one = mixed.copy_and_resolve_references()
    set_overrides(one, ["--config.data.sizes=", "--config.data.eval_crop=center"])
    trainings = {"one size": Training(one), "mixed sizes": Training(mixed)}
    rates: dict[str, list[float]] = {name: [] for name in trainings}
    seen = dict.fromkeys(trainings, 0)
    for _ in range(args.runs):
        for name, training in trainings.items():
            tokens, seconds = training.steps(args.steps)
            rates[name].append(tokens / seconds)
            seen[name] += tokens
    pairs = zip(rates["one size"], rates["mixed sizes"], strict=True)
    ratios = {"one size": 1.0, "mixed sizes": statistics.median(b / a for a, b in pairs)}
    rows: list[dict[str, Any]] = [
        {
            "training": name,
            "programs": training.programs,
            "tokens a step": seen[name] // (args.runs * args.steps),
            "tokens/s": statistics.median(rates[name]),
            "ratio": ratios[name],
        }
        for name, training in trainings.items()
    ]
    for training in trainings.values():
        training.close()
    title = f"training, {args.config}, sizes {', '.join(mixed.data.sizes)}"
    report(title, rows, args.json, runs=args.runs, steps=args.steps)


if __name__ == "__main__":
    main()
