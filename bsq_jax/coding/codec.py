"""Pictures and videos of any size as bytes: tiles, tokens, prior and container put together."""

from __future__ import annotations

import dataclasses
import fractions
import functools
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, Self

import numpy as np
from ml_collections import ConfigDict

from bsq_jax.coding.container import (
    Chunk,
    DamagedFile,
    Header,
    TruncatedFile,
    bits_checksum,
    pack_chunk,
    read_chunks,
    read_header,
)
from bsq_jax.coding.prior_coder import PriorCoder, check_prior
from bsq_jax.coding.tiles import Tiles
from bsq_jax.config import finalize
from bsq_jax.core.errors import UserError
from bsq_jax.core.paths import local_path
from bsq_jax.core.pixels import pixels_to_bytes
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.media.timing import Timing, seconds_of
from bsq_jax.models.factory import make_prior
from bsq_jax.models.prior.entropy_coder import Decoder, Encoder
from bsq_jax.training.export import identity, save_export
from bsq_jax.training.saved_models import TOKENIZER_FOLDER, load_saved_model, read_saved_config

MODES = ("prior", "raw")
_MOST_PIXELS = 2**26  # of a frame: what is claimed to be larger is refused
_CHUNK_BYTES = 4096  # so that what a chunk needs besides its payload does not count
_FRAMES_AT_ONCE = 8  # of an image model


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What a file held.

    Attributes:
      frames: uint8 ``[time, height, width, 3]``, those that are whole.
      header: what the file says of itself.
      problem: why there are fewer frames than the header says; empty where all are there.
    """

    frames: np.ndarray
    header: Header
    problem: str = ""

    @property
    def times(self) -> np.ndarray:
        """When each frame is shown, seconds from the first; float64 ``[time]``."""
        return seconds_of(self.header.timing or self.header.rate, len(self.frames))


class Codec:
    """A tokenizer, and maybe a prior on its tokens, as a codec of files.

    ::

        codec = Codec.load("runs/prior")  # or a tokenizer alone
        data = codec.encode(frames)  # uint8 [time, height, width, 3]
        frames = codec.decode(data).frames

    Attributes:
      tokenizer: the tokenizer.
      has_prior: whether there is a prior.
      name: what to call it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prior: tuple[ConfigDict, Any] | None = None,
        *,
        name: str = "bsq",
        origin: dict[str, Any] | None = None,
    ):
        """Puts a codec together.

        Args:
          tokenizer: the tokenizer.
          prior: a prior's config and its parameters.
          name: what to call it.
          origin: where the prior's parameters come from, ``weights`` (raw or ema) and training
            ``step``; kept in exports.

        Raises:
          UserError: the prior is for other tokens.
        """
        self.tokenizer, self.name = tokenizer, name
        self.has_prior = prior is not None
        self._prior, self._origin = prior, dict(origin or {})
        self._shape = tokenizer.shape
        if prior is not None:
            check_prior(make_prior(prior[0]), *self._shape.grid, self._shape.bits)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Loads a codec from the workdir or export of a prior, or of a tokenizer alone.

        Raises:
          UserError: the folder is neither, or damaged.
        """
        folder = local_path(path)
        name = folder.name or str(folder)
        if not folder.is_dir():
            raise UserError(f"{folder} does not exist or is not a folder: give a workdir or export")
        task = read_saved_config(folder).task
        if task == "tokenizer":
            return cls(Tokenizer.load(folder), name=name)
        if task != "prior":
            raise UserError(
                f"{folder} holds a {task}, which codes nothing: give a prior, or the tokenizer in "
                f"{folder / TOKENIZER_FOLDER}"
            )
        initial = load_saved_model(folder, ("raw", "ema"))
        which = "ema" if "ema" in initial.weights else "raw"
        tokenizer = Tokenizer.load(folder / TOKENIZER_FOLDER)
        prior = finalize(initial.config), initial.weights[which]
        return cls(tokenizer, prior, name=name, origin=initial.origin | {"weights": which})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an export of all that coding needs; `load` reads it.

        The prior's weights lie in ``raw.safetensors`` or ``ema.safetensors``, by what they are.

        Raises:
          UserError: the folder cannot be written.
        """
        if self._prior is None:
            self.tokenizer.save(path)
            return
        self.tokenizer.save(local_path(path) / TOKENIZER_FOLDER)
        name = "ema" if self._origin.get("weights") == "ema" else "raw"
        save_export(path, self._prior[0], {name: self._prior[1]}, origin=self._origin)

    # --- what it can do ---

    @property
    def variable_bits(self) -> tuple[int, ...]:
        """Numbers of bits a token that can be kept, increasing; the last keeps all."""
        return tuple(range(self._shape.min_bits or self._shape.bits, self._shape.bits + 1))

    def fingerprint(self, mode: str) -> bytes:
        """Eight bytes that tell this model from others; those of a prior count if it is used."""
        trees = [self._fingerprints[0]]
        if mode == "prior":
            trees.append(self._fingerprints[1])
        return hashlib.sha256(b"".join(trees)).digest()[:8]

    @functools.cached_property
    def _fingerprints(self) -> tuple[bytes, bytes]:
        own = identity(self.tokenizer.config, self.tokenizer.params)
        if self._prior is None:
            return own, b""
        return own, identity(*self._prior)

    @functools.cached_property
    def _coder(self) -> PriorCoder:
        assert self._prior is not None
        config, params = self._prior
        return PriorCoder(make_prior(config), params)

    def _settings(
        self, mode: str | None, bits: int | None, overlap: int | None
    ) -> tuple[str, int, int]:
        mode = mode or ("prior" if self.has_prior else "raw")
        if mode not in MODES:
            raise UserError(f"mode '{mode}': it must be one of {', '.join(MODES)}")
        if mode == "prior" and not self.has_prior:
            raise UserError(f"{self.name} has no prior: code with mode raw, or train a prior on it")
        bits = self._shape.bits if bits is None else bits
        if bits not in self.variable_bits:
            least, most = self.variable_bits[0], self.variable_bits[-1]
            raise UserError(
                f"{bits} bits a token: {self.name} takes {most}"
                + (f" or less, down to {least}" if least < most else
                   " (train a tokenizer with model.min_bits for fewer)")
            )  # fmt: skip
        if overlap is None:  # of tokenizers of one patch tiles can share but half of it
            overlap = min(self._shape.patch_size, min(self._tile) // 2)
        return mode, bits, overlap

    # --- pixels and tokens ---

    @property
    def group(self) -> int:
        """Frames that are coded together."""
        return self._shape.frames if self._shape.frames > 1 else _FRAMES_AT_ONCE

    def _tokens(self, frames: np.ndarray, tiles: Tiles, bits: int) -> np.ndarray:
        """uint8 ``[time, tile, token, kept bits]`` of one group of frames."""
        cut = tiles.cut(frames)
        time = cut.shape[1]
        if self._shape.frames == 1:
            cut = cut.reshape(-1, 1, *cut.shape[2:])
        made = self.tokenizer.encode(cut)
        made = made.reshape(len(tiles), time, self._shape.tokens, -1)
        return np.ascontiguousarray(np.swapaxes(made, 0, 1)[..., :bits])

    def _pixels(self, tokens: np.ndarray, tiles: Tiles) -> np.ndarray:
        """uint8 ``[time, height, width, 3]`` of the tokens of one group of frames."""
        bits = np.swapaxes(tokens, 0, 1)  # [tile, time, token, bit]
        count, time = bits.shape[:2]
        bits = bits.reshape(count, time, *self._shape.grid, bits.shape[-1])
        if self._shape.frames == 1:
            bits = bits.reshape(-1, 1, *bits.shape[2:])
        made = self.tokenizer.decode(bits)
        made = made.reshape(count, time, *made.shape[2:])
        return pixels_to_bytes(tiles.join(made))

    def reconstruct(
        self, frames: np.ndarray, *, bits: int | None = None, overlap: int | None = None
    ) -> np.ndarray:
        """What `decode` gives for `encode`, without the bytes; uint8 of the shape of `frames`."""
        frames = _checked(frames)
        _, bits, overlap = self._settings("raw", bits, overlap)
        tiles = Tiles(frames.shape[1], frames.shape[2], self._tile, overlap)
        return np.concatenate(
            [
                self._pixels(self._tokens(frames[first : first + self.group], tiles, bits), tiles)
                for first in range(0, len(frames), self.group)
            ]
        )

    @property
    def _tile(self) -> tuple[int, int]:
        return self._shape.image_height, self._shape.image_width

    # --- files ---

    def encode(
        self,
        frames: np.ndarray,
        rate: fractions.Fraction | Timing | int | None = None,
        bits: int | None = None,
        mode: str | None = None,
        overlap: int | None = None,
    ) -> bytes:
        """A picture or a video as the bytes of a file.

        Args:
          frames: uint8 ``[time, height, width, 3]`` of any size.
          rate: frames a second of a video, or how long each frame is shown; None for a picture.
          bits: how many bits of a token are kept, one of `variable_bits`; None: all.
          mode: ``prior`` or ``raw``; None: with the prior if there is one.
          overlap: pixels that neighbouring tiles share; None: the side of a patch.

        Raises:
          UserError: the frames or a setting are not such.
        """
        frames = _checked(frames)
        if rate is not None and not isinstance(rate, Timing):
            rate = _fraction(rate)
        groups = (frames[i : i + self.group] for i in range(0, len(frames), self.group))
        return self.encode_groups(groups, rate=rate, bits=bits, mode=mode, overlap=overlap)

    def encode_groups(
        self,
        groups: Iterable[np.ndarray],
        *,
        rate: fractions.Fraction | Timing | Callable[[], fractions.Fraction | Timing] | None = None,
        bits: int | None = None,
        mode: str | None = None,
        overlap: int | None = None,
    ) -> bytes:
        """As `encode`, of frames that come in groups of `group`, the last maybe smaller.

        The rate may be a function, which is asked for it behind the last group.
        """
        mode, bits, overlap = self._settings(mode, bits, overlap)
        tiles: Tiles | None = None
        chunks: list[Chunk] = []
        stream = encoder = None
        pending: list[np.ndarray] = []
        count = 0

        def close() -> None:
            nonlocal pending, encoder
            tokens = np.concatenate(pending)
            payload = np.packbits(tokens).tobytes() if encoder is None else encoder.result()
            chunks.append(Chunk(len(tokens), payload, bits_checksum(tokens)))
            pending, encoder = [], None

        for frames in groups:
            frames = _checked(frames)
            if tiles is None:
                tiles = Tiles(frames.shape[1], frames.shape[2], self._tile, overlap)
                if not (callable(rate) or isinstance(rate, Timing)):
                    self._header(tiles, len(frames), rate, mode, bits)  # before hours of work
                if mode == "prior":
                    stream = self._coder.stream(len(tiles), bits)
            if frames.shape[1:3] != (tiles.height, tiles.width):
                raise UserError("the frames of a video must all have one size")
            tokens = self._tokens(frames, tiles, bits)
            if stream is not None:
                encoder = encoder or Encoder()
                for frame in tokens:
                    stream.encode(frame, encoder)
            pending.append(tokens)
            count += len(frames)
            size = sum(part.size for part in pending) // 8 if encoder is None else encoder.size()
            if size >= _CHUNK_BYTES:
                close()
        if tiles is None:
            raise UserError("there are no frames to encode")
        if pending:
            close()
        header = self._header(tiles, count, rate() if callable(rate) else rate, mode, bits)
        return b"".join([header.pack(), *(pack_chunk(chunk, header) for chunk in chunks)])

    def _header(
        self,
        tiles: Tiles,
        frames: int,
        rate: fractions.Fraction | Timing | None,
        mode: str,
        bits: int,
    ) -> Header:
        timing = rate if isinstance(rate, Timing) else None
        return Header(
            mode=mode,
            fingerprint=self.fingerprint(mode),
            height=tiles.height,
            width=tiles.width,
            frames=frames,
            rate=rate.rate if isinstance(rate, Timing) else rate,
            bits=bits,
            overlap=tiles.overlap,
            timing=timing,
        )

    def decode(self, data: bytes, name: str = "the data") -> Decoded:
        """The frames of a file; of a damaged one those that are whole, and why not all.

        Raises:
          UserError: it is no such file, of another model, or no frame is whole.
        """
        header = read_header(io.BytesIO(data), name)
        parts, problem = [], ""
        try:
            for frames in self.decode_groups(io.BytesIO(data), name):
                parts.append(frames)
        except (TruncatedFile, DamagedFile) as error:
            if not parts:
                raise
            problem = str(error)
        return Decoded(np.concatenate(parts), header, problem)

    def decode_groups(self, file: BinaryIO, name: str = "the data") -> Iterator[np.ndarray]:
        """Reads a file group by group, as `decode`.

        Yields:
          The next frames, uint8 ``[time, height, width, 3]``.

        Raises:
          TruncatedFile: the file ends early; all whole frames were given.
          DamagedFile: its bytes were changed; all frames before were given.
          UserError: it is no such file, or of another model.
        """
        header = read_header(file, name)
        self._check_header(header, name)
        tiles = Tiles(header.height, header.width, self._tile, header.overlap)
        size = len(tiles) * self._shape.tokens * header.bits  # bits of a frame

        def limit(frames: int) -> int:
            # No bit takes more than 16 bits, and the coder's end a few words.
            return frames * (-(-size // 8) if header.mode == "raw" else 2 * size) + 16

        stream = self._coder.stream(len(tiles), header.bits) if header.mode == "prior" else None
        done = 0
        for chunk in read_chunks(file, header, name, limit):
            made: list[np.ndarray] = []
            checksum = bits_checksum(np.zeros(0, np.uint8))
            for tokens in self._chunk_tokens(chunk, header, tiles, stream, name, done):
                made.append(tokens)
                checksum = bits_checksum(tokens, checksum)
            if checksum != chunk.checksum:
                raise DamagedFile(
                    f"{name} is damaged: the bits after {done} of {header.frames} frames differ "
                    "from their checksum",
                    done,
                )
            bits = np.concatenate(made)
            for first in range(0, len(bits), self.group):
                yield self._pixels(bits[first : first + self.group], tiles)
            done += chunk.frames

    def _chunk_tokens(
        self, chunk: Chunk, header: Header, tiles: Tiles, stream: Any, name: str, done: int
    ) -> Iterator[np.ndarray]:
        """The tokens of a chunk, ``[time, tile, token, kept bits]`` at a time."""
        shape = (len(tiles), self._shape.tokens, header.bits)
        problem = DamagedFile(
            f"{name} is damaged: what follows {done} of {header.frames} frames is no such data",
            done,
        )
        if stream is None:
            count = chunk.frames * int(np.prod(shape))
            if len(chunk.payload) != -(-count // 8):
                raise problem
            bits = np.unpackbits(np.frombuffer(chunk.payload, np.uint8), count=count)
            yield bits.reshape(chunk.frames, *shape)
            return
        if len(chunk.payload) % 4:
            raise problem
        decoder = Decoder(chunk.payload)
        for _ in range(chunk.frames):
            try:
                tokens = stream.decode(decoder)
            except AssertionError:  # of constriction: the bytes are none that an encoder made
                raise problem from None
            yield tokens[None]

    def _check_header(self, header: Header, name: str) -> None:
        if header.mode == "prior" and not self.has_prior:
            raise UserError(
                f"{name} was coded with a prior, and {self.name} has none: give the workdir or "
                "export of the prior as --model"
            )
        if header.fingerprint != self.fingerprint(header.mode):
            raise UserError(
                f"{name} was coded by another model ({header.fingerprint.hex()}) than {self.name} "
                f"({self.fingerprint(header.mode).hex()}): give that one with --model"
            )
        if header.height * header.width > _MOST_PIXELS:
            raise UserError(
                f"{name} claims frames of {header.height}x{header.width} pixels, more than "
                f"{_MOST_PIXELS:,d}: it is damaged"
            )
        self._settings(header.mode, header.bits, header.overlap)


def _fraction(rate: fractions.Fraction | float) -> fractions.Fraction:
    try:
        return fractions.Fraction(rate)
    except (ValueError, OverflowError, TypeError):
        raise UserError(f"a rate of {rate} frames a second: give a number") from None


def _checked(frames: np.ndarray) -> np.ndarray:
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise UserError(
            f"frames must be uint8 [time, height, width, 3], not {frames.dtype} "
            f"{list(frames.shape)}"
        )
    if frames.shape[1] * frames.shape[2] > _MOST_PIXELS:
        raise UserError(
            f"frames of {frames.shape[1]}x{frames.shape[2]}: over {_MOST_PIXELS:,d} pixels, "
            "make them smaller or cut them"
        )
    return frames
