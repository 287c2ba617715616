"""What codes tokens with a prior, whatever the prior: one interface, and the coder for a prior."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from bsq_jax.coding.neighbourhood_coder import NeighbourhoodCoder
from bsq_jax.coding.tile_prior_coder import TilePriorCoder
from bsq_jax.core.errors import UserError
from bsq_jax.models.factory import Prior
from bsq_jax.models.prior.entropy_coder import Decoder, Encoder
from bsq_jax.models.prior.neighbourhood_prior import NeighbourhoodPrior


class PriorStream(Protocol):
    """Codes the frames of one picture or video in order; for encoding or for decoding."""

    @property
    def steps(self) -> int:
        """In how many steps a frame is decoded, each of many tokens at once."""
        ...

    def encode(self, frame: np.ndarray, encoder: Encoder) -> np.ndarray:
        """Writes the next frame.

        Args:
          frame: uint8 ``[row, column, kept bit]``.
          encoder: is given the bits.

        Returns:
          The logits that each bit was coded with, whole numbers of the frame's shape, see
          `bsq_jax.models.prior.entropy_coder`: what each bit takes in the file follows from them.
        """
        ...

    def decode(self, decoder: Decoder) -> np.ndarray:
        """Reads the next frame, uint8 ``[row, column, kept bit]``."""
        ...


class PriorCoder(Protocol):
    """Codes tokens with one prior, see `make_prior_coder`."""

    def stream(self, rows: int, columns: int, bits: int) -> PriorStream:
        """Begins a picture or a video.

        The tokens of a frame are one grid. Where the frame is coded in tiles, theirs lie side by
        side in it, as the tiles lie in the frame.

        Args:
          rows: of the grid.
          columns: of the grid; for priors of tiles (``prior.reach`` 0) both are multiples of the
            tile's.
          bits: how many of a token's bits are coded, the first ones.
        """
        ...


def make_prior_coder(model: Prior, params: Any) -> PriorCoder:
    """The coder of a prior with these parameters."""
    if isinstance(model, NeighbourhoodPrior):
        return NeighbourhoodCoder(model, params)
    return TilePriorCoder(model, params)


def check_prior(model: Prior, rows: int, columns: int, bits: int) -> None:
    """Whether a prior is one for such tokens.

    Raises:
      UserError: it is for other ones.
    """
    shape = model.shape
    if shape.any_size and shape.bits != bits:
        raise UserError(
            f"the prior is for tokens of {shape.bits} bits, the tokenizer makes such of {bits}: "
            "give a prior trained on this tokenizer"
        )
    if not shape.any_size and (shape.rows, shape.columns, shape.bits) != (rows, columns, bits):
        raise UserError(
            f"the prior is for {shape.rows}x{shape.columns} tokens of {shape.bits} bits, the "
            f"tokenizer makes {rows}x{columns} of {bits}: give a prior trained on this tokenizer"
        )
