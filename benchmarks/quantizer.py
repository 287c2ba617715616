"""Every quantizer with its losses, both ways. Run ``python -m benchmarks.quantizer``."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.timing import in_turn, report
from bsq_jax.config import default_config, finalize
from bsq_jax.quantizers import Quantizer, make_quantizer
from bsq_jax.training.compiled import memory

FSQ_18 = (8,) * 6
# By name: bits of a token (0: what the quantizer has), and what ``config.quantizer`` says.
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    f"bsq, groups of {group}, {bits} bits": (bits, {"group_size": group})
    for group in (1, 9)
    for bits in (18, 36, 72, 144)
} | {
    "lfq, groups of 1": (18, {"name": "lfq"}),
    "fsq, levels of 8": (0, {"name": "fsq", "levels": FSQ_18}),
    "vq, 1,024 codes of 8 channels": (0, {"name": "vq", "codes": 1024}),
    "vq, 16,384 codes of 8 channels": (0, {"name": "vq", "codes": 16384}),
    "leech": (0, {"name": "leech"}),
    "residual bsq, 2 stages": (18, {"stages": 2}),
}


def make(bits: int, settings: dict[str, Any]) -> Quantizer:
    """The quantizer of a case."""
    config = default_config()
    config.model.bits = bits
    config.quantizer.update(settings)
    return make_quantizer(finalize(config))


def compiled_step(quantizer: Quantizer, tokens: int) -> tuple[Callable[[], Any], int]:
    """Loss and gradients by latents and codebooks; to be called, and the bytes that it needs."""
    keys = jax.random.split(jax.random.key(0), 3)
    latents = jax.random.normal(keys[0], (tokens, quantizer.channels))
    weights = jax.random.normal(keys[1], latents.shape)
    variables = quantizer.init(keys[2], latents[:1])

    def loss(variables: Any, latents: jax.Array) -> jax.Array:
        made: Any = quantizer.apply(variables, latents)
        return made.loss + jnp.sum(made.quantized * weights)

    gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    compiled = gradients.lower(variables, latents).compile()
    return lambda: compiled(variables, latents), memory(compiled).peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30, help="rounds, of which the median counts")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    args = parser.parse_args()

    quantizers = {name: make(*case) for name, case in CASES.items()}
    steps = {name: compiled_step(each, args.tokens) for name, each in quantizers.items()}
    seconds = in_turn({name: step for name, (step, _) in steps.items()}, args.runs)
    rows = [
        {
            "quantizer": name,
            "bits": quantizer.bits,
            "ms": 1e3 * seconds[name],
            "us a token": 1e6 * seconds[name] / args.tokens,
            "MiB": steps[name][1] / 2**20,
        }
        for name, quantizer in quantizers.items()
    ]
    report(f"quantizers, {args.tokens} tokens, forward and backward", rows, args.json)


if __name__ == "__main__":
    main()
