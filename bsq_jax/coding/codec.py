"""A tokenizer and a prior as a codec of files of pictures and videos of any size."""

from __future__ import annotations

import dataclasses
import fractions
import functools
import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np

from bsq_jax.coding.codec_model import CodecModel
from bsq_jax.coding.coded_tokens import CodedTokens
from bsq_jax.coding.container import DamagedFile, Header, TruncatedFile, read_header
from bsq_jax.coding.file_decoder import FileDecoder
from bsq_jax.coding.file_encoder import FileEncoder
from bsq_jax.coding.frame_source import open_given
from bsq_jax.coding.prior_coder import PriorCoder, make_prior_coder
from bsq_jax.coding.tile_choice import Tile
from bsq_jax.coding.tile_tokenizer import checked_frames
from bsq_jax.core.errors import UserError
from bsq_jax.core.once import say_once
from bsq_jax.media.timing import Timing, seconds_of
from bsq_jax.models.factory import make_prior


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


class Codec(CodecModel):
    """A tokenizer, and maybe a prior on its tokens, as a codec of files.

        codec = Codec.load("runs/prior")  # or a tokenizer alone
        data = codec.encode(frames)  # uint8 [time, height, width, 3]
        frames = codec.decode(data).frames

    Attributes:
      tokenizer: the tokenizer.
      has_prior: whether there is a prior.
      name: what to call it.
    """

    @functools.cached_property
    def _coder(self) -> PriorCoder:
        assert self._prior is not None
        config, params = self._prior
        return make_prior_coder(make_prior(config), params)

    @property
    def group(self) -> int:
        """Frames that are coded together."""
        return self._tiled.group

    def reconstruct(
        self,
        frames: Any,
        *,
        bits: int | None = None,
        mode: str | None = None,
        overlap: int | None = None,
        tile: Tile = None,
        memory_mb: float | None = None,
        value_range: tuple[float, float] | None = None,
        layout: str | None = None,
    ) -> np.ndarray:
        """What `decode` gives for `encode`, without the bytes.

        Args are those of `encode`; returns uint8 ``[time, height, width, 3]``.
        """
        settings = self.settings(mode, bits, overlap, tile, memory_mb)
        made: list[np.ndarray] = []
        with open_given(frames, value_range=value_range, layout=layout) as given:
            for group in given.groups(self.group):
                height, width = group.shape[1:3]
                if not made:
                    coding = self.coding(settings, height, width, clip=len(group) > 1)
                    tiles = self._tiled.tiles(height, width, coding.tile, coding.overlap)
                    coder = self._tiled.coder(tiles, stream=coding.stream)
                made.append(coder.decode(coder.encode(group, coding.bits), len(group)))
        return np.concatenate(made)

    def coded_tokens(
        self,
        frames: Any,
        rate: fractions.Fraction | Timing | None = None,
        *,
        bits: int | None = None,
        mode: str | None = None,
    ) -> CodedTokens:
        """The file of `encode` with its tokens, which can be looked at, changed and decoded.

        Args are those of `encode`, for frames that are held in memory; so are their tokens.

        Raises:
          UserError: the frames or a setting are not such.
        """
        settings = self.settings(mode, bits)
        coder = self._coder if settings.mode == "prior" else None
        with open_given(frames) as given:
            groups = list(given.groups(self.group))
        height, width = groups[0].shape[1:3]
        coding = self.coding(settings, height, width, clip=len(groups[0]) > 1)
        return CodedTokens(self._tiled, coder, coding, groups, rate)

    # --- files ---

    def encode(
        self,
        frames: Any,
        rate: fractions.Fraction | Timing | int | None = None,
        bits: int | None = None,
        mode: str | None = None,
        overlap: int | None = None,
        *,
        tile: Tile = None,
        memory_mb: float | None = None,
        value_range: tuple[float, float] | None = None,
        layout: str | None = None,
    ) -> bytes:
        """A picture or a video as the bytes of a file.

        Args:
          frames: of any size: uint8 ``[time, height, width, 3]`` or a picture
            ``[height, width, 3]``; arrays, tensors and PIL images as `Tokenizer.encode` takes them;
            a list of pictures, the frames; or the path of a picture, an animation or a video.
          rate: frames a second of a video, or how long each frame is shown; None for a picture, and
            for what a file says.
          bits: how many bits of a token are kept, one of `variable_bits`; None: all.
          mode: ``prior`` or ``raw``; None: with the prior if there is one.
          overlap: pixels that neighbouring tiles share; None: the side of a patch, and up to half a
            window between large tiles of models with ``model.spatial_window``.
          tile: 0 to code each frame as a whole, the side of square tiles in pixels, or (height,
            width). None: tiles of the size that the model was built for; of models with
            ``model.spatial_window`` whole frames of up to `inference.grids.MOST_TOKENS` tokens, and
            of larger ones tiles of at most so many.
          memory_mb: as `tile` None, with as many tokens as so many megabytes hold (see
            `tile_choice.bytes_a_token`; without weights, frames and JAX itself).
          value_range: black and white of floats, as in `Tokenizer.encode`; they are rounded to
            bytes.
          layout: of the axes of arrays, as in `Tokenizer.encode`.

        Raises:
          UserError: the frames or a setting are not such, or a file cannot be read.
        """
        if rate is not None and not isinstance(rate, Timing):
            rate = _fraction(rate)
        if removal := self.removal(mode):
            say_once(f"{removal}: codec.save(FOLDER) keeps the model that decodes its files")
        with open_given(frames, value_range=value_range, layout=layout) as given:
            return self.encode_groups(
                given.groups(self.group),
                rate=given.rate if rate is None else rate,
                bits=bits,
                mode=mode,
                overlap=overlap,
                tile=tile,
                memory_mb=memory_mb,
            )

    def encode_groups(
        self,
        groups: Iterable[np.ndarray],
        *,
        rate: fractions.Fraction | Timing | Callable[[], fractions.Fraction | Timing] | None = None,
        bits: int | None = None,
        mode: str | None = None,
        overlap: int | None = None,
        tile: Tile = None,
        memory_mb: float | None = None,
        shown: bool = False,
    ) -> bytes:
        """As `encode`, of frames that come in groups of `group`, the last maybe smaller.

        The rate may be a function, which is asked for it behind the last group. With `shown`,
        progress is shown where a frame has many tiles.
        """
        settings = self.settings(mode, bits, overlap, tile, memory_mb)
        coder = self._coder if settings.mode == "prior" else None
        encoder = None
        for frames in groups:
            if encoder is None:
                height, width = checked_frames(frames).shape[1:3]
                coding = self.coding(settings, height, width, clip=len(frames) > 1)
                encoder = FileEncoder(self._tiled, coder, coding, (height, width), shown=shown)
                if not (callable(rate) or isinstance(rate, Timing)):
                    encoder.header(len(frames), rate)  # an impossible rate shows before long work
            encoder.add(frames)
        if encoder is None:
            raise UserError("there are no frames to encode")
        return encoder.finish(rate() if callable(rate) else rate)

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

    def decode_groups(
        self, file: BinaryIO, name: str = "the data", *, shown: bool = False
    ) -> Iterator[np.ndarray]:
        """Reads a file group by group, as `decode`; `shown` is that of `encode_groups`.

        Yields:
          The next frames, uint8 ``[time, height, width, 3]``.

        Raises:
          TruncatedFile: the file ends early; all whole frames were given.
          DamagedFile: its bytes were changed; all frames before were given.
          UserError: it is no such file, or of another model.
        """
        header = read_header(file, name)
        yield from self.for_file(header, name)._groups_of(file, header, name, shown)

    def _groups_of(
        self, file: BinaryIO, header: Header, name: str, shown: bool
    ) -> Iterator[np.ndarray]:
        coder = self._coder if header.mode == "prior" else None
        yield from FileDecoder(self._tiled, coder, header, name, shown=shown).groups(file)


def _fraction(rate: fractions.Fraction | float) -> fractions.Fraction:
    try:
        return fractions.Fraction(rate)
    except (ValueError, OverflowError, TypeError):
        raise UserError(f"a rate of {rate} frames a second: give a number") from None
