"""Which grids are computed for pictures of which size, and their compiled programs.

A program is compiled for one grid of tokens, so a folder of pictures of a thousand sizes must not
have a program each. Two cases:

- Attention within windows of a frame (``model.spatial_window``) and positions that do not depend
  on the size: padding changes no bit of a picture (`bsq_jax.models.attention.windows`), so that
  pictures are padded to a *size class*, a grid of whole windows, and share its programs. Which
  class a picture gets depends on those that are compiled already; its bits do not, and neither do
  the pixels of bits but for the order of sums in the convolutions of ``model.head_channels``.
- Attention over whole frames, positions that are interpolated, and positions of the user's own:
  under padding sums are taken in another order, and a latent close to 0 could give the other bit.
  Each size is computed as it is, without padding, with programs of its own.

Either way at most `MOST_CLASSES` grids have programs at a time, and the model's own grid always
does.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax

from bsq_jax.core.once import say_once
from bsq_jax.inference.grids import Grid
from bsq_jax.models.tokenizer import TokenizerShape

MOST_CLASSES = 32
"""Grids besides the model's own that have programs at a time."""
_SPARE = 1.25  # a class is used for sizes that need at least 1 / 1.25 of its windows
_SPARE_WHEN_FULL = 2.0  # likewise, when there are `MOST_CLASSES`: above this another is dropped
_STEPS = 8  # lengths of sides of classes in windows, for each doubling


class CompiledPrograms(NamedTuple):
    """What a tokenizer has compiled.

    Attributes:
      compiled: programs so far, with those that were dropped.
      kept: number of programs of each grid, (rows, columns) of tokens, that are kept.
    """

    compiled: int
    kept: dict[Grid, int]

    def __str__(self) -> str:
        """A line for each grid."""
        lines = [f"{self.compiled} programs compiled, {sum(self.kept.values())} of them kept"]
        lines += [f"  {rows}x{columns} tokens: {n}" for (rows, columns), n in self.kept.items()]
        return "\n".join(lines)


def padding_is_free(shape: TokenizerShape) -> bool:
    """Whether padding changes no bit of a picture on CPUs."""
    return shape.spatial_window > 0 and shape.positions in ("window", "sincos", "rotary")


class SizeClasses:
    """The grids that are computed, and their programs; see the top of this module."""

    def __init__(self, shape: TokenizerShape, most: int = MOST_CLASSES):
        """Has no classes yet.

        Args:
          shape: of the model.
          most: grids besides the model's own that have programs at a time.
        """
        self._shape, self._most = shape, most
        self._padded = padding_is_free(shape)
        self._compiled = 0
        # The least recently used is first.
        self._classes: OrderedDict[Grid, dict[Hashable, Any]] = OrderedDict()
        self._own: dict[Hashable, Any] = {}

    @property
    def programs(self) -> CompiledPrograms:
        """What is compiled."""
        classes = {self._shape.grid: self._own, **self._classes}
        return CompiledPrograms(
            self._compiled, {grid: len(found) for grid, found in classes.items()}
        )

    def pads(self, rows: int, columns: int) -> bool:
        """Whether frames of so many tokens are computed as parts of a larger grid."""
        return self._padded and (rows, columns) != self._shape.grid

    def choose(self, rows: int, columns: int) -> Grid:
        """The grid, (rows, columns), that frames of so many tokens are computed in.

        The model's own grid and, if padding is not free, every other are computed as they are.
        """
        if not self.pads(rows, columns):
            return rows, columns
        side = self._shape.spatial_window
        need = -(-rows // side), -(-columns // side)
        down, across = self._covering(need) or (_rounded(need[0]), _rounded(need[1]))
        grid = down * side, across * side
        self._use(grid)
        return grid

    def program(
        self, grid: Grid, key: Hashable, function: Callable[..., Any], **options: Any
    ) -> Any:
        """A program of a grid, made if there is none.

        Args:
          grid: of `choose`.
          key: all else that it is compiled for.
          function: that is compiled.
          **options: of `jax.jit`.
        """
        found = self._use(grid)
        if key not in found:
            # A function of its own for each program, so that one can be dropped.
            found[key] = jax.jit(functools.partial(function), **options)
            self._compiled += 1
        return found[key]

    def _covering(self, need: Grid) -> Grid | None:
        """The smallest class that covers a number of windows and has not much to spare."""
        side = self._shape.spatial_window
        classes = ((rows // side, columns // side) for rows, columns in self._classes)
        covering = [have for have in classes if have[0] >= need[0] and have[1] >= need[1]]
        if not covering:
            return None
        smallest = min(covering, key=lambda have: have[0] * have[1])
        spare = _SPARE if len(self._classes) < self._most else _SPARE_WHEN_FULL
        fits = smallest[0] * smallest[1] <= spare * need[0] * need[1]
        return smallest if fits else None

    def _use(self, grid: Grid) -> dict[Hashable, Any]:
        """The programs of a grid, which is the most recently used now."""
        if grid == self._shape.grid:
            return self._own
        if grid not in self._classes:
            while len(self._classes) >= self._most:
                _, dropped = self._classes.popitem(last=False)
                for program in dropped.values():
                    program.clear_cache()
                if not self._padded:
                    say_once(
                        f"pictures of more than {self._most} sizes: this model computes each size "
                        "by itself, and programs are compiled anew; sort the pictures by size, or "
                        "train a model with model.spatial_window, which shares its programs"
                    )
            self._classes[grid] = {}
        self._classes.move_to_end(grid)
        return self._classes[grid]


def _rounded(windows: int) -> int:
    """A number of windows rounded up, so that there are at most `_STEPS` for each doubling."""
    step = max(2 ** ((windows - 1).bit_length() - 1) // _STEPS, 1)
    return -(-windows // step) * step
