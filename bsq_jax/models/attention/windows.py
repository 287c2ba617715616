"""Attention within square windows of a frame, so that its cost grows with the pixels.

The windows of one block lie side by side from the top left; those of the next block are shifted by
half a window down and across, so that what is apart in one block meets in the next (shifted
windows: Liu et al., ICCV 2021). A window has the same number of tokens whatever the frame, and each
is computed by itself: a picture gives the same tokens alone, in a batch and under any padding.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from bsq_jax.core.regions import counted, real_tokens

PADDING = 4  # the region of tokens that are not of the picture; 0 to 3 are of shifted windows


@dataclasses.dataclass(frozen=True)
class Windows:
    """How the tokens of a frame are cut into windows.

    Attributes:
      rows: tokens of a frame, downwards.
      columns: tokens of a frame, across.
      side: of a window, in tokens; an even number.
    """

    rows: int
    columns: int
    side: int

    @property
    def padded(self) -> tuple[int, int]:
        """(rows, columns) of the grid that whole windows fill."""
        return -(-self.rows // self.side) * self.side, -(-self.columns // self.side) * self.side

    @property
    def count(self) -> int:
        """Windows of a frame."""
        rows, columns = self.padded
        return rows * columns // self.side**2

    @property
    def tokens(self) -> int:
        """Tokens of a window."""
        return self.side**2

    def fill(self, x: jax.Array) -> jax.Array:
        """Fills ``[batch, time, row, column, channel]`` up to `padded` with zeros."""
        down, across = self.padded[0] - self.rows, self.padded[1] - self.columns
        if not down and not across:
            return x
        return jnp.pad(x, ((0, 0), (0, 0), (0, down), (0, across), (0, 0)))

    def cut(self, x: jax.Array, shifted: jax.Array) -> jax.Array:
        """Windows of frames.

        Args:
          x: ``[batch, time, token, channel]``, the tokens of a `padded` grid row by row.
          shifted: bool, a scalar: whether the windows are the shifted ones.

        Returns:
          ``[batch * window, time, token of the window, channel]``.
        """
        x = rearrange(x, "b t (h w) d -> b t h w d", h=self.padded[0])
        x = jnp.where(shifted, self._rolled(x, -1), x)
        pattern = "b t (r p) (c q) d -> (b r c) t (p q) d"
        return rearrange(x, pattern, p=self.side, q=self.side)

    def join(self, windows: jax.Array, shifted: jax.Array) -> jax.Array:
        """Inverse of `cut`."""
        rows, columns = (side // self.side for side in self.padded)
        pattern = "(b r c) t (p q) d -> b t (r p) (c q) d"
        x = rearrange(windows, pattern, r=rows, c=columns, p=self.side)
        x = jnp.where(shifted, self._rolled(x, 1), x)
        return rearrange(x, "b t h w d -> b t (h w) d")

    def regions(self, sizes: jax.Array | None = None) -> jax.Array:
        """Which tokens of a window may see each other: those with the same number.

        What lies at opposite edges of a frame meets in a shifted window only because the grid is
        rolled; these tokens, and padding, have numbers of their own.

        Args:
          sizes: int32 ``[batch, 2]``, real (rows, columns) of each frame; None: all are of the
            picture but those that `fill` adds.

        Returns:
          int32 ``[2, batch or 1, window, token]``: of the plain and of the shifted windows.
        """
        if sizes is None:
            sizes = jnp.array([[self.rows, self.columns]], jnp.int32)
        rows, columns = self.padded
        half = self.side // 2
        found = []
        for shift in (0, half):
            row, column = counted(rows) + shift, counted(columns) + shift
            wrapped = (row >= rows)[:, None] * 2 + (column >= columns)[None]
            real = real_tokens(sizes, row % rows, column % columns)
            found.append(jnp.where(real, wrapped.astype(np.int32), np.int32(PADDING)))
        pattern = "two b (r p) (c q) -> two b (r c) (p q)"
        return rearrange(jnp.stack(found), pattern, p=self.side, q=self.side)

    def _rolled(self, x: jax.Array, direction: int) -> jax.Array:
        half = direction * (self.side // 2)
        return jnp.roll(x, (half, half), axis=(2, 3))
