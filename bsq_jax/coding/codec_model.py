"""The models of a codec: loaded and saved, what they can code, and which files are theirs."""

from __future__ import annotations

import functools
import hashlib
import os
from typing import Any, Self, cast

from ml_collections import ConfigDict

from bsq_jax.coding.coding_choice import CodingChoice, Settings
from bsq_jax.coding.container import Header, Origin
from bsq_jax.coding.earlier_steps import EarlierSteps, MissingModel
from bsq_jax.coding.file_encoder import Coding
from bsq_jax.coding.prior_coder import check_prior
from bsq_jax.coding.tile_choice import Tile
from bsq_jax.coding.tile_tokenizer import MOST_PIXELS, TileTokenizer
from bsq_jax.config import finalize
from bsq_jax.core.errors import UserError
from bsq_jax.core.paths import local_path
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.models.factory import make_prior
from bsq_jax.training.export import identity, is_export, save_export
from bsq_jax.training.hub import model_folder
from bsq_jax.training.saved_models import (
    TOKENIZER_FOLDER,
    exported_tokenizer,
    load_saved_model,
    read_saved_config,
    run_name,
    will_be_removed,
)
from bsq_jax.training.starter import unnamed_model


class CodecModel:
    """A tokenizer, and maybe a prior on its tokens; `Codec` codes files with them.

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
        self._others = EarlierSteps(self._workdir, cast("type[Self]", type(self)))
        self._shape, self._tiled = tokenizer.shape, TileTokenizer(tokenizer)
        self._choice = CodingChoice(self._tiled, None if prior is None else prior[0], name)
        if prior is not None:
            check_prior(make_prior(prior[0]), *self._shape.grid, self._shape.bits)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        step: int | None = None,
        weights: str = "auto",
    ) -> Self:
        """Loads a codec from the workdir or export of a prior, or of a tokenizer alone.

        Args:
          path: the folder, or an address of the Hugging Face hub, ``hf://OWNER/NAME[@REVISION]``;
            None: the starter model, which comes with the package.
          step: of a checkpoint that the workdir keeps; None: the newest complete one.
          weights: ``ema``, ``raw``, or ``auto`` for the averaged ones where there are some.

        Raises:
          UserError: the folder is neither, or damaged, or has no such step or weights.
        """
        folder = unnamed_model() if path is None else model_folder(path)
        name = run_name(folder if path is None else path)
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
        tokenizer = Tokenizer.load(exported_tokenizer(folder))
        prior = finalize(initial.config), initial.weights[which]
        origin = initial.origin | {"weights": which}
        return cls(tokenizer, prior, name=name, origin=origin, workdir=workdir)

    def save(self, path: str | os.PathLike[str], *, half: bool = False) -> None:
        """Writes an export of all that coding needs; `load` reads it.

        The prior's weights lie in ``raw.safetensors`` or ``ema.safetensors``, by what they are.

        Args:
          path: the folder.
          half: round all weights to float16: another model, of half the size, with its own files.

        Raises:
          UserError: the folder cannot be written.
        """
        if self._prior is None:
            self.tokenizer.save(path, half=half)
            return
        self.tokenizer.save(local_path(path) / TOKENIZER_FOLDER, half=half)
        name = "ema" if self._origin.get("weights") == "ema" else "raw"
        config, params = self._prior
        save_export(path, config, {name: params}, origin=self._origin, half=half)

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

    def settings(
        self,
        mode: str | None = None,
        bits: int | None = None,
        overlap: int | None = None,
        tile: Tile = None,
        memory_mb: float | None = None,
    ) -> Settings:
        """What `Codec.encode` is asked for, see there.

        Raises:
          UserError: a setting is not one of this model.
        """
        return self._choice.settings(mode, bits, overlap, tile, memory_mb)

    def coding(self, settings: Settings, height: int, width: int, *, clip: bool) -> Coding:
        """How frames of a size are coded.

        Args:
          settings: what is asked for.
          height: of the frames, pixels.
          width: of the frames, pixels.
          clip: whether there are several.

        Raises:
          UserError: such frames cannot be coded so.
        """
        mode = settings.mode
        tile, overlap, stream = self._choice.tiles(settings, height, width, clip=clip)
        origin, fingerprint = self.origin(mode), self.fingerprint(mode)
        return Coding(mode, settings.bits, overlap, fingerprint, origin, tile, stream)

    def for_file(self, header: Header, name: str = "the data") -> Self:
        """The codec that decodes a file: this one, or that of another checkpoint of its run.

        Raises:
          MissingModel: the file is of another model.
          UserError: it claims impossible frames or settings.
        """
        if header.mode == "prior" and not self.has_prior:
            raise MissingModel(
                f"{name} was coded with a prior, and {self.name} has none: give the workdir or "
                "export of the prior as --model"
            )
        codec = self
        if header.fingerprint != self.fingerprint(header.mode):
            # Of a prior's workdir all checkpoints have the same tokenizer.
            same = self.has_prior == (header.mode == "prior")
            others = self._others if same else EarlierSteps(None, type(self))
            codec = others.find(header, self, name)
        if header.height * header.width > MOST_PIXELS:
            raise UserError(
                f"{name} claims frames of {header.height}x{header.width} pixels, more than "
                f"{MOST_PIXELS:,d}: it is damaged"
            )
        codec._choice.check(header, name)
        return codec
