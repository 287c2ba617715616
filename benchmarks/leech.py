"""The Leech quantizer's search by structure, and one over all codes, of the same points.

Run ``python -m benchmarks.leech``.
"""

from __future__ import annotations

import argparse
import pathlib
from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.timing import in_turn, report
from bsq_jax.quantizers import LeechQuantizer
from bsq_jax.quantizers.leech import CHANNELS, CODES, nearest_vector, vectors
from bsq_jax.quantizers.search import nearest_code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="rounds, of which the median counts")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    args = parser.parse_args()

    latents = jax.random.normal(jax.random.key(0), (args.tokens, CHANNELS))
    points = LeechQuantizer().project(latents)
    codebook = vectors(jnp.arange(CODES)) / jnp.sqrt(jnp.float32(32))
    programs = {
        "by structure": jax.jit(nearest_vector).lower(points).compile(),
        "all codes": jax.jit(lambda p: nearest_code(p, codebook)).lower(points).compile(),
    }
    # Nearly all agree: two codes may be equally near in float32.
    same = jnp.mean(programs["by structure"](points) == programs["all codes"](points))
    seconds = in_turn(
        {name: partial(program, points) for name, program in programs.items()}, args.runs
    )
    rows = []
    for name, program in programs.items():
        sizes = program.memory_analysis()
        assert sizes is not None
        rows.append(
            {
                "search": name,
                "ms": 1e3 * seconds[name],
                "us a token": 1e6 * seconds[name] / args.tokens,
                "temporary MiB": sizes.temp_size_in_bytes / 2**20,
                "times faster": seconds["all codes"] / seconds[name],
                "the same code": float(same),
            }
        )
    report(f"nearest Leech code, {args.tokens} tokens, forward", rows, args.json)


if __name__ == "__main__":
    main()
