"""Frames to the bytes of a file: tokens, coded with a prior or packed, in chunks with checksums."""

from __future__ import annotations

import dataclasses
import fractions

import numpy as np

from bsq_jax.coding.container import Chunk, Header, Origin, bits_checksum, pack_chunk
from bsq_jax.coding.prior_coder import PriorCoder, PriorStream
from bsq_jax.coding.tile_tokenizer import TileTokenizer, checked_frames
from bsq_jax.coding.tiles import Tiles
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
    """

    mode: str
    bits: int
    overlap: int
    fingerprint: bytes
    origin: Origin | None = None


class FileEncoder:
    """Collects the frames of one file group by group; `finish` gives its bytes."""

    def __init__(self, tokenizer: TileTokenizer, coder: PriorCoder | None, coding: Coding):
        """Begins a file without frames.

        Args:
          tokenizer: of the frames.
          coder: of the tokens; needed with the mode ``prior`` alone.
          coding: how the file is coded.
        """
        self._tokenizer, self._coder, self._coding = tokenizer, coder, coding
        self._tiles: Tiles | None = None
        self._stream: PriorStream | None = None
        self._encoder: Encoder | None = None
        self._chunks: list[Chunk] = []
        self._pending: list[np.ndarray] = []  # tokens of the chunk that is open
        self._count = 0

    def begin(self, height: int, width: int) -> None:
        """Sets the size of the frames, in pixels."""
        self._tiles = self._tokenizer.tiles(height, width, self._coding.overlap)
        if self._coding.mode == "prior":
            assert self._coder is not None
            rows, columns = self._tokenizer.grid(self._tiles)
            self._stream = self._coder.stream(rows, columns, self._coding.bits)

    def add(self, frames: np.ndarray) -> None:
        """Encodes the next frames, uint8 ``[time, height, width, 3]``.

        Raises:
          UserError: they are not such, or not of the size of those before.
        """
        frames = checked_frames(frames)
        if self._tiles is None:
            self.begin(*frames.shape[1:3])
        assert self._tiles is not None
        if frames.shape[1:3] != (self._tiles.height, self._tiles.width):
            raise UserError("the frames of a video must all have one size")
        tokens = self._tokenizer.encode(frames, self._tiles, self._coding.bits)
        if self._stream is not None:
            self._encoder = self._encoder or Encoder()
            for frame in tokens:
                grid = self._tokenizer.side_by_side(frame, self._tiles)
                self._stream.encode(grid, self._encoder)
        self._pending.append(tokens)
        self._count += len(frames)
        if self._pending_bytes() >= _CHUNK_BYTES:
            self._close_chunk()

    def _pending_bytes(self) -> int:
        if self._encoder is not None:
            return self._encoder.size()
        return sum(tokens.size for tokens in self._pending) // 8

    def _close_chunk(self) -> None:
        tokens = np.concatenate(self._pending)
        encoder = self._encoder
        payload = np.packbits(tokens).tobytes() if encoder is None else encoder.result()
        self._chunks.append(Chunk(len(tokens), payload, bits_checksum(tokens)))
        self._pending, self._encoder = [], None

    def finish(self, rate: Rate) -> bytes:
        """The bytes of the file.

        Raises:
          UserError: there are no frames, or they cannot have this rate.
        """
        if self._pending:
            self._close_chunk()
        header = self.header(self._count, rate)
        return b"".join([header.pack(), *(pack_chunk(chunk, header) for chunk in self._chunks)])

    def header(self, frames: int, rate: Rate) -> Header:
        """The header of a file of so many frames.

        Raises:
          UserError: there are no frames, or they cannot have this rate.
        """
        if self._tiles is None:
            raise UserError("there are no frames to encode")
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
        )
