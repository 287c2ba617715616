"""Video frame by frame: each is coded when it is there, with the keys and values of those before.

A stream gives what `Tokenizer.encode` and `Tokenizer.decode` give for the whole clip: on CPUs to
the bit; on other devices up to the order of sums, which there depends on the number of frames that
are computed at once, so that a latent close to 0 may give the other bit. What has been seen is kept
on the device as keys and values of each layer: with a window of w frames those of the last w - 1
frames, so that memory and the time of a frame stay the same for ever; without one those of all
frames.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.core.once import say_once
from bsq_jax.core.pixels import to_float, to_uint8
from bsq_jax.core.target import full_precision, platform
from bsq_jax.inference.checked_arrays import (
    checked_bits,
    checked_dtype,
    chunks,
    filled,
)
from bsq_jax.inference.given_pixels import given_pixels
from bsq_jax.models.attention.self_attention import KVCache
from bsq_jax.models.positions import FramePositions, check_length
from bsq_jax.models.tokenizer import TokenizerModel

MOST_FRAMES = 16  # frames that are computed at once where a model has a window


class Programs:
    """The compiled halves of a model for some frames after others.

    All streams of a tokenizer share them. A program belongs to one batch size, one number of frames
    and one number of frames before.

    Attributes:
      shape: of the model.
      layout: of its tokens.
    """

    def __init__(self, model: TokenizerModel, params: Any):
        """Compiles nothing yet.

        Args:
          model: the network.
          params: its parameters, on the device.

        Raises:
          UserError: tokens of the model see later frames, so that nothing can be streamed.
        """
        self.shape, self.layout = model.shape, model.quantizer.layout
        if not self.shape.visibility.streams:
            raise UserError(
                f"model.causality={self.shape.causality}: a token sees later frames, so this model "
                "cannot stream: give whole clips, or train one with model.causality=block_causal"
            )
        self._params = params

        def apply(
            method: str, params: Any, x: jax.Array, positions: FramePositions, past: Any
        ) -> Any:
            with full_precision(model.dtype):
                applied: Any = model.apply({"params": params}, x, positions, past, method=method)
            out, present = applied
            return out, _kept(past, present, self.shape.window)

        def encode(params: Any, x: jax.Array, positions: FramePositions, past: Any) -> Any:
            floats = to_float(x) if x.dtype == jnp.uint8 else x
            return apply("encode_next", params, floats, positions, past)

        def decode(params: Any, x: jax.Array, positions: FramePositions, past: Any) -> Any:
            return apply("decode_next", params, x, positions, past)

        def decode_uint8(params: Any, x: jax.Array, positions: FramePositions, past: Any) -> Any:
            pixels, past = decode(params, x, positions, past)
            return to_uint8(pixels), past

        functions = {"encode": encode, "float32": decode, "uint8": decode_uint8}
        # A cache that neither grows nor shrinks gives its memory to the next one.
        self._functions: dict[tuple[str, bool], Any] = {
            (what, full): jax.jit(function, donate_argnames="past" if full else ())
            for what, function in functions.items()
            for full in (False, True)
        }

    def compiled(self) -> int:
        """Number of programs so far."""
        return sum(function._cache_size() for function in self._functions.values())

    def next(self, what: str, x: np.ndarray, cache: StreamCache) -> tuple[np.ndarray, StreamCache]:
        """Codes the next frames.

        Args:
          what: ``encode``, or the type of the pixels to decode to, ``float32`` or ``uint8``.
          x: checked pixels or bits, ``[batch, time, ...]``.
          cache: of the frames before; not to be used again.

        Returns:
          Bits or pixels ``[batch, time, ...]``, and the cache after these frames.

        Raises:
          UserError: the model has no positions for these frames.
        """
        count = x.shape[1]
        half = "encoder" if what == "encode" else "decoder"
        positions = self.shape.frame_positions(count, cache.done, half=half)
        full = cache.past is not None and cache.past[0].shape[2] == self.shape.window - 1
        function = self._functions[what, full]
        out, past = function(self._params, filled(x, self.shape), positions, cache.past)
        return np.asarray(out)[: len(x)], StreamCache(cache.done + count, past)

    def clip(self, what: str, x: np.ndarray) -> np.ndarray:
        """Codes clips of any length, a bounded number of frames at a time; as `next`."""
        cache, parts = StreamCache(), []
        for chunk in chunks(x.shape[1], MOST_FRAMES):
            part, cache = self.next(what, x[:, chunk], cache)
            parts.append(part)
        return np.concatenate(parts, axis=1)


class StreamCache(NamedTuple):
    """KV cache of an encoder or a decoder.

    Attributes:
      done: number of frames coded so far.
      past: keys and values of the frames that the next one attends to.
    """

    done: int = 0
    past: KVCache | None = None


def _kept(past: KVCache | None, present: KVCache, window: int) -> KVCache | None:
    """Keys and values that the next frame will see, ``[layer, batch, time, ...]``."""
    if window == 1:
        return None
    if past is None:
        keys, values = present
    else:
        keys, values = (jnp.concatenate(pair, axis=2) for pair in zip(past, present, strict=True))
    last = slice(1 - window if window else None, None)
    return keys[:, :, last], values[:, :, last]


class Stream:
    """Codes frame by frame; made by `Tokenizer.stream`.

    ::

        stream = tokenizer.stream()
        for frame in frames:  # uint8 [1, height, width, 3]
            bits = stream.encode(frame)  # uint8 0/1 [1, row, column, L]
            pixels = stream.decode(bits)  # float32 in [-1, 1] [1, height, width, 3]

    Encoder and decoder keep separate state, so that they may run on two machines.
    Without a window (``model.window``) each number of frames before is compiled once for all
    streams of the tokenizer; with a window of w frames there are w programs in all.
    """

    def __init__(self, programs: Programs, batch: int = 1):
        """Begins a stream of `batch` videos side by side."""
        if batch < 1:
            raise UserError(f"a stream of {batch} videos: batch must be 1 or more")
        if platform() != "cpu":
            say_once(
                f"stream: on a {platform()} sums are taken in another order for a frame than for a "
                "clip, so that single bits may differ from those of the whole clip"
            )
        self._programs = programs
        self._batch = batch
        self.reset()

    def reset(self) -> None:
        """Forgets all frames: the next one is the first of another video."""
        self._encoder = StreamCache()
        self._decoder = StreamCache()

    @property
    def encoded(self) -> int:
        """Frames encoded so far."""
        return self._encoder.done

    @property
    def decoded(self) -> int:
        """Frames decoded so far."""
        return self._decoder.done

    def encode(
        self,
        frame: Any,
        *,
        value_range: tuple[float, float] | None = None,
        layout: str | None = None,
    ) -> Any:
        """Tokens of the next frame.

        Args:
          frame: ``[batch, height, width, 3]``; of a single video also a picture without a batch, of
            several a list of pictures: all that `Tokenizer.encode` takes.
          value_range: of floats, as in `Tokenizer.encode`.
          layout: of the axes, as in `Tokenizer.encode`.

        Returns:
          uint8 zeros and ones ``[batch, row, column, L]``, in the form of the frame.

        Raises:
          UserError: wrong shape, type or range, or more frames than the model has positions for.
            The stream stays as it was.
        """
        given = given_pixels(
            frame, self._programs.shape, value_range=value_range, layout=layout, clips=False
        )
        array = given.joined()
        self._check(array, self._encoder)
        bits, self._encoder = self._programs.next("encode", array, self._encoder)
        return given.like(bits)

    def decode(self, bits: Any, *, dtype: str = "float32") -> Any:
        """Pixels of the next frame.

        Args:
          bits: ``[batch, row, column, L]``, zeros and ones; or as `encode` returned them.
          dtype: ``float32`` for values in [-1, 1], ``uint8`` for bytes.

        Returns:
          ``[batch, height, width, 3]``, in the form of the bits.

        Raises:
          UserError: as `encode`, or an unknown dtype.
        """
        programs = self._programs
        given = checked_bits(bits, programs.shape, programs.layout, clips=False)
        array = given.joined()
        self._check(array, self._decoder)
        pixels, self._decoder = self._programs.next(checked_dtype(dtype), array, self._decoder)
        return given.like(pixels)

    def _check(self, array: np.ndarray, cache: StreamCache) -> None:
        if len(array) != self._batch:
            raise UserError(
                f"a batch of {len(array)} in a stream of {self._batch}: make the stream with "
                f"stream(batch={len(array)})"
            )
        shape = self._programs.shape
        try:
            check_length(shape.positions, cache.done, shape.frames)
        except UserError:
            if shape.frames == 1:
                problem = "this is an image model, reset() the stream before each picture"
            else:
                problem = (
                    f"this model has learned positions for {shape.frames}: reset() the stream to "
                    "begin anew, or train a model with model.positions=rotary and a model.window"
                )
            raise UserError(f"frame {cache.done + 1} of a stream: {problem}") from None
