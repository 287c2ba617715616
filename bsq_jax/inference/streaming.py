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

import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.core.once import say_once
from bsq_jax.core.target import platform
from bsq_jax.inference.checked_arrays import checked_bits, checked_dtype, checked_sizes
from bsq_jax.inference.given import Given
from bsq_jax.inference.given_pixels import given_pixels
from bsq_jax.inference.grids import (
    Grid,
    Pictures,
    Size,
    say_what_another_size_means,
    unit_of,
    whole_units,
)
from bsq_jax.inference.stream_programs import Programs, StreamCache
from bsq_jax.models.positions import check_length


class _Half(NamedTuple):
    """The state of the encoder or the decoder of a stream.

    Attributes:
      cache: of the frames so far.
      size: (height, width) of the frames, or (rows, columns) of the tokens; None before the first.
      grid: (rows, columns) that is computed.
      waiting: frames whose group is not complete, ``[batch, 1, height, width, 3]`` each.
    """

    cache: StreamCache = StreamCache()
    size: Size | None = None
    grid: Grid = (0, 0)
    waiting: tuple[np.ndarray, ...] = ()


class Stream:
    """Codes frame by frame; made by `Tokenizer.stream`.

        stream = tokenizer.stream()
        for frame in frames:  # uint8 [1, height, width, 3]
            bits = stream.encode(frame)  # uint8 0/1 [1, row, column, L]
            pixels = stream.decode(bits)  # float32 in [-1, 1] [1, height, width, 3]

    Where tokens are of p frames (``model.patch_time``), the first frame has its own tokens, and
    then `encode` returns None until a group of p frames is complete; `finish` ends a video in the
    middle of a group. `decode` gives frames with a time axis, first one and then p at a time.

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
        """Frames encoded so far, without those whose group is not complete."""
        return self._frames(self._encoder.cache.done)

    @property
    def decoded(self) -> int:
        """Frames decoded so far."""
        return self._frames(self._decoder.cache.done)

    def _frames(self, done: int) -> int:
        return self._programs.shape.video_frames(done) if done else 0

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
          uint8 zeros and ones ``[batch, row, column, L]``, in the form of the frame; None where the
          group of frames of the tokens is not complete.

        Raises:
          UserError: wrong shape, type or range, another size than that of the frames before, or
            more frames than the model has positions for. The stream stays as it was.
        """
        given = given_pixels(
            frame, self._programs.shape, value_range=value_range, layout=layout, clips=False
        )
        made, self._encoder = self._next("encode", given, self._encoder)
        return None if made is None else given.like(made)

    def finish(self) -> np.ndarray | None:
        """Tokens of frames whose group is not complete, filled up with the last of them.

        The video ends here: later frames are those of another group.

        Returns:
          uint8 ``[batch, row, column, L]``; None if no frame waits.
        """
        half = self._encoder
        if not half.waiting:
            return None
        missing = self._programs.shape.patch_time - len(half.waiting)
        group = np.concatenate((*half.waiting, *half.waiting[-1:] * missing), axis=1)
        made, self._encoder = self._coded("encode", group, half._replace(waiting=()))
        return made[:, 0]

    def decode(
        self, bits: Any, *, size: tuple[int, int] | None = None, dtype: str = "float32"
    ) -> Any:
        """Pixels of the next frame.

        Args:
          bits: ``[batch, row, column, L]``, zeros and ones; or as `encode` returned them.
          size: (height, width) that the frame is cut to, as in `Tokenizer.decode`.
          dtype: ``float32`` for values in [-1, 1], ``uint8`` for bytes.

        Returns:
          ``[batch, height, width, 3]``, in the form of the bits; where tokens are of several frames
          ``[batch, time, height, width, 3]``.

        Raises:
          UserError: as `encode`, a size that does not belong to the tokens, or an unknown dtype.
        """
        programs, what = self._programs, checked_dtype(dtype)
        given = checked_bits(bits, programs.shape, programs.layout, clips=False)
        sizes = checked_sizes(size, given, programs.shape)
        made, self._decoder = self._next(what, given, self._decoder)
        assert made is not None
        if sizes:
            made = made[:, :, : sizes[0][0], : sizes[0][1]]
        return made if programs.shape.patch_time > 1 else given.like(made)

    def _next(self, what: str, given: Given, half: _Half) -> tuple[np.ndarray | None, _Half]:
        """Codes the next frame by the encoder or the decoder; None if its group is not complete."""
        array = given.joined()
        self._check(array, half.cache)
        shape, classes, size = self._programs.shape, self._programs.classes, array.shape[2:4]
        if half.size is None:
            rows, columns = whole_units(size, unit_of(shape, what))
            say_what_another_size_means(shape, (rows, columns))
            half = half._replace(size=size, grid=classes.choose(rows, columns))
        elif size != half.size:
            kind = "pixels" if what == "encode" else "tokens"
            raise UserError(
                f"a frame of {size[0]}x{size[1]} {kind} in a stream of {half.size[0]}x"
                f"{half.size[1]}: all frames have the size of the first; reset() the stream to "
                "begin another video"
            )
        if what == "encode" and half.cache.done:
            waiting = (*half.waiting, array)
            if len(waiting) < shape.patch_time:
                return None, half._replace(waiting=waiting)
            half, array = half._replace(waiting=()), np.concatenate(waiting, axis=1)
        return self._coded(what, array, half)

    def _coded(self, what: str, array: np.ndarray, half: _Half) -> tuple[np.ndarray, _Half]:
        """Codes a whole group of frames or its tokens."""
        shape, classes = self._programs.shape, self._programs.classes
        unit = unit_of(shape, what)
        rows, columns = whole_units(array.shape[2:4], unit)
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
            check_length(shape.positions, shape.video_frames(cache.done + 1) - 1, shape.frames)
        except UserError:
            if shape.frames == 1:
                problem = "this is an image model, reset() the stream before each picture"
            else:
                problem = (
                    f"this model has learned positions for {shape.frames}: reset() the stream to "
                    "begin anew, or train a model with model.positions=rotary and a model.window"
                )
            raise UserError(
                f"frame {self._frames(cache.done) + 1} of a stream: {problem}"
            ) from None
