"""What the perceptual loss, the discriminator and R1 cost in the training step.

Run ``python -m benchmarks.adversarial_step``.

Each step is timed in turn with the step of the L1 loss alone. The FLOPs of a step are the compiled
program's own count. That takes the body of a loop over layers once; the other layers are added from
the L1 step written out without loops. "of predicted" is the speed over the one that these FLOPs
predict at the rate of the L1 step. A compiled step with R1 counts the FLOPs of an R1 step; for the
steps between them those of the program without R1 count.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import numpy as np

from benchmarks.timing import in_turn, report
from bsq_jax.config import default_config, finalize
from bsq_jax.core.sharding import make_mesh, to_global
from bsq_jax.training.tasks.tokenizer import make_tokenizer_task

# Name: (perceptual weight, adversarial weight, gamma of R1, the step to be at, FLOPs counted as).
ROWS: dict[str, tuple[float, float, float, int, str]] = {
    "L1": (0.0, 0.0, 0.0, 1, "L1"),
    "L1, LPIPS": (0.1, 0.0, 0.0, 1, "L1, LPIPS"),
    "adversarial, no R1 in the program": (
        0.1,
        0.1,
        0.0,
        1,
        "adversarial, no R1 in the program",
    ),
    "adversarial, between R1 steps": (
        0.1,
        0.1,
        10.0,
        1,
        "adversarial, no R1 in the program",
    ),
    "adversarial, R1 step": (
        0.1,
        0.1,
        10.0,
        0,
        "adversarial, R1 step",
    ),
}


def flops_without_loops(function: Callable[..., Any], *arguments: Any) -> float:
    """FLOPs of a function whose loops over layers are written out; nothing is compiled."""
    scan = jax.lax.scan

    def written_out(*args: Any, **kwargs: Any) -> Any:
        return scan(*args, **{**kwargs, "unroll": True})

    with mock.patch.object(jax.lax, "scan", written_out):
        lowered = jax.jit(lambda *args: function(*args)).lower(*arguments)
    counted = lowered.cost_analysis()
    assert counted is not None
    return float(counted["flops"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="rounds, of which the median counts")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--size", type=int, default=128, help="pixels a side")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--channel-base", type=int, default=32768)
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    args = parser.parse_args()

    mesh = make_mesh()
    pixels = np.random.default_rng(0).integers(
        0, 256, (args.batch, 1, args.size, args.size, 3), np.uint8
    )
    batch = to_global({"pixels": pixels}, mesh)
    states: dict[bool, Any] = {}  # one with and one without a discriminator
    runs, flops, other_layers = {}, {}, 0.0
    for name, (perceptual, adversarial, r1, at, _) in ROWS.items():
        config = default_config()
        config.model.update(
            dtype=args.dtype,
            image_size=(args.size, args.size),
            width=args.width,
            heads=args.width // 64,
            layers=args.layers,
        )
        config.loss.update(perceptual=perceptual, adversarial=adversarial, r1=r1)
        config.discriminator.channel_base = args.channel_base
        task = make_tokenizer_task(finalize(config))
        kind = bool(adversarial)
        if kind not in states:
            states[kind] = task.init_state(mesh)
        frozen = task.load_frozen(mesh)
        jitted = jax.jit(task.train_step, donate_argnums=0)
        compiled = jitted.lower(states[kind], batch, frozen).compile()
        counted = compiled.cost_analysis()
        assert counted is not None
        flops[name] = float(counted["flops"])
        if name == "L1":
            whole = flops_without_loops(task.train_step, states[kind], batch, frozen)
            other_layers = whole - flops[name]
        flops[name] += other_layers

        def run(compiled=compiled, kind=kind, at=at, frozen=frozen):
            step = jax.device_put(np.int32(at), states[kind].step.sharding)
            state = states[kind].replace(step=step)
            states[kind], values = compiled(state, batch, frozen)
            return values

        runs[name] = run
    seconds = in_turn(runs, args.runs)
    rate = flops["L1"] / seconds["L1"]
    rows = []
    for name, (*_, counted) in ROWS.items():
        predicted = flops[counted] / rate
        rows.append(
            {
                "step": name,
                "seconds": seconds[name],
                "TFLOP": flops[counted] / 1e12,
                "GFLOP/s": flops[counted] / seconds[name] / 1e9,
                "of predicted": predicted / seconds[name],
            }
        )
    title = f"training step, {args.size}x{args.size}, batch {args.batch}, {args.dtype}"
    report(title, rows, args.json, runs=args.runs)


if __name__ == "__main__":
    main()
