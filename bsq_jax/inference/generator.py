"""The Python API of generation: pictures and clips from noise, classes, or parts of others."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any, Self

import jax
import numpy as np
from ml_collections import ConfigDict

from bsq_jax.config.settings import MASKED_LM, SAMPLING
from bsq_jax.core.errors import UserError
from bsq_jax.core.paths import local_path
from bsq_jax.core.sharding import make_mesh, replicate
from bsq_jax.inference.given import as_array
from bsq_jax.inference.given_pixels import SIGNED, check_own_size, given_pixels
from bsq_jax.inference.tokenizer import Tokenizer
from bsq_jax.models.factory import make_masked_lm
from bsq_jax.models.frozen_tokenizer import FrozenTokenizer
from bsq_jax.models.masked_lm.sampler import Sampler, Sampling
from bsq_jax.training.export import save_export
from bsq_jax.training.hub import model_folder
from bsq_jax.training.saved_models import (
    TOKENIZER_FOLDER,
    exported_tokenizer,
    load_saved_model,
    read_saved_config,
)


class Generator:
    """A trained masked language model with the tokenizer of its tokens.

        generator = Generator.load("runs/digits_lm")
        pictures = generator.sample(16, classes=3)  # uint8 [16, height, width, 3]
        inpainted = generator.inpaint(pictures, keep)  # keep: booleans [row, column] of tokens

    A sample depends on the seed, its number and its class alone: ``sample(4)`` gives the first four
    of ``sample(16)``, whatever the number of devices. Runs on all devices of this process.

    Attributes:
      config: the config of the model, locked.
      tokenizer: makes and decodes the tokens.
      params: the parameters, a nested dict of float32 arrays on the host.
      origin: where they come from: ``weights`` (raw or ema) and training ``step``.
    """

    def __init__(
        self,
        config: ConfigDict,
        params: Any,
        tokenizer: Tokenizer,
        origin: dict[str, Any] | None = None,
    ):
        """Wraps parameters.

        Args:
          config: a finalised config with ``task`` masked_lm.
          params: nested dict of float32 arrays, the model's ``params``.
          tokenizer: that of its tokens.
          origin: where the parameters come from; kept in exports.
        """
        self.origin = dict(origin or {})
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self._model = make_masked_lm(config)
        self._frozen = FrozenTokenizer(tokenizer.model, tokenizer.params)
        self._mesh = make_mesh(devices=jax.local_devices())
        self._sampler = functools.cache(
            lambda sampling: Sampler(self._model, self._frozen, sampling, self._mesh)
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, weights: str = "auto") -> Self:
        """Loads a generator from the workdir or export of a run with ``task`` masked_lm.

        Args:
          path: the folder, or an address of the Hugging Face hub, ``hf://OWNER/NAME[@REVISION]``.
          weights: ``ema``, ``raw``, or ``auto`` for the averaged ones where there are some.

        Raises:
          UserError: the folder is neither, or damaged, or holds another kind of model.
        """
        folder = model_folder(path)
        if not folder.is_dir():
            raise UserError(f"{folder} does not exist or is not a folder: give a workdir or export")
        if weights not in ("auto", "raw", "ema"):
            raise UserError(f"weights='{weights}': it must be one of auto, raw, ema")
        task = read_saved_config(folder).task
        if task != "masked_lm":
            raise UserError(
                f"{folder} holds a {task}, which generates nothing: give the workdir or export of "
                "a run with task masked_lm"
            )
        for name in ("ema", "raw") if weights == "auto" else (weights,):
            initial = load_saved_model(folder, (name,))
            if name in initial.weights:
                break
        else:
            raise UserError(f"{folder} holds no {weights} weights: load with weights='auto'")
        inside = exported_tokenizer(folder)
        origin = initial.origin | {"weights": name}
        return cls(initial.config, initial.weights[name], Tokenizer.load(inside), origin)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an export of model and tokenizer; `load` reads it.

        The weights lie in ``raw.safetensors`` or ``ema.safetensors``, by what they are.

        Raises:
          UserError: the folder cannot be written.
        """
        self.tokenizer.save(local_path(path) / TOKENIZER_FOLDER)
        name = "ema" if self.origin.get("weights") == "ema" else "raw"
        save_export(path, self.config, {name: self.params}, origin=self.origin)

    @property
    def classes(self) -> int:
        """Number of classes; 0 for a model without."""
        return self.config.masked_lm.classes

    @property
    def frames(self) -> int:
        """Frames that the model looks at; 1 for pictures."""
        return self.config.masked_lm.frames

    def sampling(self, **changes: Any) -> Sampling:
        """How samples are drawn: the config's settings with changes.

        Raises:
          UserError: an unknown setting, or a value out of range.
        """
        settings = {**self.config.sampling.to_dict(), "unit": self.config.masked_lm.mask_unit}
        if unknown := sorted(changes.keys() - settings.keys()):
            raise UserError(f"unknown: {', '.join(unknown)} (there are {', '.join(settings)})")
        for name, value in changes.items():
            setting = MASKED_LM["mask_unit"] if name == "unit" else SAMPLING[name]
            if wanted := setting.refusal(value):
                raise UserError(f"{name} is {value!r}: it must be {wanted}")
        sampling = Sampling(**{**settings, **changes})
        if sampling.guidance and not self.classes:
            raise UserError("guidance needs a model with classes, which this one is not")
        return sampling

    def sample(
        self,
        count: int,
        *,
        classes: int | Sequence[int] | None = None,
        frames: int | None = None,
        seed: int = 0,
        **sampling: Any,
    ) -> np.ndarray:
        """Generates pictures or clips.

        Args:
          count: how many.
          classes: one class for all, or several that samples take turns at; None: those of the
            model in turn, for models with classes. -1 stands for no class.
          frames: of a clip; None: as many as the model looks at. Longer ones see so many back.
          seed: another one gives other samples.
          **sampling: settings that differ from the config's, see `Sampling`.

        Returns:
          uint8 ``[count, height, width, 3]``, or ``[count, time, height, width, 3]`` of a model of
          clips.

        Raises:
          UserError: an unknown setting or class, or a value out of range.
        """
        parts = list(self.samples(count, classes=classes, frames=frames, seed=seed, **sampling))
        return np.concatenate(parts)

    def samples(
        self,
        count: int,
        *,
        classes: int | Sequence[int] | None = None,
        frames: int | None = None,
        seed: int = 0,
        first: int = 0,
        **sampling: Any,
    ) -> Iterator[np.ndarray]:
        """As `sample`, a batch at a time as they are made, from number `first` on."""
        if count < 1:
            raise UserError(f"{count} samples: ask for 1 or more")
        labels = self.labels(count, classes)
        length = self._length(frames)
        settings = self.sampling(**sampling)
        made = self._run(labels, length, None, None, seed, settings, first=first)
        return (clips if self.frames > 1 else clips[:, 0] for clips in made)

    def inpaint(
        self,
        pixels: Any,
        keep: Any,
        *,
        classes: int | Sequence[int] | None = -1,
        value_range: tuple[float, float] | None = None,
        layout: str | None = None,
        seed: int = 0,
        **sampling: Any,
    ) -> Any:
        """Makes parts of pictures anew, given the rest: inpainting, and editing with a class.

        The tokens that are kept stay what they are; their pixels may change a little, because the
        tokenizer's decoder sees the whole picture. Of clips a frame is made given those before it.

        Args:
          pixels: all that `Tokenizer.encode` takes; a list counts as a batch.
          keep: booleans, True where a token is kept: ``[row, column]`` for all alike, or
            ``[batch, row, column]``, or of clips ``[batch, time, row, column]``.
          classes: as in `sample`; the default is to tell none.
          value_range: of floats, as in `Tokenizer.encode`.
          layout: of the axes, as in `Tokenizer.encode`.
          seed: another one gives other parts.
          **sampling: as in `sample`.

        Returns:
          uint8 pixels in the form and layout of the input.

        Raises:
          UserError: wrong shapes, an unknown setting or class, or a value out of range.
        """
        inputs = given_pixels(
            pixels, self.tokenizer.shape, value_range=value_range, layout=layout, limit=False
        )
        check_own_size(inputs, self.tokenizer.shape)
        array, clip = inputs.joined(), inputs.clips
        stated = None if array.dtype == np.uint8 else SIGNED
        given = self.tokenizer.encode_parts(array, value_range=stated)
        count, time, rows, columns, length = given.shape
        mask = as_array(keep, "keep")
        if mask.dtype != np.bool_:
            raise UserError(f"keep is {mask.dtype}: give booleans, True for tokens that are kept")
        shapes = ((rows, columns), (count, rows, columns), (count, time, rows, columns))
        if mask.shape not in (shapes if clip else shapes[:2]):
            raise UserError(
                f"keep has shape {mask.shape}: give [{rows}, {columns}], one for each token"
            )
        if mask.ndim == 3:
            mask = mask[:, None]
        mask = np.broadcast_to(mask, (count, time, rows, columns))
        made = self._run(
            self.labels(count, classes),
            self._length(time),
            given.reshape(count, time, rows * columns, length),
            mask.reshape(count, time, rows * columns),
            seed,
            self.sampling(**sampling),
        )
        return inputs.like(np.concatenate(list(made)), layout)

    def labels(self, count: int, classes: int | Sequence[int] | None) -> np.ndarray:
        """The class of each of `count` samples, int64; -1 for none.

        Raises:
          UserError: a class that the model does not have.
        """
        if classes is None:
            classes = range(self.classes) if self.classes else -1
        wanted = [classes] if isinstance(classes, int | np.integer) else list(classes)
        if not wanted:
            raise UserError("no class was named: leave classes out for all of them")
        for label in wanted:
            if not -1 <= label < max(self.classes, 0):
                raise UserError(
                    f"class {label} does not exist: this model has "
                    + (f"classes 0 to {self.classes - 1}" if self.classes else "no classes")
                )
        return np.resize(np.array(wanted), count)

    def _length(self, frames: int | None) -> int:
        length = self.frames if frames is None else frames
        if length < 1 or (length > 1 and self.frames == 1):
            raise UserError(
                f"{length} frames: "
                + ("this model makes pictures" if self.frames == 1 else "give 1 or more")
            )
        return length

    def _run(
        self,
        labels: np.ndarray,
        frames: int,
        given: np.ndarray | None,
        keep: np.ndarray | None,
        seed: int,
        sampling: Sampling,
        *,
        first: int = 0,
    ) -> Iterator[np.ndarray]:
        """Pixels uint8 ``[batch, time, height, width, 3]``, a batch at a time."""
        if not 0 <= seed < 2**31:
            raise UserError(f"seed {seed}: it must be from 0 to 2**31 - 1")
        sampler = self._sampler(sampling)
        made = sampler(
            *(self._placed, {}, labels),
            seed=seed,
            frames=frames,
            given=given,
            keep=keep,
            pixels=False,
            first=first,
        )
        grid = self.tokenizer.shape.grid
        for bits, _ in made:
            tokens = bits.reshape(*bits.shape[:2], *grid, bits.shape[-1])
            yield self.tokenizer.decode_parts(tokens, dtype="uint8")

    @functools.cached_property
    def _placed(self) -> Any:
        return replicate(self.params, self._mesh)
