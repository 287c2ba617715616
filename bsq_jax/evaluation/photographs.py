"""Whole validation photographs, reconstructed to look at, tile by tile or as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from einops import rearrange
from jax.sharding import Mesh

from bsq_jax.core.sharding import batch_shards, host_shard, to_global
from bsq_jax.data import transforms
from bsq_jax.data.reader import load_resized
from bsq_jax.data.records import BrokenRecord, Source
from bsq_jax.data.settings import DataConfig
from bsq_jax.evaluation.loop import EvaluationLoop

_COUNT = 3  # photographs in the picture
_SEEN = 256  # pixels that the short side has where four tiles are as many


def load_photographs(source: Source, data: DataConfig) -> list[np.ndarray]:
    """The first readable photographs of a source, cut to whole tiles.

    Args:
      source: of pictures.
      data: gives the size of a tile, and how photographs are resized.

    Returns:
      Up to three pictures uint8 ``[height, width, 3]``, sides multiples of those of a tile.
    """
    height, width = data.crop
    side = min(height, width)
    # At least two tiles high; of small tiles four, so that one sees what is in the picture.
    size = max(data.eval_resize, 2 * side, min(4 * side, _SEEN))
    found: list[np.ndarray] = []
    for index in range(len(source)):
        try:
            image = load_resized(source[index], size, data.eval_filter, draft=False)
        except (BrokenRecord, OSError):
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
    tile: tuple[int, int],
) -> np.ndarray:
    """A photograph reconstructed tile by tile (a collective call).

    Args:
      reconstruct: of a batch with ``pixels``, replicated uint8 ``[batch, 1, height, width, 3]``.
      image: uint8 ``[height, width, 3]``, sides multiples of those of a tile.
      loop: gives the batch size, and this host's part of a batch.
      mesh: the run's mesh.
      tile: height and width in pixels.

    Returns:
      uint8, the shape of `image`; the same on every host.
    """
    tiles = rearrange(image, "(a h) (b w) c -> (a b) 1 h w c", h=tile[0], w=tile[1])
    local = loop.batch_size // loop.shard.count
    start = loop.shard.index * local
    done = []
    for first in range(0, len(tiles), loop.batch_size):
        chunk = tiles[first : first + loop.batch_size]
        padded = np.zeros((loop.batch_size, *tiles.shape[1:]), np.uint8)
        padded[: len(chunk)] = chunk
        batch = to_global({"pixels": padded[start : start + local]}, mesh)
        done.append(jax.device_get(reconstruct(batch))[: len(chunk)])
    rows = image.shape[0] // tile[0]
    return rearrange(np.concatenate(done), "(a b) 1 h w c -> (a h) (b w) c", a=rows)


def reconstruct_whole(
    reconstruct: Callable[[dict[str, jax.Array]], Any], image: np.ndarray, mesh: Mesh
) -> np.ndarray:
    """A photograph reconstructed as a whole by a model of any size (a collective call).

    Args:
      reconstruct: as in `reconstruct_photograph`.
      image: uint8 ``[height, width, 3]``, sides multiples of those of a patch.
      mesh: the run's mesh.

    Returns:
      uint8, the shape of `image`; the same on every host.
    """
    shards = batch_shards(mesh)  # a batch has an example for each
    local = shards // host_shard(mesh, shards).count
    batch = to_global({"pixels": np.repeat(image[None, None], local, axis=0)}, mesh)
    made: np.ndarray = jax.device_get(reconstruct(batch))[0, 0]
    return made
