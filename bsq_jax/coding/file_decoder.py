"""The bytes of a file to frames, chunk by chunk, each checked before its frames are given."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from bsq_jax.coding.container import Chunk, DamagedFile, Header, bits_checksum, read_chunks
from bsq_jax.coding.prior_coder import PriorCoder
from bsq_jax.coding.tile_tokenizer import TileTokenizer
from bsq_jax.models.prior.entropy_coder import Decoder


class FileDecoder:
    """Decodes what follows the header of one file."""

    def __init__(
        self,
        tokenizer: TileTokenizer,
        coder: PriorCoder | None,
        header: Header,
        name: str,
        *,
        shown: bool = False,
    ):
        """Sets up the decoder.

        Args:
          tokenizer: that encoded the file.
          coder: of the tokens; needed with the mode ``prior`` alone.
          header: of the file, which must be one that `tokenizer` can make.
          name: what to call the file in messages.
          shown: show progress where a frame has many tiles.
        """
        self._tokenizer, self._header, self._name = tokenizer, header, name
        tiles = tokenizer.tiles(header.height, header.width, header.tile, header.overlap)
        self._frames = tokenizer.coder(tiles, stream=header.stream, shown=shown)
        self._frame_shape = (len(tiles), self._frames.tokens, header.bits)
        self._stream = None
        if header.mode == "prior":
            assert coder is not None
            self._stream = coder.stream(*self._frames.grid, header.bits)

    def groups(self, file: BinaryIO) -> Iterator[np.ndarray]:
        """Reads the chunks, which begin at the file's position.

        Yields:
          The next frames, uint8 ``[time, height, width, 3]``.

        Raises:
          TruncatedFile: the file ends early; all whole frames were given.
          DamagedFile: its bytes were changed; all frames before were given.
        """
        done = 0
        for chunk in read_chunks(file, self._header, self._name, self._most_bytes):
            tokens = self._checked_tokens(chunk, done)
            first = 0
            for frames in self._groups(chunk.frames):
                last = first + self._tokenizer.shape.token_frames(frames)
                yield self._frames.decode(tokens[first:last], frames)
                first = last
            done += chunk.frames

    def _groups(self, frames: int) -> list[int]:
        """Numbers of frames that were coded together, of a chunk of so many."""
        whole, rest = divmod(frames, self._tokenizer.group)
        return [self._tokenizer.group] * whole + [rest] * (rest > 0)

    def _token_frames(self, frames: int) -> int:
        """Frames of tokens of a chunk of so many frames."""
        group = self._tokenizer.group
        whole, rest = divmod(frames, group)
        count = self._tokenizer.shape.token_frames
        return whole * int(count(group)) + (int(count(rest)) if rest else 0)

    def _most_bytes(self, frames: int) -> int:
        """The most that a payload of so many frames can have."""
        size = math.prod(self._frame_shape)  # bits of a frame
        # With a prior no bit takes more than 16 bits, and the coder's end a few words.
        return frames * (-(-size // 8) if self._header.mode == "raw" else 2 * size) + 16

    def _checked_tokens(self, chunk: Chunk, done: int) -> np.ndarray:
        """Tokens of a chunk behind so many frames, uint8 ``[time, tile, token, bit]``."""
        made: list[np.ndarray] = []
        checksum = bits_checksum(np.zeros(0, np.uint8))
        for tokens in self._tokens(chunk, done):
            made.append(tokens)
            checksum = bits_checksum(tokens, checksum)
        if checksum != chunk.checksum:
            raise DamagedFile(
                f"{self._name} is damaged: the bits after {done} of {self._header.frames} frames "
                "differ from their checksum",
                done,
            )
        chunk_tokens = np.concatenate(made)
        if not self._tokenizer.layout.names_code(chunk_tokens).all():
            raise DamagedFile(
                f"{self._name} is damaged: tokens after {done} of {self._header.frames} frames "
                "name no code",
                done,
            )
        return chunk_tokens

    def _tokens(self, chunk: Chunk, done: int) -> Iterator[np.ndarray]:
        """The tokens of a chunk, some frames at a time, as far as its bytes are tokens at all.

        A claimed number of frames takes memory for those alone that the payload has.
        """
        problem = DamagedFile(
            f"{self._name} is damaged: what follows {done} of {self._header.frames} frames is no "
            "such data",
            done,
        )
        if self._stream is None:
            count = self._token_frames(chunk.frames) * math.prod(self._frame_shape)
            if len(chunk.payload) != -(-count // 8):
                raise problem
            bits = np.unpackbits(np.frombuffer(chunk.payload, np.uint8), count=count)
            yield bits.reshape(-1, *self._frame_shape)
            return
        if len(chunk.payload) % 4:
            raise problem
        decoder = Decoder(chunk.payload)
        for _ in range(self._token_frames(chunk.frames)):
            try:
                grid = self._stream.decode(decoder)
            except AssertionError:  # of constriction: the bytes are none that an encoder made
                raise problem from None
            yield self._frames.in_tiles(grid)[None]
