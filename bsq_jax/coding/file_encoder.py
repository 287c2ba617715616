"""Frames to the bytes of a file: tokens, coded with a prior or packed, in chunks with checksums."""

from __future__ import annotations

import dataclasses
import fractions
from typing import NamedTuple

import numpy as np

from bsq_jax.coding.container import Chunk, Header, Origin, bits_checksum, pack_chunk
from bsq_jax.coding.prior_coder import PriorCoder, PriorStream
from bsq_jax.coding.tile_tokenizer import TileTokenizer, checked_frames
from bsq_jax.core.errors import UserError
from bsq_jax.media.timing import Timing
from bsq_jax.models.prior.entropy_coder import Encoder

_CHUNK_BYTES = 4096  # so that what a chunk needs besides its payload does not count

Rate = fractions.Fraction | Timing | None
"""Frames a second of a video, or how long each frame is shown; None for a picture."""


@dataclasses.dataclass(frozen=True)
class Coding:
    """How a file is coded.

    Attributes:
      mode: ``prior`` or ``raw``.
      bits: how many bits of a token are kept.
      overlap: pixels that neighbouring tiles share.
      fingerprint: of the model, eight bytes.
      origin: which step of which model it is; None where that is not known.
      tile: see `Header`.
      stream: see `Header`.
    """

    mode: str
    bits: int
    overlap: int
    fingerprint: bytes
    origin: Origin | None = None
    tile: tuple[int, int] | None = None
    stream: bool = False

    def made(self, header: Header) -> bool:
        """Whether a file was coded by this model and these settings."""
        names = ("mode", "bits", "overlap", "fingerprint", "tile", "stream")
        return all(getattr(self, name) == getattr(header, name) for name in names)


class Added(NamedTuple):
    """What `FileEncoder.add` wrote.

    Attributes:
      tokens: uint8 ``[time, tile, token, bit]``.
      logits: that their bits were coded with, whole numbers ``[row, column, bit]`` of each frame of
        tokens, see `PriorStream.encode`; empty without a prior.
    """

    tokens: np.ndarray
    logits: list[np.ndarray]


class FileEncoder:
    """Collects the frames of one file group by group; `finish` gives its bytes."""

    def __init__(
        self,
        tokenizer: TileTokenizer,
        coder: PriorCoder | None,
        coding: Coding,
        size: tuple[int, int],
        *,
        shown: bool = False,
    ):
        """Begins a file without frames.

        Args:
          tokenizer: of the frames.
          coder: of the tokens; needed with the mode ``prior`` alone.
          coding: how the file is coded.
          size: (height, width) of the frames, pixels.
          shown: show progress where a frame has many tiles.

        Raises:
          UserError: frames of this size cannot be coded so.
        """
        self._coding = coding
        self._tiles = tokenizer.tiles(*size, coding.tile, coding.overlap)
        self._frames = tokenizer.coder(self._tiles, stream=coding.stream, shown=shown)
        self._stream: PriorStream | None = None
        if coding.mode == "prior":
            assert coder is not None
            self._stream = coder.stream(*self._frames.grid, coding.bits)
        self._encoder: Encoder | None = None
        self._chunks: list[Chunk] = []
        self._pending: list[np.ndarray] = []  # tokens of the chunk that is open
        self._pending_frames = 0
        self._count = 0

    def add(self, frames: np.ndarray) -> Added:
        """Encodes the next frames, uint8 ``[time, height, width, 3]``.

        Returns:
          The tokens that were made of them.

        Raises:
          UserError: they are not such, or not of the size of those before.
        """
        frames = checked_frames(frames)
        if frames.shape[1:3] != (self._tiles.height, self._tiles.width):
            raise UserError("the frames of a video must all have one size")
        tokens = self._frames.encode(frames, self._coding.bits)
        logits: list[np.ndarray] = []
        if self._stream is not None:
            self._encoder = encoder = self._encoder or Encoder()
            grids = map(self._frames.side_by_side, tokens)
            logits = [self._stream.encode(grid, encoder) for grid in grids]
        self._pending.append(tokens)
        self._pending_frames += len(frames)
        self._count += len(frames)
        if self._pending_bytes() >= _CHUNK_BYTES:
            self._close_chunk()
        return Added(tokens, logits)

    def _pending_bytes(self) -> int:
        if self._encoder is not None:
            return self._encoder.size()
        return sum(tokens.size for tokens in self._pending) // 8

    def _close_chunk(self) -> None:
        tokens = np.concatenate(self._pending)
        encoder = self._encoder
        payload = np.packbits(tokens).tobytes() if encoder is None else encoder.result()
        self._chunks.append(Chunk(self._pending_frames, payload, bits_checksum(tokens)))
        self._pending, self._pending_frames, self._encoder = [], 0, None

    def finish(self, rate: Rate) -> bytes:
        """The bytes of the file.

        Raises:
          UserError: the frames cannot have this rate.
        """
        if self._pending:
            self._close_chunk()
        header = self.header(self._count, rate)
        return b"".join([header.pack(), *(pack_chunk(chunk, header) for chunk in self._chunks)])

    def header(self, frames: int, rate: Rate) -> Header:
        """The header of a file of so many frames.

        Raises:
          UserError: they cannot have this rate.
        """
        return Header(
            mode=self._coding.mode,
            fingerprint=self._coding.fingerprint,
            height=self._tiles.height,
            width=self._tiles.width,
            frames=frames,
            rate=rate.rate if isinstance(rate, Timing) else rate,
            bits=self._coding.bits,
            overlap=self._tiles.overlap,
            timing=rate if isinstance(rate, Timing) else None,
            origin=self._coding.origin,
            tile=self._coding.tile,
            stream=self._coding.stream,
        )
