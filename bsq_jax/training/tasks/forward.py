"""The forward pass of a tokenizer, as training and evaluation run it."""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from bsq_jax.core.clips import hold_last, real_frames
from bsq_jax.models.tokenizer import TokenizerModel, TokenizerOutput
from bsq_jax.models.tokenizer_shape import TokenizerShape


def reconstruct(
    model: TokenizerModel,
    params: Any,
    pixels: jax.Array,
    weights: jax.Array | None = None,
    kept: jax.Array | None = None,
    frames: jax.Array | None = None,
    flipped: jax.Array | None = None,
) -> TokenizerOutput:
    """The network's output for float pixels.

    Args:
      model: the tokenizer.
      params: its parameters.
      pixels: ``[batch, time, height, width, 3]``.
      weights: of the frames of tokens in the quantizer's losses, ``[batch, time]``; None: all
        alike.
      kept: int32 ``[batch]``, bits of a token that the decoder gets; None: all.
      frames: int32 ``[batch]``, real frames of each clip, which see no padding; None: all are.
      flipped: 0/1 ``[batch, time, row, column, L]``, bits that the decoder gets wrong; None: none.
    """
    latents = _apply(model, params, pixels, "latents", frames)
    quantized: Any = model.apply(
        {"params": params}, latents, weights, kept, flipped, method="quantize"
    )
    decoded = _apply(model, params, quantized.quantized, "decode_quantized", frames)
    return TokenizerOutput(decoded[:, : pixels.shape[1]], quantized)


def token_weights(shape: TokenizerShape, weights: jax.Array | None) -> jax.Array | None:
    """Weights of frames of tokens, from those of the frames of the video.

    A group of frames counts if its first one does, as the rest is filled up with the last real one.

    Args:
      shape: of the tokenizer.
      weights: ``[batch, time]``, 1 for real frames, 0 for those after them; None: all count.
    """
    if weights is None or shape.patch_time == 1:
        return weights
    return jnp.concatenate([weights[:, :1], weights[:, 1 :: shape.patch_time]], axis=1)


def token_grid(shape: TokenizerShape, pixels: jax.Array | np.ndarray) -> tuple[int, int]:
    """Rows and columns of the tokens of frames, which may have another size than the model's.

    Args:
      shape: of the tokenizer.
      pixels: ``[batch, time, height, width, 3]``.
    """
    high, wide = shape.patch
    return pixels.shape[2] // high, pixels.shape[3] // wide


def with_plain_padding(
    pixels: jax.Array, frames: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Pixels whose padding repeats the last real frame, and the weights of the frames.

    Discriminators see the padding: what the data hold there must not matter.

    Args:
      pixels: ``[batch, time, height, width, 3]``.
      frames: int32 ``[batch]``, real frames of each clip; None: all are.

    Returns:
      ``(pixels, weights)``; the weights are float32 ``[batch, time]``, 1 for real frames and 0 for
      padding, None where there is no padding.
    """
    if frames is None or pixels.shape[1] == 1:
        return pixels, None
    weights = real_frames(frames, pixels.shape[1]).astype(jnp.float32)
    return hold_last(pixels, frames), weights


def _apply(
    model: TokenizerModel, params: Any, x: jax.Array, method: str, frames: jax.Array | None
) -> jax.Array:
    """A method of the network, ``[batch, time, ...]`` to the same or, of groups, another time.

    An image model sees the frames of a clip one by one.
    """
    batch, time = x.shape[:2]
    by_frame = model.shape.frames == 1 and time > 1
    if by_frame:
        x, frames = rearrange(x, "b t ... -> (b t) 1 ..."), None
    y = cast(jax.Array, model.apply({"params": params}, x, frames, method=method))
    return y.reshape(batch, time, *y.shape[2:]) if by_frame else y
