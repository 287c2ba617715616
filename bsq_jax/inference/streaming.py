"""Video frame by frame: each is coded when it is there, with the keys and values of those before.

A stream gives what `Tokenizer.encode` and `Tokenizer.decode` give for the whole clip: on CPUs to
the bit; on other devices up to the order of sums, which there depends on the number of frames that
are computed at once, so that a latent close to 0 may give the other bit. What has been seen is kept
on the device as keys and values of each layer: with a window of w frames those of the last w - 1
frames, so that memory and the time of a frame stay the same for ever; without one those of all
frames.
"""

from __future__ import annotations

import math
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
    checked_sizes,
    chunks,
    filled,
    least_batch,
)
from bsq_jax.inference.given import Given
from bsq_jax.inference.given_pixels import given_pixels
from bsq_jax.inference.grids import (
    Grid,
    Pictures,
    Size,
    frames_at_once,
    say_what_another_size_means,
    unit_of,
    whole_units,
)
from bsq_jax.inference.size_classes import SizeClasses
from bsq_jax.models.attention.self_attention import KVCache
from bsq_jax.models.positions import FramePositions, check_length
from bsq_jax.models.tokenizer import TokenizerModel


class Programs:
    """The compiled halves of a model for some frames after others.

    All streams of a tokenizer share them. A program belongs to one grid, one batch size, one number
    of frames and one number of frames before.

    Attributes:
      shape: of the model.
      layout: of its tokens.
      classes: which grids are computed.
    """

    def __init__(self, model: TokenizerModel, params: Any, classes: SizeClasses):
        """Compiles nothing yet.

        Args:
          model: the network.
          params: its parameters, on the device.
          classes: which grids are computed; they keep the programs.

        Raises:
          UserError: tokens of the model see later frames, so that nothing can be streamed.
        """
        self.shape, self.layout, self.classes = model.shape, model.quantizer.layout, classes
        if not self.shape.visibility.streams:
            raise UserError(
                f"model.causality={self.shape.causality}: a token sees later frames, so this model "
                "cannot stream: give whole clips, or train one with model.causality=block_causal"
            )
        self._params = params

        def apply(
            method: str,
            params: Any,
            x: jax.Array,
            positions: FramePositions,
            past: Any,
            sizes: jax.Array | None,
        ) -> Any:
            with full_precision(model.dtype):
                applied: Any = model.apply(
                    {"params": params}, x, positions, past, sizes, method=method
                )
            out, present = applied
            return out, _kept(past, present, self.shape.window)

        def encode(params: Any, x: jax.Array, *others: Any) -> Any:
            floats = to_float(x) if x.dtype == jnp.uint8 else x
            return apply("encode_next", params, floats, *others)

        def decode(params: Any, x: jax.Array, *others: Any) -> Any:
            return apply("decode_next", params, x, *others)

        def decode_uint8(params: Any, x: jax.Array, *others: Any) -> Any:
            pixels, past = decode(params, x, *others)
            return to_uint8(pixels), past

        self.functions = {"encode": encode, "float32": decode, "uint8": decode_uint8}

    def next(
        self,
        what: str,
        x: np.ndarray,
        cache: StreamCache,
        grid: Grid,
        sizes: np.ndarray | None = None,
    ) -> tuple[np.ndarray, StreamCache]:
        """Codes the next frames.

        Args:
          what: ``encode``, or the type of the pixels to decode to, ``float32`` or ``uint8``.
          x: checked pixels or bits, ``[batch, time, ...]``, of this grid.
          cache: of the frames before; not to be used again.
          grid: (rows, columns) that is computed.
          sizes: int32 ``[batch, 2]``, those of each picture, if they may be smaller; the same for
            all frames.

        Returns:
          Bits or pixels ``[batch, time, ...]``, and the cache after these frames.

        Raises:
          UserError: the model has no positions for these frames.
        """
        count, least = x.shape[1], least_batch(math.prod(grid))
        half = "encoder" if what == "encode" else "decoder"
        positions = self.shape.frame_positions(count, cache.done, grid, half)
        rows, real = filled(x, least), None if sizes is None else filled(sizes, least)
        before = 0 if cache.past is None else cache.past[0].shape[2]
        # A cache that neither grows nor shrinks gives its memory to the next one.
        full = cache.past is not None and before == self.shape.window - 1
        key = "next", what, rows.shape[:2], rows.dtype, rows.shape[4], real is None, before
        donated = {"donate_argnums": 3} if full else {}
        function = self.classes.program(grid, key, self.functions[what], **donated)
        out, past = function(self._params, rows, positions, cache.past, real)
        return np.asarray(out)[: len(x)], StreamCache(cache.done + count, past)

    def clip(
        self, what: str, x: np.ndarray, grid: Grid, sizes: np.ndarray | None = None
    ) -> np.ndarray:
        """Codes clips of any length, a bounded number of frames at a time; as `next`."""
        cache, parts = StreamCache(), []
        for chunk in chunks(x.shape[1], frames_at_once(self.shape, x.shape[1], math.prod(grid))):
            part, cache = self.next(what, x[:, chunk], cache, grid, sizes)
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


