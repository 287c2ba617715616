"""Implementations of attention against each other, for pictures and for block-causal clips.

Run ``python -m benchmarks.attention``. Memory is what the compiled program needs beside its inputs
and outputs.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.timing import in_turn, report
from bsq_jax.models.attention.attend import attend
from bsq_jax.models.attention.causality import Causality

IMPLEMENTATIONS = ("dense", "by_head", "blocked")


def clip_shape(text: str) -> tuple[int, int]:
    """``16x256``: 16 frames of 256 tokens."""
    frames, tokens = text.split("x")
    return int(frames), int(tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="rounds, of which the median counts")
    parser.add_argument(
        "--clips",
        type=clip_shape,
        nargs="+",
        default=[(1, 256), (1, 512), (1, 1024), (4, 256), (16, 64), (16, 256)],
        metavar="FRAMESxTOKENS",
    )
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--window", type=int, default=0, help="frames that a token sees, 0: all")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    args = parser.parse_args()

    causality = Causality("block_causal", args.window)
    rows = []
    for frames, tokens in args.clips:
        shape = (1, frames, tokens, args.heads, 64)
        inputs = tuple(jax.random.normal(jax.random.key(i), shape, args.dtype) for i in range(3))
        # A single frame sees all of itself: there is nothing to leave out.
        names = IMPLEMENTATIONS if frames > 1 else IMPLEMENTATIONS[:2]
        for direction in ("forward", "with backward"):
            functions, memory = {}, {}
            for name in names:
                function: Any = functools.partial(attend, causality=causality, implementation=name)
                if direction == "with backward":
                    function = gradient_of(function)
                compiled = jax.jit(function).lower(*inputs).compile()
                used: Any = compiled.memory_analysis()
                memory[name] = used.temp_size_in_bytes / 2**20
                functions[name] = functools.partial(compiled, *inputs)
            seconds = in_turn(functions, args.runs)
            row: dict[str, Any] = {"clip": f"{frames}x{tokens}", "": direction}
            for name in IMPLEMENTATIONS:
                row[f"{name} ms"] = 1e3 * seconds[name] if name in names else "-"
            for name in IMPLEMENTATIONS[1:]:
                row[f"dense / {name}"] = seconds["dense"] / seconds[name] if name in names else "-"
            for name in IMPLEMENTATIONS:
                row[f"{name} MiB"] = round(memory[name]) if name in names else "-"
            rows.append(row)
    title = f"attention, {args.heads} heads of 64, {args.dtype}"
    report(title, rows, args.json, runs=args.runs, window=args.window)


def gradient_of(function: Any) -> Any:
    """The gradients of the sum of squares with respect to queries, keys and values."""

    def loss(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(function(query, key, value)))

    return jax.grad(loss, argnums=(0, 1, 2))


if __name__ == "__main__":
    main()
