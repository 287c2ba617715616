r"""The starter model beside JPEG, WebP and AVIF of at most as many bytes, on three photographs.

    python -m benchmarks.starter_sheet --out sheet.png

Three photographs at 384 pixels to the short side that the model was not trained on: the flower of
scikit-learn and the coffee and the cat (chelsea) of scikit-image. The table has the bytes of real
files. LPIPS with AlexNet is in the loss of the model; LPIPS with VGG16 is not.
"""

from __future__ import annotations

import argparse
import io
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks.timing import report
from bsq_jax.coding.codec import Codec
from bsq_jax.core.pixels import to_float
from bsq_jax.data.reader import load_resized
from bsq_jax.data.sources.embedded import photos
from bsq_jax.evaluation.metrics.image_quality import psnr
from bsq_jax.evaluation.networks.lpips import load_lpips, lpips
from bsq_jax.media.pictures import grid, save_png

SHOWN = ("flower.jpg", "coffee.png", "chelsea.png")
SIDE = 384  # pixels of the short side
_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"optimize": True, "progressive": True},
    "WEBP": {"method": 6},
}
PART = (320, 480)  # height and width of the middle that is shown


def photograph(name: str) -> np.ndarray:
    """A photograph inside a package, uint8 ``[height, width, 3]``."""
    source = photos("val")  # of the quickstart
    (record,) = (each for each in map(source.__getitem__, range(len(source))) if name in each.id)
    return np.asarray(load_resized(record, SIDE, "lanczos", draft=False))


def within(image: np.ndarray, kind: str, most: int) -> tuple[np.ndarray, int]:
    """The best file of a kind of at most so many bytes, else its smallest; pixels and bytes."""
    options = _OPTIONS.get(kind, {})
    for quality in range(95, -1, -1):
        file = io.BytesIO()
        Image.fromarray(image).save(file, kind, quality=quality, **options)
        if len(file.getvalue()) <= most:
            break
    with Image.open(file) as opened:
        return np.asarray(opened.convert("RGB")), len(file.getvalue())


def middle(image: np.ndarray) -> np.ndarray:
    """The part that is shown."""
    top, left = ((have - want) // 2 for have, want in zip(image.shape[:2], PART, strict=True))
    return image[top : top + PART[0], left : left + PART[1]]


def main() -> None:
    """Codes, measures, draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("sheet.png"))
    parser.add_argument("--json", type=pathlib.Path)
    flags = parser.parse_args()
    codec, networks = Codec.load(), {net: load_lpips(net) for net in ("alexnet", "vgg16")}
    rows, shown = [], []
    for name in SHOWN:
        original = photograph(name)
        made = {}
        for bits in codec.variable_bits[::-1]:
            data = codec.encode(original, bits=bits)
            made[f"starter, {bits} bits"] = codec.decode(data).frames[0], len(data)
        most = max(size for _, size in made.values())
        made |= {kind: within(original, kind, most) for kind in ("JPEG", "WEBP", "AVIF")}
        shown.append([original, *(picture for picture, _ in made.values())])
        for codec_name, (picture, size) in made.items():
            pair = original[None, None], picture[None, None]
            floats = [to_float(jnp.asarray(each)) for each in pair]
            rows.append(
                {
                    "photograph": pathlib.Path(name).stem,
                    "codec": codec_name,
                    "bytes": size,
                    "bits a pixel": round(8 * size / original[..., 0].size, 4),
                    "PSNR (dB)": round(float(psnr(*pair)[0, 0]), 2),
                }
                | {
                    f"LPIPS ({net})": round(float(lpips(params, *floats, net=net)[0]), 3)
                    for net, params in networks.items()
                }
            )
    labels = ["original", *list(made)]
    pictures = [np.stack([middle(row[number]) for row in shown]) for number in range(len(labels))]
    save_png(flags.out, grid(pictures, labels=labels, columns=len(SHOWN), scale=1))
    report("starter model", rows, flags.json)


if __name__ == "__main__":
    main()
