"""Implementations of attention against each other. Run ``python -m benchmarks.attention``."""

from __future__ import annotations

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp

from benchmarks.timing import in_turn, report
from bsq_jax.models.attention import attend

IMPLEMENTATIONS = ("dense", "by_head")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="rounds, of which the median counts")
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    args = parser.parse_args()

    rows = []
    for tokens in args.tokens:
        shape = (1, tokens, args.heads, 64)
        inputs = tuple(jax.random.normal(jax.random.key(i), shape) for i in range(3))
        functions = {}
        for name in IMPLEMENTATIONS:
            forward = functools.partial(attend, implementation=name)

            def loss(q, k, v, forward=forward):
                return jnp.sum(jnp.square(forward(q, k, v)))

            for direction, function in (
                ("forward", jax.jit(forward)),
                ("with backward", jax.jit(jax.grad(loss, argnums=(0, 1, 2)))),
            ):
                functions[f"{name}, {direction}"] = functools.partial(function, *inputs)
        seconds = in_turn(functions, args.runs)
        rows += [
            {
                "tokens": tokens,
                "": direction,
                "dense ms": 1e3 * seconds[f"dense, {direction}"],
                "by_head ms": 1e3 * seconds[f"by_head, {direction}"],
                "dense / by_head": (
                    seconds[f"dense, {direction}"] / seconds[f"by_head, {direction}"]
                ),
            }
            for direction in ("forward", "with backward")
        ]
    report(f"attention, {args.heads} heads of 64, float32", rows, args.json, runs=args.runs)


if __name__ == "__main__":
    main()
