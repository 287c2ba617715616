"""What computing in bfloat16 costs: bits and pixels that differ from those in float32.

Run ``python -m benchmarks.precision runs/quickstart``; random weights say nothing about it.
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np
from skimage import data

from benchmarks.timing import report
from bsq_jax import Tokenizer


def crops(height: int, width: int) -> np.ndarray:
    """Crops of photographs that do not overlap, uint8 ``[batch, height, width, 3]``."""
    found = []
    for picture in (data.astronaut(), data.chelsea(), data.coffee()):
        rows, columns = picture.shape[0] // height, picture.shape[1] // width
        cut = picture[: rows * height, : columns * width]
        tiles = cut.reshape(rows, height, columns, width, 3).swapaxes(1, 2)
        found.append(tiles.reshape(-1, height, width, 3))
    return np.concatenate(found)


def compare(path: str) -> dict[str, float | int | str]:
    """One model in both types."""
    exact, quick = (Tokenizer.load(path, dtype=dtype) for dtype in ("float32", "bfloat16"))
    pixels = crops(exact.shape.image_height, exact.shape.image_width)
    bits = exact.encode(pixels)
    changed = quick.encode(pixels) != bits
    wanted = exact.decode(bits)
    decoder = np.abs(quick.decode(bits) - wanted)
    both = np.abs(quick.reconstruct(pixels) - wanted)
    return {
        "model": path,
        "crops": len(pixels),
        "bits that differ": f"{changed.mean():.3%}",
        "tokens that differ": f"{changed.any(-1).mean():.2%}",
        "decoder alone, mean": float(decoder.mean()),
        "most": float(decoder.max()),
        "encoder and decoder, mean": float(both.mean()),
        "the most": float(both.max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", help="workdirs or exports of tokenizers")
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    args = parser.parse_args()
    rows = [compare(path) for path in args.models]
    report("bfloat16 against float32, pixels in [-1, 1]", rows, args.json)


if __name__ == "__main__":
    main()
