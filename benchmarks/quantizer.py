"""The quantiser with its entropies, both ways. Run ``python -m benchmarks.quantizer``."""

from __future__ import annotations

import argparse
import pathlib

import jax
import jax.numpy as jnp

from benchmarks.timing import in_turn, report
from bsq_jax.config import default_config
from bsq_jax.quantizers import make_quantizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30, help="rounds, of which the median counts")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    args = parser.parse_args()

    functions, memory, config = {}, {}, default_config()
    for group_size in (1, 9):
        for bits in (18, 36, 72, 144):
            config.quantizer.group_size = group_size
            config.model.bits = bits
            quantizer = make_quantizer(config)
            latents = jax.random.normal(jax.random.key(0), (args.tokens, bits))
            weights = jax.random.normal(jax.random.key(1), (args.tokens, bits))

            def loss(latents, weights, quantizer=quantizer):
                out = quantizer(latents)
                return out.loss + jnp.sum(out.quantized * weights)

            compiled = jax.jit(jax.value_and_grad(loss)).lower(latents, weights).compile()
            sizes = compiled.memory_analysis()
            assert sizes is not None
            memory[group_size, bits] = (
                sizes.temp_size_in_bytes + sizes.argument_size_in_bytes + sizes.output_size_in_bytes
            )
            functions[group_size, bits] = lambda f=compiled, x=latents, w=weights: f(x, w)
    seconds = in_turn({str(key): function for key, function in functions.items()}, args.runs)
    rows = []
    for key in functions:
        group_size, bits = key
        milliseconds = 1e3 * seconds[str(key)]
        rows.append(
            {
                "bits a group": group_size,
                "bits": bits,
                "ms": milliseconds,
                "ns a token and bit": 1e6 * milliseconds / args.tokens / bits,
                "MiB": memory[key] / 2**20,
            }
        )
    report(f"quantiser, {args.tokens} tokens, forward and backward", rows, args.json)


if __name__ == "__main__":
    main()
