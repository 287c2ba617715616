"""Quality of pictures some of whose bits arrive wrong. Run ``python -m benchmarks.bit_errors``.

Each model tokenizes its validation data, a share of the bits is flipped at random, and PSNR is
measured on what it decodes. So tokenizers that were trained with ``quantizer.flip`` can be compared
with others. Tokens that would then name no code stay right, as in training.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.timing import report
from bsq_jax import Tokenizer
from bsq_jax.core.clips import real_frames
from bsq_jax.data.command_line_files import distinct
from bsq_jax.data.eval_pipeline import eval_batches
from bsq_jax.data.factory import make_data_config
from bsq_jax.evaluation.metrics import psnr

SHARES = (0.0, 0.001, 0.01, 0.05, 0.1)


def measure(
    tokenizer: Tokenizer, shares: Sequence[float], examples: int, seed: int
) -> tuple[list[float], int]:
    """PSNR for each share of flipped bits.

    Args:
      tokenizer: the model.
      shares: probabilities that a bit is flipped.
      examples: of the validation data, the first ones; 0 for all.
      seed: of the flips.

    Returns:
      Means over frames in dB, one for each share, and the number of examples.
    """
    config, layout = tokenizer.config, tokenizer.model.quantizer.layout
    drawn = np.random.default_rng(seed)
    values: list[list[np.ndarray]] = [[] for _ in shares]
    count = 0
    batches = eval_batches(
        make_data_config(config),
        global_batch=config.eval.batch_size,
        shard_index=0,
        shard_count=1,
    )
    for batch in batches:
        rows = np.flatnonzero(batch["mask"])[: examples - count if examples else None]
        if not len(rows):
            break
        pixels, frames = batch["pixels"][rows], batch["frames"][rows]
        bits = tokenizer.encode_parts(pixels)
        real = real_frames(frames, pixels.shape[1])
        for share, found in zip(shares, values, strict=True):
            turned = bits ^ (drawn.random(bits.shape) < share).astype(np.uint8)
            given = np.where(layout.names_code(turned)[..., None], turned, bits)
            decoded = tokenizer.decode_parts(given, dtype="uint8")
            found.append(np.asarray(psnr(pixels, decoded))[np.asarray(real)])
        count += len(rows)
    batches.close()
    return [float(np.mean(np.concatenate(found))) for found in values], count


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table of PSNR, a row a share and a column a model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", nargs="+", required=True, help="workdirs or exports")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of flipped bits")
    parser.add_argument("--examples", type=int, default=0, help="the first ones; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the flips")
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    args = parser.parse_args(argv)

    names = distinct([pathlib.Path(path).name for path in args.model])
    columns: dict[str, list[float]] = {}
    counts = {}
    for name, path in zip(names, args.model, strict=True):
        columns[name], counts[name] = measure(
            Tokenizer.load(path), args.shares, args.examples, args.seed
        )
    rows: list[dict[str, Any]] = [
        {"flipped": f"{share:.1%}", **{name: f"{found[i]:.2f}" for name, found in columns.items()}}
        for i, share in enumerate(args.shares)
    ]
    total = " / ".join(map(str, dict.fromkeys(counts.values())))
    report(f"PSNR in dB with flipped bits, {total} examples", rows, args.json, seed=args.seed)


if __name__ == "__main__":
    main()
