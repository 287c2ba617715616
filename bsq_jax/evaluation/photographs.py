"""Whole validation photographs, reconstructed tile by tile or in one piece, to look at."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from einops import rearrange
from jax.sharding import Mesh

from bsq_jax.core.sharding import batch_shards, to_global
from bsq_jax.data import transforms
from bsq_jax.data.reader import load_resized
from bsq_jax.data.records import BrokenRecord, Source
from bsq_jax.data.settings import DataConfig
from bsq_jax.evaluation.loop import EvaluationLoop

_COUNT = 3  # photographs in the picture
# The most pixels of a photograph that is reconstructed in one piece, over those of a crop.
_LARGEST = 16


def load_photographs(
    source: Source, data: DataConfig, patch: tuple[int, int] | None = None
) -> list[np.ndarray]:
    """The first readable photographs of a source, cut to whole tiles.

    Args:
      source: of pictures.
      data: gives the size of a tile, and how photographs are resized.
      patch: (height, width) of a patch, where they are reconstructed in one piece: they are cut to
        whole patches then, and those with more than 16 times the pixels of a crop are left out.

    Returns:
      Up to three pictures uint8 ``[height, width, 3]``, sides multiples of those of a tile.
    """
    height, width = patch or data.crop
    size = data.eval_resize if patch else max(data.eval_resize, 2 * min(height, width))
    found: list[np.ndarray] = []
    for index in range(len(source)):
        try:
            image = load_resized(source[index], size, data.eval_filter, draft=False)
        except (BrokenRecord, OSError):
            continue
        if patch and math.prod(image.shape[:2]) > _LARGEST * math.prod(data.crop):
            continue
        long = isinstance(image, transforms.Long)
        rows, columns = transforms.tile_grid(image.shape, (height, width), long=long)
        found.append(transforms.center_crop(image, (rows * height, max(columns, 1) * width)))
        if len(found) == _COUNT:
            break
    return found


def reconstruct_photograph(
    reconstruct: Callable[[dict[str, jax.Array]], Any],
    image: np.ndarray,
    loop: EvaluationLoop,
    mesh: Mesh,
    tile: tuple[int, int] | None,
) -> np.ndarray:
    """A photograph reconstructed tile by tile, or in one piece (a collective call).

    Args:
      reconstruct: of a batch with ``pixels``, replicated uint8 ``[batch, 1, height, width, 3]``.
      image: uint8 ``[height, width, 3]``, sides multiples of those of a tile.
      loop: gives the batch size, and this host's part of a batch.
      mesh: the run's mesh.
      tile: height and width in pixels; None: one piece.

    Returns:
      uint8, the shape of `image`; the same on every host.
    """
    count = loop.batch_size if tile else batch_shards(mesh)
    height, width = tile or image.shape[:2]
    tiles = rearrange(image, "(a h) (b w) c -> (a b) 1 h w c", h=height, w=width)
    local = count // loop.shard.count
    start = loop.shard.index * local
    done = []
    for first in range(0, len(tiles), count):
        chunk = tiles[first : first + count]
        padded = np.zeros((count, *tiles.shape[1:]), np.uint8)
        padded[: len(chunk)] = chunk
        batch = to_global({"pixels": padded[start : start + local]}, mesh)
        done.append(jax.device_get(reconstruct(batch))[: len(chunk)])
    rows = image.shape[0] // height
    return rearrange(np.concatenate(done), "(a b) 1 h w c -> (a h) (b w) c", a=rows)
