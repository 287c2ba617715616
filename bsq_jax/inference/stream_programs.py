"""The compiled programs of streams: some frames after others, with the keys and values of those."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.core.pixels import to_float, to_uint8
from bsq_jax.core.target import full_precision
from bsq_jax.inference.checked_arrays import chunks, filled, least_batch
from bsq_jax.inference.grids import Grid, frames_at_once
from bsq_jax.inference.size_classes import SizeClasses
from bsq_jax.models.attention.self_attention import KVCache
from bsq_jax.models.patches import ended_with_last
from bsq_jax.models.positions import FramePositions
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
          x: checked pixels or bits, ``[batch, time, ...]``, of this grid; of pixels whole groups of
            frames, as `TokenizerModel.encode_next` takes them.
          cache: of the frames before; not to be used again.
          grid: (rows, columns) that is computed.
          sizes: int32 ``[batch, 2]``, those of each picture, if they may be smaller; the same for
            all frames.

        Returns:
          Bits or pixels ``[batch, time, ...]``, and the cache after these frames.

        Raises:
          UserError: the model has no positions for these frames.
        """
        time = self.shape.patch_time if what == "encode" else 1
        count, least = -(-x.shape[1] // time), least_batch(math.prod(grid))
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
        made = np.asarray(out)[: len(x)]
        if what != "encode" and not cache.done:  # of the first tokens' frames only the last
            made = made[:, self.shape.patch_time - 1 :]
        return made, StreamCache(cache.done + count, past)

    def clip(
        self, what: str, x: np.ndarray, grid: Grid, sizes: np.ndarray | None = None
    ) -> np.ndarray:
        """Codes clips of any length, a bounded number of frames at a time; as `next`."""
        cache, parts, count = StreamCache(), [], x.shape[1]
        time = self.shape.patch_time if what == "encode" else 1
        if time > 1:
            x, count = ended_with_last(x, time), self.shape.token_frames(count)
        for chunk in chunks(count, frames_at_once(self.shape, count, math.prod(grid))):
            first = 1 + (chunk.start - 1) * time if chunk.start else 0
            given = x[:, first : 1 + (chunk.stop - 1) * time]
            part, cache = self.next(what, given, cache, grid, sizes)
            parts.append(part)
        return np.concatenate(parts, axis=1)


class StreamCache(NamedTuple):
    """KV cache of an encoder or a decoder.

    Attributes:
      done: number of frames of tokens coded so far.
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
