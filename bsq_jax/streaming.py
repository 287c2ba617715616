"""Video frame by frame: each is coded when it is there, with the keys and values of those before.

A stream gives what `Tokenizer.encode` and `Tokenizer.decode` give for the whole clip. What has been
seen is kept on the device as keys and values of each layer: with a window of w frames those of the
last w - 1 frames, so that memory and the time of a frame stay the same for ever; without one those
of all frames.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from bsq_jax.arrays import checked_bits, checked_dtype, checked_pixels
from bsq_jax.core.errors import UserError
from bsq_jax.core.pixels import to_float, to_uint8
from bsq_jax.models.attention import Past
from bsq_jax.models.positions import FrameTable
from bsq_jax.models.tokenizer import TokenizerModel, TokenizerShape


class Programs:
    """The compiled halves of a model for one frame after others.

    All streams of a tokenizer share them. A program belongs to one number of frames before and
    one batch size.

    Attributes:
      model: the network.
      params: its parameters, on the device.
    """

    def __init__(self, model: TokenizerModel, params: Any):
        """Compiles nothing yet.

        Args:
          model: the network.
          params: its parameters, on the device.

        Raises:
          UserError: tokens of the model see later frames, so that nothing can be streamed.
        """
        shape = model.shape
        if not shape.sees.streams:
            raise UserError(
                f"model.causality={shape.causality}: a token sees later frames, so this model "
                "cannot stream: give whole clips, or train one with model.causality=block_causal"
            )
        self.model = model
        self.params = params

        def apply(params: Any, *arguments: Any, method: str) -> Any:
            return model.apply({"params": params}, *arguments, method=method)

        def encode(
            params: Any, x: jax.Array, table: FrameTable, past: tuple[Past, ...]
        ) -> tuple[jax.Array, Past]:
            floats = to_float(x) if x.dtype == jnp.uint8 else x
            return apply(params, floats, table, _joined(past), method="encode_next")

        def decode(
            params: Any, x: jax.Array, table: FrameTable, past: tuple[Past, ...], as_bytes: bool
        ) -> tuple[jax.Array, Past]:
            pixels, present = apply(params, x, table, _joined(past), method="decode_next")
            return to_uint8(pixels) if as_bytes else pixels, present

        self.encode = jax.jit(encode)
        self.decode = jax.jit(decode, static_argnames="as_bytes")


class _Half(NamedTuple):
    """What encoder or decoder keeps: frames done, and keys and values of the last of them."""

    done: int = 0
    past: tuple[Past, ...] = ()

    def after(self, present: Past, window: int) -> _Half:
        """With one more frame, and without what the next one will not see."""
        past = (*self.past, present)
        return _Half(self.done + 1, past[max(len(past) - window + 1, 0) :] if window else past)


class Stream:
    """Codes frame by frame; made by `Tokenizer.stream`.

    ::

        stream = tokenizer.stream()
        for frame in frames:  # uint8 [1, height, width, 3]
            bits = stream.encode(frame)  # uint8 0/1 [1, row, column, L]
            pixels = stream.decode(bits)  # float32 in [-1, 1] [1, height, width, 3]

    Encoder and decoder remember for themselves: one machine can use the one, another the other.
    Without a window (``model.window``) each number of frames before is compiled once for all
    streams of the tokenizer; with a window of w frames there are w programs in all.
    """

    def __init__(self, programs: Programs, batch: int = 1):
        """Begins a stream of `batch` videos side by side."""
        if batch < 1:
            raise UserError(f"a stream of {batch} videos: batch must be 1 or more")
        self._programs = programs
        self._batch = batch
        self.reset()

    def reset(self) -> None:
        """Forgets all frames: the next one is the first of another video."""
        self._encoder = _Half()
        self._decoder = _Half()

    @property
    def encoded(self) -> int:
        """Frames encoded so far."""
        return self._encoder.done

    @property
    def decoded(self) -> int:
        """Frames decoded so far."""
        return self._decoder.done

    def encode(self, frame: npt.ArrayLike) -> np.ndarray:
        """Tokens of the next frame.

        Args:
          frame: ``[batch, height, width, 3]``, uint8 or floats in [-1, 1].

        Returns:
          uint8 zeros and ones ``[batch, row, column, L]``.

        Raises:
          UserError: wrong shape, type or range, or more frames than the model has positions for.
            The stream stays as it was.
        """
        shape = self._programs.model.shape
        array, _ = checked_pixels(frame, shape, clips=False)
        self._check_batch(array)
        table = _next_table(shape, self._encoder.done)
        bits, present = self._programs.encode(
            self._programs.params, array, table, self._encoder.past
        )
        result = np.asarray(bits)[:, 0]
        self._encoder = self._encoder.after(present, shape.window)
        return result

    def decode(self, bits: npt.ArrayLike, *, dtype: str = "float32") -> np.ndarray:
        """Pixels of the next frame.

        Args:
          bits: ``[batch, row, column, L]``, zeros and ones.
          dtype: ``float32`` for values in [-1, 1], ``uint8`` for bytes.

        Returns:
          ``[batch, height, width, 3]``.

        Raises:
          UserError: as `encode`, or an unknown dtype.
        """
        shape = self._programs.model.shape
        as_bytes = checked_dtype(dtype) == "uint8"
        array, _ = checked_bits(bits, shape, clips=False)
        self._check_batch(array)
        table = _next_table(shape, self._decoder.done)
        pixels, present = self._programs.decode(
            self._programs.params, array, table, self._decoder.past, as_bytes
        )
        result = np.asarray(pixels)[:, 0]
        self._decoder = self._decoder.after(present, shape.window)
        return result

    def _check_batch(self, array: np.ndarray) -> None:
        if len(array) != self._batch:
            raise UserError(
                f"a batch of {len(array)} in a stream of {self._batch}: make the stream with "
                f"stream(batch={len(array)})"
            )


def _joined(past: tuple[Past, ...]) -> Past | None:
    """Keys and values of some frames, each given by itself, along the axis of time."""
    if not past:
        return None
    keys, values = (jnp.concatenate(parts, axis=2) for parts in zip(*past, strict=True))
    return keys, values


def _next_table(shape: TokenizerShape, done: int) -> FrameTable:
    """The table of one frame after `done` others.

    Raises:
      UserError: the model has no positions for it; the message says what to do.
    """
    try:
        return shape.frame_table(1, done)
    except UserError:
        if shape.frames == 1:
            problem = "this is an image model, reset() the stream before each picture"
        else:
            problem = (
                f"this model has learned positions for {shape.frames}: reset() the stream to "
                "begin anew, or train a model with model.positions=rotary and a model.window"
            )
        raise UserError(f"frame {done + 1} of a stream: {problem}") from None
