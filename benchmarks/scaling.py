"""How cost grows with resolution, frames and bits. Run ``python -m benchmarks.scaling``.

Each setting's closed form beside the FLOPs counted in the program and the time that it takes, as
multiples of the first setting of its group.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import in_turn, report
from bsq_jax.config import default_config, finalize
from bsq_jax.models.attention.choice import Blocking
from bsq_jax.models.factory import make_tokenizer
from bsq_jax.models.tokenizer import TokenizerModel
from bsq_jax.models.tokenizer_shape import TokenizerShape
from bsq_jax.training import flops


def closed_form(shape: TokenizerShape, frames: int) -> float:
    """FLOPs of encoding and decoding one block-causal clip of so many frames."""
    tokens, patch = shape.tokens * frames, 3 * shape.patch[0] * shape.patch[1]
    pairs = shape.tokens**2 * frames * (frames + 1) / 2  # of a query and a key that it sees
    halves = [shape.half(half) for half in ("encoder", "decoder")]
    width = halves[1].width
    blocks = sum(h.layers * (24 * tokens * h.width**2 + 4 * pairs * h.width) for h in halves)
    pixels = patch * halves[0].width + width * shape.head_hidden + shape.head_hidden * patch
    return blocks + 2 * tokens * (pixels + (halves[0].width + width) * shape.bits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="rounds, of which the median counts")
    parser.add_argument("--layers", type=int, default=2, help="of each half")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 256, 384, 512])
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--clip-side", type=int, default=128, help="of the clips, and for bits")
    parser.add_argument("--bits", type=int, nargs="+", default=[9, 18, 36, 72, 144])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    args = parser.parse_args()

    width = args.width
    config = default_config()
    config.model.update(
        image_size=(args.clip_side, args.clip_side), width=width, layers=args.layers,
        heads=max(width // 64, 1), head_hidden=4 * width, dtype=args.dtype,
    )  # fmt: skip

    def network(**changes: Any) -> TokenizerModel:
        changed = config.copy_and_resolve_references()
        changed.model.update(changes)
        return make_tokenizer(finalize(changed))

    settings: dict[tuple[str, int], tuple[TokenizerModel, int]] = {}
    for side in args.sides:
        settings["pixels a side", side] = network(image_size=(side, side)), 1
    for count in args.frames:
        settings["frames", count] = network(frames=count), count
    for bits in args.bits:
        settings["bits", bits] = network(bits=bits), 1

    functions, counted = {}, {}
    for key, (model, frames) in settings.items():
        shape = model.shape
        sides = (1, frames, shape.image_height, shape.image_width, 3)
        pixels = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, sides), jnp.float32)
        params = jax.jit(model.init)(jax.random.key(0), pixels[:, :1])

        jitted = jax.jit(lambda p, x, m=model: m.apply(p, x).pixels)
        functions[str(key)] = lambda f=jitted, p=params, x=pixels: f(p, x)
        # The program may compute scores that its mask hides; these are not useful work.
        useful = model.clone(attention="blocked", blocking=Blocking.FOR_COUNTING)
        counted[key] = flops.count(lambda p, x, m=useful: m.apply(p, x).pixels, params, pixels)
    seconds = in_turn(functions, args.runs)
    rows = []
    first: dict[str, tuple[str, int]] = {}
    for key, (model, frames) in settings.items():
        one, shape = first.setdefault(key[0], key), model.shape
        formula = closed_form(shape, frames)
        formula_of_first = closed_form(settings[one][0].shape, settings[one][1])
        rows.append(
            {
                "what": key[0],
                "value": key[1],
                "tokens": shape.tokens * frames,
                "bits in all": shape.tokens * frames * shape.bits,
                "GFLOP, closed form": formula / 1e9,
                "counted / closed form": counted[key] / formula,
                "closed form, x": formula / formula_of_first,
                "time, x": seconds[str(key)] / seconds[str(one)],
                "seconds": seconds[str(key)],
                "GFLOP/s": formula / seconds[str(key)] / 1e9,
            }
        )
    title = f"encode + decode, {args.layers} layers a half, width {width}, {args.dtype}"
    report(title, rows, args.json, runs=args.runs)


if __name__ == "__main__":
    main()
