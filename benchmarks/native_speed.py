"""A 1920x1080 picture coded as a whole and in tiles of 64, in turn in one run.

Run ``python -m benchmarks.native_speed``. Weights are random, which changes no time: the networks
of configs/any_size.py, natively and in tiles of 64 that share 8 pixels, and of
configs/quickstart.py:whole, in such tiles. Tokens are made, and pixels of them; nothing is
entropy-coded.
"""

from __future__ import annotations

import argparse
import functools
import pathlib

import jax
import numpy as np
from flax import linen as nn
from PIL import Image
from skimage import data

from benchmarks.timing import in_turn, report
from bsq_jax import Codec
from bsq_jax.config import finalize, load_config_file
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.models.factory import make_tokenizer

CODED = {
    "native": ("configs/any_size.py", "native"),
    "the same in tiles of 64": ("configs/any_size.py", "64"),
    "the quickstart's in tiles of 64": ("configs/quickstart.py:whole", "64"),
}


def random_codec(path: str) -> Codec:
    """A codec of the network of a config file before it is trained."""
    config = finalize(load_config_file(path))
    pixels = np.zeros((1, 1, *config.model.image_size, 3), np.float32)
    params = nn.meta.unbox(make_tokenizer(config).init(jax.random.key(0), pixels)["params"])
    return Codec(Tokenizer(config, jax.tree.map(np.asarray, params)))


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=2, default=(1080, 1920), help="height, width")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    height, width = args.size
    picture = np.asarray(Image.fromarray(data.astronaut()).resize((width, height)))
    codecs = {path: random_codec(path) for path, _ in CODED.values()}
    files = {name: codecs[path].encode(picture, tile=tile) for name, (path, tile) in CODED.items()}

    def encode(name: str) -> bytes:
        path, tile = CODED[name]
        return codecs[path].encode(picture, tile=tile)

    def decode(name: str) -> np.ndarray:
        return codecs[CODED[name][0]].decode(files[name]).frames

    encoding = in_turn({name: functools.partial(encode, name) for name in CODED}, args.runs)
    decoding = in_turn({name: functools.partial(decode, name) for name in CODED}, args.runs)
    rows = [
        {
            "coded": name,
            "encode (s)": encoding[name],
            "times native": encoding[name] / encoding["native"],
            "decode (s)": decoding[name],
            "of native": decoding[name] / decoding["native"],
            "bytes": len(files[name]),
        }
        for name in CODED
    ]
    report(f"a picture of {height}x{width}", rows, args.json)
    for path, codec in codecs.items():
        print(f"{path}: {codec.tokenizer.programs}")


if __name__ == "__main__":
    main()
