"""The frame discriminator forward and backward. Run ``python -m benchmarks.discriminator``.

The FLOPs are the compiled program's own count; beside them stands a matrix product's speed in the
same minutes.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.timing import in_turn, report
from bsq_jax.config import default_config
from bsq_jax.core.target import described
from bsq_jax.models.factory import make_discriminator

SIDE = 2048  # of the matrices


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="rounds, of which the median counts")
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--channel-base", type=int, default=8192)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--implementations", nargs="+", choices=["lax", "matmul"], default=["lax", "matmul"]
    )
    parser.add_argument("--parts", nargs="+", default=["forward", "input", "parameters", "r1"])
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    args = parser.parse_args()

    shape = (args.batch, 1, args.size, args.size, 3)
    pixels = jax.random.uniform(jax.random.key(0), shape, minval=-1, maxval=1)
    config = default_config()
    config.model.update(image_size=(args.size, args.size), dtype=args.dtype)
    config.discriminator.channel_base = args.channel_base
    model = make_discriminator(config)
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(1), pixels)["params"])
    matrix = jax.random.normal(jax.random.key(2), (SIDE, SIDE))
    product = jax.jit(jnp.matmul)
    functions: dict[str, Callable[[], Any]] = {
        "matrix product": functools.partial(product, matrix, matrix)
    }
    counts = {"matrix product": 2.0 * SIDE**3}
    for implementation in args.implementations:
        # XLA's own convolutions are those of accelerators.
        target = "cpu" if implementation == "matmul" else "gpu"

        def loss(params, pixels):
            logits: Any = model.apply({"params": params}, pixels)
            return jnp.sum(nn.softplus(logits))

        def r1(params, pixels, loss=loss):
            return jnp.sum(jax.grad(loss, 1)(params, pixels) ** 2)

        parts = {
            "forward": loss,
            "input": jax.grad(loss, 1),
            "parameters": jax.grad(loss),
            "r1": jax.grad(r1),
        }
        for part in args.parts:
            with described(target):
                compiled = jax.jit(parts[part]).lower(params, pixels).compile()
            cost = compiled.cost_analysis()
            assert cost is not None
            name = f"{part}, {implementation}"
            counts[name] = cost["flops"]
            functions[name] = functools.partial(compiled, params, pixels)
    seconds = in_turn(functions, args.runs)
    rows = [
        {
            "gradient": name,
            "ms": 1e3 * seconds[name],
            "GFLOP": count / 1e9,
            "GFLOP/s": count / seconds[name] / 1e9,
        }
        for name, count in counts.items()
    ]
    title = f"discriminator, base {args.channel_base}, {args.size}x{args.size}, batch {args.batch}"
    report(title, rows, args.json, runs=args.runs, dtype=args.dtype)


if __name__ == "__main__":
    main()
