"""Generation: samples a second by the number of steps, and the tokenizer's share of the time.

Run ``python -m benchmarks.generation``. The grid is that of the published generator, 16 x 16 tokens
of 18 bits; weights are random, which changes no time. ``--size published`` has its width and depth
too (170M parameters, and the tokenizer's 174M) and is for accelerators.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import report
from bsq_jax.config import default_config
from bsq_jax.core.sharding import batch_sharding, make_mesh, replicate
from bsq_jax.models.factory import make_masked_lm, make_tokenizer
from bsq_jax.models.frozen_tokenizer import FrozenTokenizer
from bsq_jax.models.masked_lm.sampler import Sampler, Sampling

_SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "small": {
        "lm": {"width": 192, "layers": 6, "heads": 6},
        "tokenizer": {"width": 192, "layers": 3, "heads": 6, "head_hidden": 768},
    },
    "published": {"lm": {"width": 768, "layers": 24, "heads": 8}, "tokenizer": {}},
}


def _parameters(model: Any, *arguments: Any) -> Any:
    """Small random numbers in the shapes that the model wants."""
    boxed = jax.eval_shape(model.init, jax.random.key(0), *arguments)["params"]
    drawn = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: drawn.normal(0, 0.02, leaf.shape).astype(np.float32), nn.meta.unbox(boxed)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=_SIZES, default="small")
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 32, 256])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--guidance", type=float, default=0.0)
    parser.add_argument("--runs", type=int, default=3, help="of which the median counts")
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    args = parser.parse_args()
    size = _SIZES[args.size]
    config = default_config()
    config.model.update(image_size=(128, 128), bits=18, dtype=args.dtype, **size["tokenizer"])
    config.masked_lm.update(classes=1000, **size["lm"])
    config.sampling.guidance = args.guidance
    model, network = make_masked_lm(config), make_tokenizer(config)
    sampling = Sampling(**config.sampling.to_dict(), unit=config.masked_lm.mask_unit)
    words = jnp.zeros((1, 1, 256, 2), jnp.int32)
    mesh = make_mesh()
    params = replicate(_parameters(model, words, jnp.zeros(1, jnp.int32)), mesh)
    tokenizer = FrozenTokenizer(network, _parameters(network, jnp.zeros((1, 1, 128, 128, 3))))
    frozen = tokenizer.load(mesh)
    samplers = {
        steps: Sampler(model, tokenizer, dataclasses.replace(sampling, steps=steps), mesh)
        for steps in args.steps
    }
    decode = jax.jit(tokenizer.pixels)
    seconds: dict[int, list[tuple[float, float]]] = {}
    for _ in range(args.runs + 1):  # the first one compiles
        for steps, sampler in samplers.items():
            labels = np.zeros(sampler.batch, np.int64)
            begin = time.perf_counter()
            (bits, _), *_ = sampler(params, frozen, labels, pixels=False)
            middle = time.perf_counter()
            jax.block_until_ready(decode(jax.device_put(bits, batch_sharding(mesh)), frozen))
            end = time.perf_counter()
            seconds.setdefault(steps, []).append((middle - begin, end - middle))
    median = {steps: np.median(times[1:], axis=0) for steps, times in seconds.items()}
    first = args.steps[0]
    rows = [
        {
            "steps": float(steps),
            "seconds": float(median[steps].sum()),
            f"times {first} steps": float(median[steps][0] / median[first][0]),
            "samples/s": float(sampler.batch / median[steps].sum()),
            "tokenizer": float(median[steps][1] / median[steps].sum()),
        }
        for steps, sampler in samplers.items()
    ]
    batch = samplers[first].batch
    what = f"{batch} samples of 128x128 together, {args.size}, {args.dtype}"
    report(what, rows, args.json, runs=args.runs)


if __name__ == "__main__":
    main()
