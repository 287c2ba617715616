"""What a codec's model can code: modes, bits and tiles, as they are asked for or a file says."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from bsq_jax.coding.header import NATIVE, Header
from bsq_jax.coding.tile_choice import (
    MOST_STREAM_BYTES,
    Tile,
    check_tokens,
    checked_tile,
    chosen_tile,
    filled_up,
    fitted,
    stream_bytes,
    tokens_for,
    tokens_of,
    usual_overlap,
)
from bsq_jax.coding.tile_tokenizer import TileTokenizer
from bsq_jax.coding.tiles import Tiles
from bsq_jax.core.errors import UserError
from bsq_jax.core.once import say_once
from bsq_jax.core.text import listed
from bsq_jax.inference.grids import MOST_TOKENS

MODES = ("prior", "raw")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `Codec.encode` is asked for.

    Attributes:
      mode: ``prior`` or ``raw``.
      bits: how many bits of a token are kept.
      overlap: pixels that neighbouring tiles share; None: as the tiles suggest.
      tile: (height, width) of a tile, or `NATIVE`; None: as few as `most_tokens` allows.
      most_tokens: of what is coded at once.
    """

    mode: str
    bits: int
    overlap: int | None
    tile: tuple[int, int] | None
    most_tokens: int


class TileSettings(NamedTuple):
    """How frames of a size are cut, as `Header` holds it."""

    tile: tuple[int, int] | None
    overlap: int
    stream: bool


class CodingChoice:
    """The settings that a tokenizer, with a prior or without, can code with."""

    def __init__(self, tiled: TileTokenizer, prior: ConfigDict | None, name: str):
        """Takes the models.

        Args:
          tiled: the tokenizer.
          prior: the config of the prior; None: there is none.
          name: of the model, for messages.
        """
        self._tiled, self._shape, self._name = tiled, tiled.shape, name
        self._has_prior = prior is not None
        self._any_size = prior is not None and bool(np.any(prior.prior.get("reach", 0)))

    def settings(
        self,
        mode: str | None,
        bits: int | None,
        overlap: int | None,
        tile: Tile,
        memory_mb: float | None,
    ) -> Settings:
        """What `Codec.encode` is asked for; mode and bits by themselves where they are None.

        Raises:
          UserError: a setting is not one of this model.
        """
        name, shape, own = self._name, self._shape, self._tiled.tile
        mode = mode or ("prior" if self._has_prior else "raw")
        if mode not in MODES:
            raise UserError(f"mode '{mode}': it must be one of {', '.join(MODES)}")
        if mode == "prior" and not self._has_prior:
            raise UserError(f"{name} has no prior: code with mode raw, or train a prior on it")
        bits = shape.bits if bits is None else bits
        if bits not in shape.prefixes:
            able = shape.prefixes
            more = "" if len(able) > 1 else (
                " (train a tokenizer with model.min_bits or quantizer.stages for fewer)"
            )  # fmt: skip
            raise UserError(f"{bits} bits a token: {name} takes {listed(able)}{more}")
        wanted, most = checked_tile(tile, shape), MOST_TOKENS
        if memory_mb is not None:
            if wanted is not None:
                raise UserError("give the size of the tiles or the memory, not both")
            most = tokens_for(memory_mb, shape)
        if mode == "prior" and not self._any_size:
            if wanted not in (None, own):
                raise UserError(
                    f"tiles of another size than {own[0]}x{own[1]}: the prior of {name} was "
                    "trained on such tiles alone: code with mode raw, or train a prior with "
                    "prior.reach, which takes any size"
                )
            wanted = own
        if wanted is None and not shape.spatial_window:
            wanted = own
        if wanted is not None and wanted != NATIVE and overlap is not None:
            Tiles(wanted[0] + 1, wanted[1] + 1, wanted, overlap)  # refuses an unsuitable overlap
        return Settings(mode, bits, overlap, wanted, most)

    def tiles(self, settings: Settings, height: int, width: int, *, clip: bool) -> TileSettings:
        """How frames of a size are cut.

        Args:
          settings: what is asked for.
          height: of the frames, pixels.
          width: of the frames, pixels.
          clip: whether there are several.

        Raises:
          UserError: such frames cannot be coded so.
        """
        if clip and self._tiled.streams:
            found = self._cut(settings, height, width, 1, stream=True)
            needed = self._stream_bytes(height, width, found.tile, found.overlap)
            if needed <= MOST_STREAM_BYTES:
                return found
            say_once(
                f"a clip of {height}x{width} pixels as one would keep {needed / 2**30:.1f} GB of "
                f"keys and values: each {self._shape.frames} frames are coded by themselves"
            )
        return self._cut(settings, height, width, self._shape.frames if clip else 1, stream=False)

    def _cut(
        self, settings: Settings, height: int, width: int, together: int, *, stream: bool
    ) -> TileSettings:
        """`tiles` where so many frames are computed together."""
        shape, own = self._shape, self._tiled.tile
        tile, overlap = settings.tile, settings.overlap
        if tile is None:
            most = max(settings.most_tokens // together, 1)
            tile = chosen_tile(shape, height, width, most, overlap)
        elif tile != own:
            tile = fitted(shape, tile, height, width)
            whole = filled_up(shape, height, width)
            check_tokens(shape, whole if tile == NATIVE else tile, together)
        if tile == NATIVE:
            overlap = 0
        elif overlap is None:
            overlap = usual_overlap(shape, tile)
        # A file that earlier readers open, wherever such a file can say it.
        early = tile == own and not stream and not (settings.mode == "prior" and self._any_size)
        return TileSettings(None if early else tile, overlap, stream)

    def _stream_bytes(
        self, height: int, width: int, tile: tuple[int, int] | None, overlap: int
    ) -> int:
        tiles = self._tiled.tiles(height, width, tile, overlap)
        return stream_bytes(self._shape, len(tiles) * tokens_of(self._shape, tiles.tile))

    def check(self, header: Header, name: str) -> None:
        """Refuses settings of a file that this model cannot have made.

        Raises:
          UserError: they are such.
        """
        own, tile = self._tiled.tile, header.tile or self._tiled.tile
        self.settings(header.mode, header.bits, None, tile, None)
        if header.stream and not self._tiled.streams:
            raise UserError(
                f"{name} claims that all frames are one clip, which {self._name} does not code"
            )
        size = header.height, header.width
        if tile not in (own, NATIVE) and fitted(self._shape, tile, *size) != tile:
            raise UserError(
                f"{name} claims tiles of {tile[0]}x{tile[1]} pixels, more than its frames of "
                f"{size[0]}x{size[1]} have"
            )
        together = 1 if header.stream or header.frames == 1 else self._shape.frames
        self._tiled.tiles(*size, tile, header.overlap, together)
        if header.stream:
            needed = self._stream_bytes(*size, tile, header.overlap)
            if needed > MOST_STREAM_BYTES:
                raise UserError(
                    f"{name} claims that frames of {size[0]}x{size[1]} pixels are one clip, which "
                    f"would keep {needed / 2**30:.1f} GB of keys and values: it is damaged"
                )
