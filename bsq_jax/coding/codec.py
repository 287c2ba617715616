"""A tokenizer and a prior as a codec of files of pictures and videos of any size."""

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

from bsq_jax.coding.container import DamagedFile, Header, Origin, TruncatedFile, read_header
from bsq_jax.coding.earlier_steps import EarlierSteps
from bsq_jax.coding.file_decoder import FileDecoder
from bsq_jax.coding.file_encoder import Coding, FileEncoder
from bsq_jax.coding.frame_source import open_given
from bsq_jax.coding.prior_coder import PriorCoder, check_prior
from bsq_jax.coding.tile_tokenizer import MOST_PIXELS, TileTokenizer, checked_frames
from bsq_jax.config import finalize
from bsq_jax.core.errors import UserError
from bsq_jax.core.once import say_once
from bsq_jax.core.paths import local_path
from bsq_jax.core.text import listed
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.media.timing import Timing, seconds_of
from bsq_jax.models.factory import make_prior
from bsq_jax.training.export import identity, is_export, save_export
from bsq_jax.training.saved_models import (
    TOKENIZER_FOLDER,
    load_saved_model,
    read_saved_config,
    run_name,
    will_be_removed,
)

MODES = ("prior", "raw")


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
        workdir: str | os.PathLike[str] | None = None,
    ):
        """Puts a codec together.

        Args:
          tokenizer: the tokenizer.
          prior: a prior's config and its parameters.
          name: what to call it.
          origin: where the prior's parameters come from: ``weights`` (raw or ema), training
            ``step`` and ``name`` of the run; kept in exports, and named in files.
          workdir: of the run that they are a checkpoint of; files of its other checkpoints are then
            decoded too. None: there are no others.

        Raises:
          UserError: the prior is for other tokens.
        """
        self.tokenizer, self.name = tokenizer, name
        self.has_prior = prior is not None
        self._prior, self._origin = prior, dict(origin or {})
        self._workdir = None if workdir is None else local_path(workdir)
        self._others = EarlierSteps(self._workdir, type(self).load)
        self._shape, self._tiled = tokenizer.shape, TileTokenizer(tokenizer)
        if prior is not None:
            check_prior(make_prior(prior[0]), *self._shape.grid, self._shape.bits)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, step: int | None = None, weights: str = "auto"
    ) -> Self:
        """Loads a codec from the workdir or export of a prior, or of a tokenizer alone.

        Args:
          path: the folder.
          step: of a checkpoint that the workdir keeps; None: the newest complete one.
          weights: ``ema``, ``raw``, or ``auto`` for the averaged ones where there are some.

        Raises:
          UserError: the folder is neither, or damaged, or has no such step or weights.
        """
        folder = local_path(path)
        name = run_name(folder)
        if not folder.is_dir():
            raise UserError(f"{folder} does not exist or is not a folder: give a workdir or export")
        task = read_saved_config(folder).task
        workdir = None if is_export(folder) else folder
        if task == "tokenizer":
            tokenizer = Tokenizer.load(folder, weights=weights, step=step)
            return cls(tokenizer, name=name, workdir=workdir)
        if task != "prior":
            raise UserError(
                f"{folder} holds a {task}, which codes nothing: give a prior, or the tokenizer in "
                f"{folder / TOKENIZER_FOLDER}"
            )
        initial = load_saved_model(folder, ("raw", "ema"), step=step)
        which = ("ema" if "ema" in initial.weights else "raw") if weights == "auto" else weights
        if which not in initial.weights:
            raise UserError(f"{folder} holds no {which} weights: load with weights='auto'")
        tokenizer = Tokenizer.load(folder / TOKENIZER_FOLDER)
        prior = finalize(initial.config), initial.weights[which]
        origin = initial.origin | {"weights": which}
        return cls(tokenizer, prior, name=name, origin=origin, workdir=workdir)

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
        return self._shape.prefixes

    def bits_of_stages(self, stages: int) -> int:
        """Bits a token of its first stages, for tokenizers with residual quantization.

        Raises:
          UserError: there are no stages, or not as many.
        """
        layout = self.tokenizer.model.quantizer.layout
        if layout.stages == 1:
            raise UserError(
                f"{stages} stages of a token: {self.name} has no residual stages (train a "
                "tokenizer with quantizer.stages for them)"
            )
        if not 1 <= stages <= layout.stages:
            raise UserError(
                f"{stages} stages of a token: the tokens of {self.name} have {layout.stages}"
            )
        return stages * layout.bits

    def origin(self, mode: str | None = None) -> Origin | None:
        """Which step of which model codes files of a mode; None where the model does not say.

        Args:
          mode: ``prior`` or ``raw``; None: with the prior if there is one.
        """
        prior = self.has_prior and mode != "raw"
        source = self._origin if prior else self.tokenizer.origin
        name, step = source.get("name"), source.get("step")
        if not isinstance(name, str) or not isinstance(step, int):
            return None
        return Origin.of(name, step, averaged=source.get("weights") == "ema")

    def removal(self, mode: str | None = None) -> str:
        """Why files of this model will lack a model that decodes them, for a message.

        The model is a checkpoint of a run that goes on and removes its older checkpoints. `save`
        keeps the model.

        Args:
          mode: ``prior`` or ``raw``; None: with the prior if there is one.

        Returns:
          Which step is removed and why; empty where the model stays.
        """
        origin = self.origin(mode)
        if self._workdir is None or origin is None or (self.has_prior and mode == "raw"):
            return ""  # the tokenizer in the workdir of a prior stays
        reason = will_be_removed(self._workdir, origin.step)
        return f"{origin} will be removed ({reason})" if reason else ""

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

    def settings(
        self, mode: str | None, bits: int | None, overlap: int | None
    ) -> tuple[str, int, int]:
        """Mode, bits and overlap of `encode`, each by itself where it is None.

        Raises:
          UserError: a setting is not one of this model.
        """
        mode = mode or ("prior" if self.has_prior else "raw")
        if mode not in MODES:
            raise UserError(f"mode '{mode}': it must be one of {', '.join(MODES)}")
        if mode == "prior" and not self.has_prior:
            raise UserError(f"{self.name} has no prior: code with mode raw, or train a prior on it")
        bits = self._shape.bits if bits is None else bits
        if bits not in self.variable_bits:
            able = self.variable_bits
            more = "" if len(able) > 1 else (
                " (train a tokenizer with model.min_bits or quantizer.stages for fewer)"
            )  # fmt: skip
            raise UserError(f"{bits} bits a token: {self.name} takes {listed(able)}{more}")
        if overlap is None:  # of tokenizers of one patch tiles can share but half of it
            overlap = min(self._shape.patch_size, min(self._tiled.tile) // 2)
        self._tiled.tiles(*self._tiled.tile, overlap)  # refuses what is no overlap of its tiles
        return mode, bits, overlap

    @property
    def group(self) -> int:
        """Frames that are coded together."""
        return self._tiled.group

    def reconstruct(
        self,
        frames: Any,
        *,
        bits: int | None = None,
        overlap: int | None = None,
        value_range: tuple[float, float] | None = None,
        layout: str | None = None,
    ) -> np.ndarray:
        """What `decode` gives for `encode`, without the bytes.

        Args are those of `encode`; returns uint8 ``[time, height, width, 3]``.
        """
        _, bits, overlap = self.settings("raw", bits, overlap)
        with open_given(frames, value_range=value_range, layout=layout) as given:
            made = []
            for group in given.groups(self.group):
                tiles = self._tiled.tiles(group.shape[1], group.shape[2], overlap)
                made.append(self._tiled.decode(self._tiled.encode(group, tiles, bits), tiles))
        return np.concatenate(made)

    # --- files ---

    def encode(
        self,
        frames: Any,
        rate: fractions.Fraction | Timing | int | None = None,
        bits: int | None = None,
        mode: str | None = None,
        overlap: int | None = None,
        *,
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
          overlap: pixels that neighbouring tiles share; None: the side of a patch.
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
            )

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
        mode, bits, overlap = self.settings(mode, bits, overlap)
        coding = Coding(mode, bits, overlap, self.fingerprint(mode), self.origin(mode))
        encoder = FileEncoder(self._tiled, self._coder if mode == "prior" else None, coding)
        for number, frames in enumerate(groups):
            if number == 0 and not (callable(rate) or isinstance(rate, Timing)):
                encoder.begin(*checked_frames(frames).shape[1:3])
                encoder.header(len(frames), rate)  # an impossible rate shows before hours of work
            encoder.add(frames)
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
        yield from self.for_file(header, name)._groups_of(file, header, name)

    def _groups_of(self, file: BinaryIO, header: Header, name: str) -> Iterator[np.ndarray]:
        coder = self._coder if header.mode == "prior" else None
        yield from FileDecoder(self._tiled, coder, header, name).groups(file)

    def for_file(self, header: Header, name: str = "the data") -> Codec:
        """The codec that decodes a file: this one, or that of another checkpoint of its run.

        Raises:
          UserError: the file is of another model, or claims impossible frames.
        """
        if header.mode == "prior" and not self.has_prior:
            raise UserError(
                f"{name} was coded with a prior, and {self.name} has none: give the workdir or "
                "export of the prior as --model"
            )
        codec: Codec = self
        if header.fingerprint != self.fingerprint(header.mode):
            # Of a prior's workdir all checkpoints have the same tokenizer.
            same = self.has_prior == (header.mode == "prior")
            others = self._others if same else EarlierSteps(None, type(self).load)
            codec = others.find(header, self, name)
        if header.height * header.width > MOST_PIXELS:
            raise UserError(
                f"{name} claims frames of {header.height}x{header.width} pixels, more than "
                f"{MOST_PIXELS:,d}: it is damaged"
            )
        codec.settings(header.mode, header.bits, header.overlap)
        return codec


def _fraction(rate: fractions.Fraction | float) -> fractions.Fraction:
    try:
        return fractions.Fraction(rate)
    except (ValueError, OverflowError, TypeError):
        raise UserError(f"a rate of {rate} frames a second: give a number") from None
