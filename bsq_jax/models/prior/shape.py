"""The size of a prior, and the order in which it takes the tokens of a frame."""

from __future__ import annotations

import dataclasses

import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.models.prior.bounds import check_exact
from bsq_jax.quantizers.layout import TokenLayout

ORDERS = ("raster", "grids")


def steps_of(order: str, rows: int, columns: int) -> np.ndarray:
    """At which step of a frame each token is taken.

    Args:
      order: ``raster``: one token a step, row by row. ``grids``: three steps whatever the size:
        every other token of every other row, those diagonally between them, and all others.
      rows: of a tile.
      columns: of a tile.

    Returns:
      int32 ``[rows * columns]``, each step from 0 on at least once.

    Raises:
      UserError: an unknown order.
    """
    if order not in ORDERS:
        raise UserError(f"order '{order}': it must be one of {', '.join(ORDERS)}")
    row, column = np.divmod(np.arange(rows * columns), columns)
    if order == "raster":
        return np.arange(rows * columns, dtype=np.int32)
    step = np.where((row + column) % 2, 2, row % 2)
    return np.unique(step, return_inverse=True)[1].astype(np.int32)


@dataclasses.dataclass(frozen=True)
class PriorShape:
    """The numbers that fix a prior's parameters.

    Attributes:
      rows: tokens of a tile, downwards.
      columns: tokens of a tile, across.
      layout: of a token's bits.
      width: channels of the rows.
      layers: blocks.
      heads: attention heads.
      hidden: channels of the network that goes through the bits of a token.
      window: frames that a token looks at, its own included.
      order: see `steps_of`.

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

    def __post_init__(self) -> None:
        check_exact(self)

    @property
    def bits(self) -> int:
        """Bits of a token, L."""
        return self.layout.length

    @property
    def tokens(self) -> int:
        """Tokens of a tile."""
        return self.rows * self.columns

    @property
    def steps(self) -> np.ndarray:
        """See `steps_of`."""
        return steps_of(self.order, self.rows, self.columns)
