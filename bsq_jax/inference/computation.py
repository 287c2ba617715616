"""Pictures and clips of any size through a model, a bounded number of tokens at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.core.pixels import to_float, to_uint8
from bsq_jax.core.target import full_precision
from bsq_jax.inference.checked_arrays import chunks, filled, least_batch
from bsq_jax.inference.grids import (
    Grid,
    Pictures,
    frames_at_once,
    say_what_another_size_means,
    unit_of,
    whole_units,
)
from bsq_jax.inference.size_classes import SizeClasses
from bsq_jax.inference.stream_programs import Programs
from bsq_jax.models.tokenizer import TokenizerModel

# Bounds the memory of a call: a batch is at most this many tokens (16 pictures of 256x256).
_MAX_TOKENS = 16 * 1024


class Computation:
    """Encodes and decodes checked arrays.

    Attributes:
      classes: which grids are computed, and their programs.
    """

    def __init__(self, model: TokenizerModel, params: Any):
        """Compiles nothing yet.

        Args:
          model: the network.
          params: its parameters, on the device.
        """
        self.classes = SizeClasses(model.shape)
        self._model, self._shape, self._params = model, model.shape, params

        def apply(params: Any, x: jax.Array, sizes: jax.Array | None, method: str) -> Any:
            with full_precision(model.dtype):
                return model.apply({"params": params}, x, None, sizes, method=method)

        def encode(params: Any, x: jax.Array, sizes: jax.Array | None) -> jax.Array:
            # uint8 goes to the device as it is: a quarter of the bytes of floats.
            floats = to_float(x) if x.dtype == jnp.uint8 else x
            bits: jax.Array = apply(params, floats, sizes, "encode").bits
            return bits

        def decode(params: Any, x: jax.Array, sizes: jax.Array | None) -> jax.Array:
            pixels: jax.Array = apply(params, x, sizes, "decode")
            return pixels

        self.functions = {
            "encode": encode,
            "float32": decode,
            "uint8": lambda *arguments: to_uint8(decode(*arguments)),
        }

    @functools.cached_property
    def streams(self) -> Programs:
        """Those of streams.

        Raises:
          UserError: tokens of the model see later frames.
        """
        return Programs(self._model, self._params, self.classes)

    def each(self, what: str, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Tokens of pixels, or pixels of tokens.

        What can be computed together is put into batches: arrays of one length in frames and one
        type whose grids have one size class.

        Args:
          what: ``encode``, or the type of the pixels to decode to, ``float32`` or ``uint8``.
          arrays: ``[batch, time, height, width, 3]`` or ``[batch, time, row, column, L]`` each.

        Returns:
          Of each array bits ``[batch, time, row, column, L]``, or pixels of whole patches.

        Raises:
          UserError: positions of the user's own do not take a grid.
        """
        unit = unit_of(self._shape, what)
        grids = [whole_units(array.shape[2:4], unit) for array in arrays]
        # The largest first: smaller ones can then be computed as parts of its grid.
        unique = sorted(set(grids), key=math.prod, reverse=True)
        chosen = {grid: self.classes.choose(*grid) for grid in unique}
        groups: dict[tuple[Any, ...], list[int]] = {}
        for place, (array, grid) in enumerate(zip(arrays, grids, strict=True)):
            kind = array.dtype, array.shape[1], array.shape[4]
            key = chosen[grid], self.classes.pads(*grid), kind
            groups.setdefault(key, []).append(place)
        results: dict[int, np.ndarray] = {}
        for (grid, padded, _), places in groups.items():
            several = [arrays[place] for place in places]
            real = [grids[place] for place in places]
            made = self._together(what, several, grid, real if padded else None)
            results |= dict(zip(places, made, strict=True))
        return [results[place] for place in range(len(arrays))]

    def max_batch(self, frames: int, tokens: int) -> int:
        """Examples that are computed at once, a power of two."""
        fitting = max(_MAX_TOKENS // (frames * tokens), 1)
        return max(2 ** (fitting.bit_length() - 1), least_batch(tokens))

    def _together(
        self, what: str, arrays: Sequence[np.ndarray], grid: Grid, real: Sequence[Grid] | None
    ) -> list[np.ndarray]:
        """`each` of arrays of one kind in one grid; `real` are theirs where they may be smaller."""
        counts = [len(array) for array in arrays]
        sizes = None if real is None else np.repeat(np.array(real, np.int32), counts, axis=0)
        pictures = Pictures(arrays, unit_of(self._shape, what), grid)
        made = np.split(self._in_chunks(what, pictures, grid, sizes), np.cumsum(counts)[:-1])
        if real is None:
            return made
        down, across = (1, 1) if what == "encode" else self._shape.patch
        return [
            np.ascontiguousarray(array[:, :, : rows * down, : columns * across])
            for array, (rows, columns) in zip(made, real, strict=True)
        ]

    def _in_chunks(
        self, what: str, pictures: Pictures, grid: Grid, sizes: np.ndarray | None
    ) -> np.ndarray:
        """Encodes or decodes pictures, a bounded number of tokens at a time."""
        shape, tokens = self._shape, math.prod(grid)
        say_what_another_size_means(shape, grid)
        if not len(pictures):
            like = jax.ShapeDtypeStruct(pictures.shape, pictures.dtype)
            empty = jax.eval_shape(self.functions[what], self._params, like, None)
            return np.zeros(empty.shape, empty.dtype)
        frames = pictures.shape[1]
        if what == "encode":
            frames = shape.token_frames(frames)
        at_once = frames_at_once(shape, frames, tokens)
        most, least = self.max_batch(at_once, tokens), least_batch(tokens)
        done: list[np.ndarray] = []
        ahead: jax.Array | np.ndarray | None = None
        for chunk in chunks(len(pictures), most, least, 2 if grid == shape.grid else 4):
            # One chunk is computed while the one before is copied: no more is ever on the device.
            part, real = pictures[chunk], None if sizes is None else sizes[chunk]
            if at_once < frames:
                latest: jax.Array | np.ndarray = self.streams.clip(what, part, grid, real)
            else:
                latest = self._computed(what, part, grid, real)
            if ahead is not None:
                done.append(np.asarray(ahead))
            ahead = latest
        return np.concatenate([*done, np.asarray(ahead)])[: len(pictures)]

    def _computed(
        self, what: str, x: np.ndarray, grid: Grid, sizes: np.ndarray | None
    ) -> jax.Array:
        least = least_batch(math.prod(grid))
        x, real = filled(x, least), None if sizes is None else filled(sizes, least)
        key = what, x.shape[:2], x.dtype, x.shape[4], real is None
        function = self.classes.program(grid, key, self.functions[what])
        computed: jax.Array = function(self._params, x, real)
        return computed
