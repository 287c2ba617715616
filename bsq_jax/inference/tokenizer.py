"""The Python API: load a tokenizer, turn pixels into bits and bits into pixels."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any, Self

import jax
import numpy as np
from ml_collections import ConfigDict

from bsq_jax.config import finalize
from bsq_jax.core.errors import UserError
from bsq_jax.core.target import platform
from bsq_jax.core.text import listed
from bsq_jax.inference.checked_arrays import (
    check_frames,
    checked_bits,
    checked_dtype,
    checked_sizes,
)
from bsq_jax.inference.computation import Computation
from bsq_jax.inference.given import Given, is_list
from bsq_jax.inference.given_pixels import given_pixels
from bsq_jax.inference.layouts import check_layout
from bsq_jax.inference.prepared import cast_matrices, check_params, frame_by_frame
from bsq_jax.inference.size_classes import CompiledPrograms
from bsq_jax.inference.streaming import Stream
from bsq_jax.inference.token_ids import from_ids, to_ids
from bsq_jax.models.factory import make_tokenizer
from bsq_jax.models.tokenizer import TokenizerModel
from bsq_jax.models.tokenizer_shape import TokenizerShape
from bsq_jax.training.export import is_export, save_export
from bsq_jax.training.hub import model_folder
from bsq_jax.training.saved_models import TOKENIZER_FOLDER, load_saved_model, read_saved_config
from bsq_jax.training.starter import unnamed_model

_log = logging.getLogger(__name__)

WEIGHTS = ("auto", "raw", "ema")


class Tokenizer:
    """A trained tokenizer.

        tokenizer = Tokenizer.load("runs/quickstart")
        bits = tokenizer.encode(images)  # uint8 0/1 [batch, row, column, L]
        pixels = tokenizer.decode(bits)  # float32 in [-1, 1] [batch, height, width, 3]
        ids = tokenizer.ids(bits)  # int64 [batch, row, column]

    Pictures may have any size. Large batches are cut into chunks of a bounded size, and so are long
    clips of models with a window. A picture gives the same tokens alone, in a batch and in a list
    of pictures of several sizes, to the bit on CPUs. With ``model.spatial_window`` pictures of
    nearly one size share compiled programs and batches; with attention over whole frames every
    size has its own (`bsq_jax.inference.size_classes`, which also says which positions are meant).
    `programs` counts them. Runs on JAX's default device.

    Attributes:
      config: the config of the model, locked.
      origin: where the weights come from: ``weights`` (raw or ema), training ``step`` and ``name``
        of the run, as far as they are known.
    """

    def __init__(self, config: ConfigDict, params: Any, origin: dict[str, Any] | None = None):
        """Wraps parameters.

        Args:
          config: a finalised config.
          params: nested dict of float32 arrays, the model's ``params``.
          origin: where they come from; kept in exports.

        Raises:
          UserError: the parameters are not those of the config's model.
        """
        self.config = config
        self.origin = dict(origin or {})
        self._saved_dtype: str = config.model.dtype  # of exports: not what this machine prefers
        self._model = frame_by_frame(make_tokenizer(config))
        self._params = params
        check_params(self._model, params)
        device_params = jax.device_put(cast_matrices(params, config.model.dtype))
        self._computation = Computation(self._model, device_params)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        weights: str = "auto",
        dtype: str | None = None,
        step: int | None = None,
    ) -> Self:
        """Loads a tokenizer from a workdir or an export.

        Args:
          path: the folder, or an address of the Hugging Face hub, ``hf://OWNER/NAME[@REVISION]``;
            None: the starter model, which comes with the package.
          weights: ``ema``, ``raw``, or ``auto`` for the averaged ones where there are some.
          dtype: ``float32`` or ``bfloat16`` to compute in. By default float32 on CPUs, and what the
            config says on accelerators. `repr` shows which; the log says so where the config says
            another. Bits are the same to the bit only in one dtype (docs/differences.md).
          step: of a checkpoint that the workdir keeps; None: the newest complete one.

        Raises:
          UserError: the folder is missing, neither of the two, damaged, or has no such weights.
        """
        folder = unnamed_model() / TOKENIZER_FOLDER if path is None else model_folder(path)
        if not folder.is_dir():
            raise UserError(f"{folder} does not exist or is not a folder: give a workdir or export")
        if weights not in WEIGHTS:
            raise UserError(f"weights='{weights}': it must be one of {', '.join(WEIGHTS)}")
        if not is_export(folder) and not (folder / "config.json").exists():
            raise UserError(
                f"{folder} is neither a workdir nor an export: there is no config.json in it"
            )
        task = read_saved_config(folder).task
        if task != "tokenizer":
            inside = folder / TOKENIZER_FOLDER
            raise UserError(f"{folder} holds a {task}; its tokenizer is in {inside}")
        for name in ("ema", "raw") if weights == "auto" else (weights,):
            initial = load_saved_model(folder, (name,), step=step)
            if name in initial.weights:
                break
        else:  # one of the two is always there
            other = "raw" if weights == "ema" else "ema"
            raise UserError(f"{folder} holds no {weights} weights: load with weights='{other}'")
        config = initial.config.copy_and_resolve_references()
        own = config.model.dtype
        if dtype is not None:
            config.model.dtype = dtype
        elif platform() == "cpu" and own != "float32":
            config.model.dtype = "float32"
            _log.info("%s: computes in float32 on this CPU; its config says %s", folder, own)
        made = cls(finalize(config), initial.weights[name], initial.origin | {"weights": name})
        if dtype is None:
            made._saved_dtype = own
        return made

    def save(self, path: str | os.PathLike[str], *, half: bool = False) -> None:
        """Writes an export that loads without the workdir: ``config.json`` and the weights.

        The weights lie in ``raw.safetensors`` or ``ema.safetensors``, by what they are.

        Args:
          path: the folder.
          half: round the weights to float16, which makes another model of half the size.

        Raises:
          UserError: the folder cannot be written.
        """
        name = "ema" if self.origin.get("weights") == "ema" else "raw"
        config = self.config.copy_and_resolve_references()
        config.model.dtype = self._saved_dtype
        save_export(path, config, {name: self._params}, origin=self.origin, half=half)

    def __repr__(self) -> str:
        """Size, bits and origin in one line."""
        shape = self._model.shape
        return (
            f"<Tokenizer {shape.image_height}x{shape.image_width}, {shape.bits} bits a patch of "
            f"{'x'.join(map(str, shape.patch))}, {self.num_params / 1e6:.1f}M parameters, "
            f"{self.config.model.dtype}, {self.origin}>"
        )

    @property
    def model(self) -> TokenizerModel:
        """The network."""
        return self._model

    @property
    def shape(self) -> TokenizerShape:
        """The numbers that fix the model."""
        return self._model.shape

    @property
    def params(self) -> Any:
        """The parameters, a nested dict of float32 arrays on the host."""
        return self._params

    @property
    def num_params(self) -> int:
        """Number of parameters."""
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(self._params))

    def encode(
        self,
        pixels: Any,
        *,
        value_range: tuple[float, float] | None = None,
        layout: str | None = None,
    ) -> Any:
        """Tokens of pictures or clips.

        Args:
          pixels: a picture, a batch of them or clips, of any size from 1x1 pixel on: an array of
            numpy or JAX or a tensor of PyTorch (on any device), uint8 or floats; the path of a
            picture or video file; a PIL image of any mode; or a list of these, of any sizes. Sides
            that are no multiples of the patch are filled up by repeating the last row and column.
          value_range: black and white of floats: ``(-1, 1)``, ``(0, 1)`` or ``(0, 255)``. Left out,
            floats count as [-1, 1], with a warning if all of them lie in [0, 1].
          layout: what the axes of arrays are: N (batch), T (time), H, W and C (channel), such as
            ``CHW``, ``NCHW`` or ``THWC``; axes in front of those are N and T. Left out: ``HWC``,
            ``NHWC`` or ``NTHWC``, by their number.

        Returns:
          uint8 zeros and ones: ``[row, column, L]`` of a picture, ``[batch, row, column, L]`` of a
          batch, ``[batch, time, row, column, L]`` of clips, also of one alone. Of a list a list of
          what each would give. With ``model.patch_time`` p a clip of 1 + k x p frames has 1 + k
          frames of tokens; one of another length is filled up with its last frame.

        Raises:
          UserError: wrong shape, type or range, a file that cannot be read, or more tokens at once
            than `bsq_jax.inference.grids.check_tokens` allows.
        """
        given = given_pixels(pixels, self._model.shape, value_range=value_range, layout=layout)
        return given.formed(self._computation.each("encode", given.arrays))

    def decode(
        self,
        bits: Any,
        *,
        size: Any = None,
        frames: int | None = None,
        dtype: str = "float32",
        layout: str | None = None,
    ) -> Any:
        """Pixels of tokens.

        Args:
          bits: zeros and ones of any integer or boolean type, as `encode` returns them; an array of
            any library.
          size: (height, width) in pixels of the pictures, which are cut to it at the bottom and on
            the right; of a list of bits also a list of sizes, one each. None: rows and columns of
            tokens times the sides of a patch.
          frames: so many of each clip, where tokens are of several frames (``model.patch_time``)
            and the last ones may be filling; None: all, 1 + k x ``patch_time`` of 1 + k frames of
            tokens.
          dtype: ``float32`` for values in [-1, 1], ``uint8`` for bytes.
          layout: the order of the axes of the result, as in `encode`; axes that it does not have
            are left out.

        Returns:
          ``[height, width, 3]``, ``[batch, height, width, 3]`` or
          ``[batch, time, height, width, 3]``; of a list a list.

        Raises:
          UserError: wrong shape, values other than 0 and 1, tokens that name no code, a size that
            does not belong to the tokens, more of them than `encode` takes, or an unknown dtype or
            layout.
        """
        what = checked_dtype(dtype)
        check_layout(layout)
        given = checked_bits(bits, self._model.shape, self._model.quantizer.layout)
        sizes = checked_sizes(size, given, self._model.shape)
        for array in given.arrays:
            check_frames(frames, array.shape[1], self._model.shape)
        cuts = [(frames, *each) for each in sizes]
        return self._decoded(what, given, given.arrays, cuts, layout)

    def reconstruct(
        self,
        pixels: Any,
        *,
        value_range: tuple[float, float] | None = None,
        layout: str | None = None,
        dtype: str = "float32",
    ) -> Any:
        """``decode(encode(pixels))``, in the size and layout of the input.

        The range is that of `decode`.
        """
        what = checked_dtype(dtype)
        given = given_pixels(pixels, self._model.shape, value_range=value_range, layout=layout)
        bits = self._computation.each("encode", given.arrays)
        return self._decoded(what, given, bits, [a.shape[1:4] for a in given.arrays], layout)

    def ids(self, bits: Any, *, group_size: int | None = None) -> Any:
        """Tokens as integers, the first bit being the most significant.

        Without a group size a token of at most 62 bits is one integer. It is unique per token, and
        with a quantizer of one stage it is the number of the code: in ``[0, 2^L)`` for BSQ and LFQ,
        in ``[0, codes)`` for FSQ, VQ (the row of the codebook) and Leech. A residual quantizer has
        the number of the first stage's code in the upper bits; ``group_size`` equal to the bits of
        a stage gives the number of each stage's code.

        Args:
          bits: of `encode`, ``[..., L]``, or the first bits of tokens, as many as can be decoded.
          group_size: bits of an integer, 1 to 62; the last has what is left. None: one integer, of
            tokens of more than 62 bits as few as can be, of about equal size.

        Returns:
          int64 ``[...]``, or ``[..., groups]`` with a group size and for more than 62 bits; of a
          list a list.

        Raises:
          UserError: as `decode`, or a group size that is out of range.
        """
        if is_list(bits):
            return [self.ids(each, group_size=group_size) for each in bits]
        quantizer, prefixes = self._model.quantizer, self._model.shape.prefixes
        return to_ids(bits, quantizer.layout, prefixes, group_size)

    def bits(self, ids: Any, *, group_size: int | None = None, length: int | None = None) -> Any:
        """The inverse of `ids`: zeros and ones that `decode` takes.

        Args:
          ids: integers of any type, as `ids` returns them.
          group_size: as it was in `ids`.
          length: bits of a token, where that is fewer than L; None: L.

        Returns:
          uint8 ``[..., L]``; of a list a list.

        Raises:
          UserError: integers that are out of range or name no code, or another number of them.
        """
        if is_list(ids):
            return [self.bits(each, group_size=group_size, length=length) for each in ids]
        quantizer, shape = self._model.quantizer, self._model.shape
        length = shape.bits if length is None else length
        if length not in shape.prefixes:
            raise UserError(f"length={length}: tokens of this model have {listed(shape.prefixes)}")
        return from_ids(ids, quantizer.layout, length, group_size)

    def encode_parts(
        self, clips: np.ndarray, *, value_range: tuple[float, float] | None = None
    ) -> np.ndarray:
        """`encode` of clips of any length, in parts as long as the model's, one after the other.

        An image model codes frame by frame.
        """
        parts = (clips[:, part] for part in _parts(clips.shape[1], self.shape.frames))
        made = [self.encode(part, value_range=value_range) for part in parts]
        return np.concatenate(made, axis=1)

    def decode_parts(self, bits: np.ndarray, *, dtype: str = "float32") -> np.ndarray:
        """`decode` of what `encode_parts` gave."""
        step = self.shape.token_frames(self.shape.frames)
        parts = (bits[:, part] for part in _parts(bits.shape[1], step))
        return np.concatenate([self.decode(part, dtype=dtype) for part in parts], axis=1)

    def stream(self, batch: int = 1) -> Stream:
        """Begins to code videos frame by frame, see `Stream`.

        Args:
          batch: number of videos side by side.

        Raises:
          UserError: tokens of this model see later frames.
        """
        return Stream(self._computation.streams, batch)

    @property
    def programs(self) -> CompiledPrograms:
        """What is compiled: ``.compiled`` so far, and ``.kept`` of each grid; may be printed."""
        return self._computation.classes.programs

    def _decoded(
        self,
        what: str,
        given: Given,
        bits: Sequence[np.ndarray],
        cuts: Sequence[tuple[int | None, int, int]],
        layout: str | None,
    ) -> Any:
        """Pixels of bits, each cut to (frames, height, width), in the form of what was given."""
        made = self._computation.each(what, bits)
        cut = [
            array[:, :frames, :height, :width]
            for array, (frames, height, width) in zip(made, cuts, strict=True)
        ]
        return given.formed(cut, layout)


def _parts(frames: int, step: int) -> list[slice]:
    return [slice(first, first + step) for first in range(0, frames, step)]
