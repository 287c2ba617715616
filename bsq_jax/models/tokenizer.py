"""The tokenizer network: ViT encoder, quantizer, ViT decoder (paper, section 3; BSQ-ViT).

Everything works on ``[batch, time, height, width, channel]`` with pixels in [-1, 1]; an image is a
video of one frame. Height and width are those of the arrays, any multiples of the patch; pictures
of several sizes share an array that is padded at the bottom and on the right. Attention is
block-wise causal over frames in encoder and decoder, so a clip can be coded frame by frame, each
with the keys and values of those before it.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bsq_jax.core import cpu
from bsq_jax.core.array_checks import check_array
from bsq_jax.core.clips import hold_last
from bsq_jax.models.attention.choice import Blocking, Choice, choose_implementation
from bsq_jax.models.attention.self_attention import KVCache
from bsq_jax.models.initializers import bias, kernel
from bsq_jax.models.patches import ended_with_last
from bsq_jax.models.positions import FramePositions
from bsq_jax.models.tokenizer_halves import Decoder, Encoder
from bsq_jax.models.tokenizer_shape import TokenizerShape
from bsq_jax.models.transformer import Compute
from bsq_jax.quantizers import Quantized, Quantizer


class TokenizerOutput(NamedTuple):
    """Reconstruction ``[batch, time, height, width, 3]`` float32, not clamped, and tokens."""

    pixels: jax.Array
    quantized: Quantized


class TokenizerModel(nn.Module):
    """Encoder, projection to the latent's channels, quantizer, projection back, decoder.

    Attributes:
      shape: what fixes the parameters.
      quantizer: float32 latents to tokens and back.
      dtype: dtype of the computation; parameters are float32, and so is the quantizer.
      remat: recompute blocks in the backward pass.
      attention: implementation of attention, see `bsq_jax.models.attention.choice`.
      blocking: how blocked attention cuts a clip.
    """

    shape: TokenizerShape
    quantizer: Quantizer
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    attention: str = "auto"
    blocking: Blocking = Blocking.LARGE

    def setup(self) -> None:
        """Makes the parts."""
        compute = Compute(self.dtype, self.remat, self.attention, self.blocking)
        self.encoder = Encoder(self.shape, compute)
        self.decoder = Decoder(self.shape, compute)
        self.to_latent = nn.Dense(
            self.shape.channels,
            dtype=jnp.float32,
            precision=jax.lax.Precision.HIGHEST,  # an accelerator would round to bfloat16 or TF32
            kernel_init=kernel("embed", None),
            bias_init=bias(None),
        )
        self.from_latent = nn.Dense(
            self.shape.half("decoder").width,
            dtype=self.dtype,
            dot_general=cpu.dot_general,
            kernel_init=kernel(None, "embed"),
            bias_init=bias("embed"),
        )

    def attention_used(
        self, frames: int, padded: bool = False, grid: tuple[int, int] | None = None
    ) -> Choice:
        """The implementation of attention that clips of so many frames are computed with.

        Args:
          frames: of a clip.
          padded: some clips of a batch may be shorter.
          grid: (rows, columns) of their frames; None: the model's own.
        """
        shape = self.shape
        frames = shape.token_frames(frames)
        rows, columns = grid or shape.grid
        windows = shape.windows(rows, columns)
        return choose_implementation(
            self.attention,
            shape.visibility,
            frames,
            rows * columns if windows is None else windows.tokens,
            self.dtype,
            channels=shape.width // shape.heads,
            padded=padded and frames > 1 and not shape.visibility.streams,
        )

    def __call__(
        self, pixels: jax.Array, real: jax.Array | None = None, sizes: jax.Array | None = None
    ) -> TokenizerOutput:
        """Reconstructs ``[batch, time, height, width, 3]`` pixels in [-1, 1].

        Height and width are any multiples of the patch. Here and below `real` is int32 ``[batch]``:
        so many frames of each clip are no padding, which comes at the end; and `sizes` int32
        ``[batch, 2]``: so many (rows, columns) of tokens of each picture are none, which is at the
        bottom and on the right. Padding changes nothing of what is real, up to the order of
        sums; with spatial windows to the bit on CPUs, where arrays are whole windows and have 256
        tokens together (products of fewer rows are computed in another order). None: there is none.

        Where tokens are of several frames, a clip of 1 + k x `TokenizerShape.patch_time` frames has
        1 + k frames of tokens: those of the first frame alone, and of groups. One of another length
        is filled up at the end with its last real frame.

        Raises:
          UserError: a clip is longer than the positions allow.
        """
        quantized = self.encode(pixels, real, sizes)
        decoded = self.decode_quantized(quantized.quantized, real, sizes)
        return TokenizerOutput(decoded[:, : pixels.shape[1]], quantized)

    def encode(
        self, pixels: jax.Array, real: jax.Array | None = None, sizes: jax.Array | None = None
    ) -> Quantized:
        """Tokens of pixels: ``.bits`` is uint8 ``[batch, time, row, column, L]``.

        Time is that of `TokenizerShape.token_frames`, here and below.

        Raises:
          UserError: as `__call__`.
          ValueError: the pixels are not floats, or their sides no multiples of the patch.
        """
        return self.quantize(self.latents(pixels, real, sizes))

    def quantize(
        self,
        latents: jax.Array,
        weights: jax.Array | None = None,
        kept: jax.Array | None = None,
        flipped: jax.Array | None = None,
    ) -> Quantized:
        """Tokens of what `latents` gives.

        Args:
          latents: ``[batch, time, row, column, channel]``.
          weights: of the frames of tokens in the quantizer's losses, ``[batch, time]``; None: all
            alike.
          kept: int32 ``[batch]``, bits of a token that the decoder gets; None: all.
          flipped: 0/1 ``[batch, time, row, column, L]``, bits that it gets wrong; None: none.
        """
        return self.quantizer.encode(latents, weights, kept=kept, flipped=flipped)

    def latents(
        self, pixels: jax.Array, real: jax.Array | None = None, sizes: jax.Array | None = None
    ) -> jax.Array:
        """The float32 latents ``[batch, time, row, column, channel]`` that are quantized."""
        check_array("pixels", pixels, "batch", "time", "height", "width", 3)
        high, wide = self.shape.patch
        grid = pixels.shape[2] // high, pixels.shape[3] // wide
        frames = self.shape.token_frames(pixels.shape[1])
        if self.shape.patch_time > 1:
            if real is not None:
                pixels, real = hold_last(pixels, real), self.shape.token_frames(real)
            pixels = ended_with_last(pixels, self.shape.patch_time)
        positions = self.shape.frame_positions(frames, grid=grid)
        features, _ = self.encoder(pixels, positions, real=real, sizes=sizes)
        return self.to_latent(features.astype(jnp.float32))

    def decode_quantized(
        self, quantized: jax.Array, real: jax.Array | None = None, sizes: jax.Array | None = None
    ) -> jax.Array:
        """Pixels, not clamped, of quantized latents ``[batch, time, row, column, channel]``.

        They have `TokenizerShape.video_frames` frames.
        """
        _, time, rows, columns, _ = quantized.shape
        positions = self.shape.frame_positions(time, grid=(rows, columns), half="decoder")
        real = None if real is None else self.shape.token_frames(real)
        decoded, _ = self.decoder(self.from_latent(quantized), positions, real=real, sizes=sizes)
        return decoded[:, self.shape.patch_time - 1 :]

    def decode(
        self, bits: jax.Array, real: jax.Array | None = None, sizes: jax.Array | None = None
    ) -> jax.Array:
        """Pixels in [-1, 1] of tokens or their first bits, ``[batch, time, row, column, L]``."""
        return jnp.clip(self.decode_quantized(self._codes(bits), real, sizes), -1.0, 1.0)

    def encode_next(
        self,
        pixels: jax.Array,
        positions: FramePositions,
        past: KVCache | None,
        sizes: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Tokens of the next frames of a stream.

        Args:
          pixels: ``[batch, time, height, width, 3]`` in [-1, 1]: 1 + k x `patch_time` frames at the
            beginning, k x `patch_time` later.
          positions: of these frames of tokens, from `TokenizerShape.frame_positions`.
          past: keys and values of the frames before, None at the beginning.
          sizes: as in `__call__`, the same for all frames of a stream.

        Returns:
          Bits ``[batch, time, row, column, L]``, and keys and values of these frames, ``[layer,
          batch, time, token, head, channel]`` each; with spatial windows ``batch * window`` and the
          tokens of a window.
        """
        features, present = self.encoder(pixels, positions, past, streaming=True, sizes=sizes)
        return self.quantizer.encode(self.to_latent(features.astype(jnp.float32))).bits, present

    def decode_next(
        self,
        bits: jax.Array,
        positions: FramePositions,
        past: KVCache | None,
        sizes: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Pixels in [-1, 1] of the next frames of a stream; as `encode_next`.

        Every frame of tokens gives `patch_time` frames; of those of the first one only the last is
        of the video.
        """
        features = self.from_latent(self._codes(bits))
        pixels, present = self.decoder(features, positions, past, streaming=True, sizes=sizes)
        return jnp.clip(pixels, -1.0, 1.0), present

    def _codes(self, bits: jax.Array) -> jax.Array:
        """The quantizer's codes of tokens or their first bits."""
        check_array("bits", bits, "batch", "time", "row", "column", "L", kind="integers")
        return self.quantizer.decode(bits)