class _Half(NamedTuple):
    """The state of the encoder or the decoder of a stream.

    Attributes:
      cache: of the frames so far.
      size: (height, width) of the frames, or (rows, columns) of the tokens; None before the first.
      grid: (rows, columns) that is computed.
    """

    cache: StreamCache = StreamCache()
    size: Size | None = None
    grid: Grid = (0, 0)


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
        """Forgets all frames: the next one is the first of another video, of any size."""
        self._encoder = _Half()
        self._decoder = _Half()

    @property
    def encoded(self) -> int:
        """Frames encoded so far."""
        return self._encoder.cache.done

    @property
    def decoded(self) -> int:
        """Frames decoded so far."""
        return self._decoder.cache.done

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
            several a list of pictures: all that `Tokenizer.encode` takes. Of any size, which all
            frames of a stream share.
          value_range: of floats, as in `Tokenizer.encode`.
          layout: of the axes, as in `Tokenizer.encode`.

        Returns:
          uint8 zeros and ones ``[batch, row, column, L]``, in the form of the frame.

        Raises:
          UserError: wrong shape, type or range, another size than that of the frames before, or
            more frames than the model has positions for. The stream stays as it was.
        """
        given = given_pixels(
            frame, self._programs.shape, value_range=value_range, layout=layout, clips=False
        )
        made, self._encoder = self._next("encode", given, self._encoder)
        return given.like(made)

    def decode(
        self, bits: Any, *, size: tuple[int, int] | None = None, dtype: str = "float32"
    ) -> Any:
        """Pixels of the next frame.

        Args:
          bits: ``[batch, row, column, L]``, zeros and ones; or as `encode` returned them.
          size: (height, width) that the frame is cut to, as in `Tokenizer.decode`.
          dtype: ``float32`` for values in [-1, 1], ``uint8`` for bytes.

        Returns:
          ``[batch, height, width, 3]``, in the form of the bits.

        Raises:
          UserError: as `encode`, a size that does not belong to the tokens, or an unknown dtype.
        """
        programs, what = self._programs, checked_dtype(dtype)
        given = checked_bits(bits, programs.shape, programs.layout, clips=False)
        sizes = checked_sizes(size, given, programs.shape)
        made, self._decoder = self._next(what, given, self._decoder)
        if sizes:
            made = made[:, :, : sizes[0][0], : sizes[0][1]]
        return given.like(made)

    def _next(self, what: str, given: Given, half: _Half) -> tuple[np.ndarray, _Half]:
        """Codes the next frame by the encoder or the decoder."""
        array = given.joined()
        self._check(array, half.cache)
        shape, classes, size = self._programs.shape, self._programs.classes, array.shape[2:4]
        unit = unit_of(shape, what)
        rows, columns = whole_units(size, unit)
        if half.size is None:
            say_what_another_size_means(shape, (rows, columns))
            half = half._replace(size=size, grid=classes.choose(rows, columns))
        elif size != half.size:
            kind = "pixels" if what == "encode" else "tokens"
            raise UserError(
                f"a frame of {size[0]}x{size[1]} {kind} in a stream of {half.size[0]}x"
                f"{half.size[1]}: all frames have the size of the first; reset() the stream to "
                "begin another video"
            )
        x = Pictures([array], unit, half.grid)[:]
        sizes = None
        if classes.pads(rows, columns):
            sizes = np.tile(np.array([[rows, columns]], np.int32), (len(x), 1))
        made, cache = self._programs.next(what, x, half.cache, half.grid, sizes)
        down, across = unit_of(shape, "decode" if what == "encode" else "encode")
        return made[:, :, : rows * down, : columns * across], half._replace(cache=cache)

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
