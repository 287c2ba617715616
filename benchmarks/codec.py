"""Where the time of the codec goes. Run ``python -m benchmarks.codec``.

The input is a photograph of 512x512 pixels inside scikit-image, or what ``--input`` names. Time
does not depend on the weights: without ``--model`` they are random, of ``quickstart:whole`` and
of priors of tiles and of neighbourhoods, in both orders. Programs are compiled before anything is
measured, but for the first picture.
"""

from __future__ import annotations

import argparse
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from skimage import data

from benchmarks.random_codec import random_codec
from benchmarks.timing import report
from bsq_jax.coding.codec import Codec
from bsq_jax.coding.tile_tokenizer import TileTokenizer
from bsq_jax.models.prior.entropy_coder import Decoder, Encoder
from bsq_jax.models.prior.shape import ORDERS


class _Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, function: Any) -> Any:
        def timed(*arguments: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - begin

        return timed


def measure(codec: Codec, frames: np.ndarray, tile: str | None) -> dict[str, float]:
    """Seconds of each part of one encoding and one decoding."""
    shape = codec.tokenizer.shape
    tiled = TileTokenizer(codec.tokenizer)
    settings = codec.settings(tile=tile)
    coding = codec.coding(settings, frames.shape[1], frames.shape[2], clip=False)
    tiles = tiled.tiles(frames.shape[1], frames.shape[2], coding.tile, coding.overlap)
    tokenizer = tiled.coder(tiles)
    whole, coder, pixels = _Clock(), _Clock(), _Clock()
    tokens = whole(tokenizer.encode)(frames, shape.bits)
    tokenized = whole.seconds
    grids = np.stack([tokenizer.side_by_side(frame) for frame in tokens])
    encoder = Encoder()
    encoder.write = coder(encoder.write)  # type: ignore[method-assign]
    stream = codec._coder.stream(*tokenizer.grid, shape.bits)
    encode = whole(stream.encode)
    for frame in grids:
        encode(frame, encoder)
    encoded, written = whole.seconds, coder.seconds
    payload = encoder.result()

    decoder = Decoder(payload)
    read = _Clock()
    decoder.read_levels = read(decoder.read_levels)  # type: ignore[method-assign]
    stream = codec._coder.stream(*tokenizer.grid, shape.bits)
    again = _Clock()
    found = np.stack([again(stream.decode)(decoder) for _ in grids])
    assert (found == grids).all()
    pixels(tokenizer.decode)(tokens, len(frames))
    return {
        "encode s": encoded,
        "tokenizer": tokenized / encoded,
        "prior": (encoded - tokenized - written) / encoded,
        "arithmetic coder": written / encoded,
        "decode s": again.seconds + pixels.seconds,
        "tokenizer ": pixels.seconds / (again.seconds + pixels.seconds),
        "arithmetic coder ": read.seconds / (again.seconds + pixels.seconds),
        "tokens/s": tokens[..., 0].size / again.seconds,
        "steps a frame": float(stream.steps),
        "saved": 1 - 8 * len(payload) / tokens.size,
    }


def _codecs(models: list[str] | None) -> Iterator[tuple[str, Codec]]:
    if models is None:
        for kind, reach in (("tiles", (0, 0)), ("reach 3, 3", (3, 3))):
            for order in ORDERS:
                yield f"{kind}, {order}", random_codec({"reach": reach, "order": order})
    for model in models or ():
        codec = Codec.load(model)
        yield codec.name, codec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="+", help="workdirs or exports of priors; default: random")
    parser.add_argument("--input", type=pathlib.Path, help="a picture")
    parser.add_argument("--tile", help="as that of encode")
    parser.add_argument("--runs", type=int, default=3, help="of which the median counts")
    parser.add_argument("--json", type=pathlib.Path, help="also write the result here")
    args = parser.parse_args()
    picture = data.astronaut() if args.input is None else Image.open(args.input).convert("RGB")
    frames = np.asarray(picture)[None]
    rows = []
    for name, codec in _codecs(args.model):
        begin = time.perf_counter()
        codec.decode(codec.encode(frames, tile=args.tile))
        first = time.perf_counter() - begin
        runs = [measure(codec, frames, args.tile) for _ in range(args.runs)]
        rows.append(
            {"model": name, "first picture s": first}
            | {name: float(np.median([run[name] for run in runs])) for name in runs[0]}
        )
    height, width = frames.shape[1:3]
    report(f"a picture of {height}x{width}, shares of the time", rows, args.json, runs=args.runs)


if __name__ == "__main__":
    main()
