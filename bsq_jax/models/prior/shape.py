"""The size of a prior, the order in which it takes the tokens of a frame, and what a token sees."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.models.prior.bounds import check_exact
from bsq_jax.quantizers.layout import TokenLayout

ORDERS = ("raster", "grids")
WHOLE_TILE = (0, 0)
"""The reach of a prior of tiles: a token looks at all of its tile."""


def step_at(order: str, row: Any, column: Any, reach: tuple[int, int]) -> Any:
    """At which step of a frame tokens are taken by a prior with a neighbourhood.

    ``raster``: in wavefronts, step ``column + (C + 1) row`` where C is the columns of the reach. A
    token sees the rows above up to its own column + C, and its own row to the left: all these have
    earlier steps. So tokens of several rows are taken at once. ``grids``: three steps whatever the
    size: every other token of every other row, those diagonally between them, and all others.

    Args:
      order: see above.
      row: whole numbers, arrays of numpy or JAX.
      column: likewise.
      reach: rows and columns of the neighbourhood.

    Returns:
      Steps from 0 on, some maybe without tokens in small frames.
    """
    if order == "raster":
        return column + (reach[1] + 1) * row
    odd = (row + column) % 2
    return 2 * odd + (1 - odd) * (row % 2)


def steps_of(
    order: str, rows: int, columns: int, reach: tuple[int, int] = WHOLE_TILE
) -> np.ndarray:
    """At which step of a frame each token is taken.

    Args:
      order: see `step_at`; of a prior of tiles ``raster`` takes one token a step, row by row.
      rows: of the frame, or tile.
      columns: of the frame, or tile.
      reach: see `PriorShape`.

    Returns:
      int32 ``[rows * columns]``, each step from 0 on at least once.

    Raises:
      UserError: an unknown order.
    """
    if order not in ORDERS:
        raise UserError(f"order '{order}': it must be one of {', '.join(ORDERS)}")
    row, column = np.divmod(np.arange(rows * columns), columns)
    # One token a step is the wavefront of tokens that see their whole row to the right.
    seen = (0, columns - 1) if reach == WHOLE_TILE else reach
    step = step_at(order, row, column, seen)
    return np.unique(step, return_inverse=True)[1].astype(np.int32)


def tokens_by_step(steps: np.ndarray) -> list[np.ndarray]:
    """The tokens of each step of `steps_of`, increasing."""
    order = np.argsort(steps, kind="stable")
    return np.split(order, np.cumsum(np.bincount(steps))[:-1])


@dataclasses.dataclass(frozen=True)
class PriorShape:
    """The numbers that fix a prior's parameters.

    Attributes:
      rows: tokens of a tile, downwards; 0 with a reach, because frames have any size then.
      columns: tokens of a tile, across; 0 with a reach.
      layout: of a token's bits.
      width: channels of the rows.
      layers: blocks.
      heads: attention heads.
      hidden: channels of the network that goes through the bits of a token.
      window: frames that a token looks at, its own included.
      order: see `step_at`.
      reach: (rows, columns) to each side of a token of the neighbourhood that it looks at; (0, 0):
        all of its tile.

    Raises:
      UserError: a network of this size would not be exact.
    """

    rows: int
    columns: int
    layout: TokenLayout
    width: int
    layers: int
    heads: int
    hidden: int
    window: int
    order: str
    reach: tuple[int, int] = WHOLE_TILE

    def __post_init__(self) -> None:
        assert self.any_size == (self.tokens == 0)
        check_exact(self)

    @property
    def any_size(self) -> bool:
        """Whether frames may have any size, because tokens look at a neighbourhood."""
        return self.reach != WHOLE_TILE

    @property
    def bits(self) -> int:
        """Bits of a token, L."""
        return self.layout.length

    @property
    def tokens(self) -> int:
        """Tokens of a tile; 0 with a reach."""
        return self.rows * self.columns

    @property
    def distances(self) -> tuple[int, int]:
        """How many distances there are downwards, and across."""
        if self.any_size:
            return 2 * self.reach[0] + 1, 2 * self.reach[1] + 1
        return 2 * self.rows - 1, 2 * self.columns - 1

    @property
    def keys(self) -> int:
        """The most that a row looks at, with one that is always there."""
        seen = self.distances[0] * self.distances[1] if self.any_size else self.tokens
        return self.window * seen + 1

    def steps(self, rows: int, columns: int) -> np.ndarray:
        """See `steps_of`."""
        return steps_of(self.order, rows, columns, self.reach)
