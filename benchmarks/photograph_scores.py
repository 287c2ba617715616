"""Validation photographs in tiles, and the quality of their reconstructions as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from einops import rearrange
from ml_collections import ConfigDict

from bsq_jax.core.pixels import to_float
from bsq_jax.data import transforms
from bsq_jax.data.factory import make_data_config
from bsq_jax.data.reader import load_resized
from bsq_jax.data.sources import open_source
from bsq_jax.evaluation import metrics
from bsq_jax.evaluation.networks.lpips import load_lpips, lpips


class Photographs:
    """The validation photographs of a config, cut to whole tiles.

    Args:
      config: a finalised one; ``data.eval_resize`` is the short side, ``model.image_size`` a tile.

    Attributes:
      pictures: uint8 ``[height, width, 3]`` each, sides multiples of a tile's.
      tiles: of all pictures, in reading order, uint8 ``[tile, height, width, 3]``.
    """

    def __init__(self, config: ConfigDict):
        data = make_data_config(config)
        self._height, self._width = data.crop
        self.pictures = []
        source = open_source(data, "val")
        for number in range(len(source)):
            image = load_resized(source[number], data.eval_resize, data.eval_filter, draft=False)
            long = isinstance(image, transforms.Long)
            rows, columns = transforms.tile_grid(image.shape, data.crop, long=long)
            size = rows * self._height, columns * self._width
            self.pictures.append(transforms.center_crop(image, size))
        self.tiles = np.concatenate([self._cut(picture) for picture in self.pictures])

    def _cut(self, picture: np.ndarray) -> np.ndarray:
        sides = {"h": self._height, "w": self._width}
        return rearrange(picture, "(a h) (b w) c -> (a b) h w c", **sides)

    def assembled(self, tiles: np.ndarray) -> list[np.ndarray]:
        """Pictures of the shapes of `pictures`, of tiles in the order of `tiles`."""
        counts = [len(self._cut(picture)) for picture in self.pictures]
        parts = np.split(tiles, np.cumsum(counts)[:-1])
        return [
            rearrange(part, "(a b) h w c -> (a h) (b w) c", a=len(picture) // self._height)
            for part, picture in zip(parts, self.pictures, strict=True)
        ]


class Scores:
    """Measures reconstructions; a program is compiled for each size of pictures.

    Raises:
      UserError: the weights of LPIPS are missing.
    """

    def __init__(self) -> None:
        self._params = load_lpips("alexnet")

        @jax.jit
        def measure(params: Any, a: jax.Array, b: jax.Array) -> dict[str, jax.Array]:
            return {
                "psnr": metrics.psnr(a, b),
                "ssim": metrics.ssim(a, b),
                "lpips": lpips(params, to_float(a), to_float(b), net="alexnet"),
            }

        self._measure = measure

    def __call__(
        self, originals: Sequence[np.ndarray], made: Sequence[np.ndarray]
    ) -> dict[str, float]:
        """``psnr`` in dB, ``ssim`` and ``lpips`` (AlexNet), each the mean over pictures.

        Args:
          originals: uint8 ``[height, width, 3]`` each.
          made: reconstructions of the same shapes.
        """
        each = [
            jax.device_get(self._measure(self._params, a[None, None], b[None, None]))
            for a, b in zip(originals, made, strict=True)
        ]
        return {name: float(np.mean([one[name] for one in each])) for name in each[0]}
