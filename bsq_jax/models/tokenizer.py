"""The tokenizer network: ViT encoder, quantizer, ViT decoder (paper, section 3; BSQ-ViT).

Everything works on ``[batch, time, height, width, channel]`` with pixels in [-1, 1]; an image is a
video of one frame. Height and width are those of the arrays, any multiples of the patch; pictures
of several sizes share an array that is padded at the bottom and on the right. Attention is
block-wise causal over frames in encoder and decoder, so a clip can be coded frame by frame, each
with the keys and values of those before it.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from bsq_jax.core import cpu
from bsq_jax.core.array_checks import check_array
from bsq_jax.models.attention.causality import Causality
from bsq_jax.models.attention.choice import Blocking, Choice, choose_implementation
from bsq_jax.models.attention.self_attention import KVCache
from bsq_jax.models.attention.windows import PADDING, Windows, real_tokens
from bsq_jax.models.initializers import bias, kernel
from bsq_jax.models.own_positions import OwnPositions, own_sums
from bsq_jax.models.pixel_convolutions import PixelConvolutions
from bsq_jax.models.positions import (
    FramePositions,
    PositionEmbedding,
    check_length,
    frame_positions,
    rotation,
)
from bsq_jax.models.transformer import Compute, Transformer, layer_norm
from bsq_jax.quantizers import Quantized, Quantizer

CHANNELS = 3


@dataclasses.dataclass(frozen=True)
class TokenizerShape:
    """The numbers that fix a tokenizer's parameters; all of an export's model config.

    Attributes:
      image_height: pixels, a multiple of `patch_size`; of the size that the model is made for.
      image_width: pixels, likewise.
      frames: longest clip; 1 for an image model, which then has no temporal embedding.
      patch_size: side of a patch in pixels.
      bits: bits a token, L.
      width: channels of a token inside the transformers.
      layers: blocks of the encoder, and of the decoder.
      heads: attention heads.
      mlp_ratio: hidden width of a block's MLP over `width`.
      head_hidden: hidden width of the decoder's pixel head; 0 for a single linear layer.
      head_channels: of the residual convolutions after it; 0 for none.
      positions: kind of positions, see `bsq_jax.models.positions`.
      causality: kind of causality, see `bsq_jax.models.attention.causality`.
      window: frames that a token sees, its own included; 0 for no limit.
      min_bits: fewest bits of a token that the decoder gets in training; 0: always all.
      prefixes: the numbers of first bits that a token can be decoded from, increasing; the last is
        L. Those from `min_bits` on or, where that is 0, whole stages of the quantizer.
      channels: of the latents that the quantizer takes.
      spatial_window: side in tokens of the windows of a frame that attention stays within; 0: it
        sees whole frames.
    """

    image_height: int
    image_width: int
    frames: int
    patch_size: int
    bits: int
    width: int
    layers: int
    heads: int
    mlp_ratio: float
    head_hidden: int
    head_channels: int
    positions: str
    causality: str
    window: int
    min_bits: int
    prefixes: tuple[int, ...]
    channels: int
    spatial_window: int = 0

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens of a frame of the model's own size as (rows, columns)."""
        return self.image_height // self.patch_size, self.image_width // self.patch_size

    @property
    def tokens(self) -> int:
        """Tokens of a frame of the model's own size."""
        return self.grid[0] * self.grid[1]

    @property
    def visibility(self) -> Causality:
        """Which tokens are visible to a token in attention."""
        return Causality(self.causality, self.window)

    def windows(self, rows: int, columns: int) -> Windows | None:
        """The windows of frames of a grid that attention stays within; None: whole frames."""
        return Windows(rows, columns, self.spatial_window) if self.spatial_window else None

    def frame_positions(
        self, frames: int, first: int = 0, grid: tuple[int, int] | None = None
    ) -> FramePositions:
        """What the network needs to know of frames ``first .. first + frames - 1``.

        Args:
          frames: how many.
          first: place of the first.
          grid: their (rows, columns); None: the model's own.

        Raises:
          UserError: there are no positions for them.
        """
        check_length(self.positions, first + frames - 1, self.frames)
        found = frame_positions(self.positions, first, frames, self.width, self.heads)
        if ":" in self.positions:
            added = own_sums(self.positions, found.number, grid or self.grid, self.width)
            found = found._replace(added=added)
        return found


class TokenizerOutput(NamedTuple):
    """Reconstruction ``[batch, time, height, width, 3]`` float32, not clamped, and tokens."""

    pixels: jax.Array
    quantized: Quantized


def patchify(pixels: jax.Array, patch: int) -> jax.Array:
    """Cuts frames into patches.

    Args:
      pixels: ``[batch, time, height, width, channel]``.
      patch: side of a patch.

    Returns:
      ``[batch, time, row, column, channel * patch * patch]``, (channel, row, column) in a patch.

    Raises:
      ValueError: other axes, or sides that are not multiples of the patch.
    """
    check_array("pixels", pixels, "batch", "time", "height", "width", "channel", kind="numbers")
    if pixels.shape[2] % patch or pixels.shape[3] % patch:
        raise ValueError(
            f"frames of {pixels.shape[2]}x{pixels.shape[3]} pixels cannot be cut into patches of "
            f"{patch}x{patch}"
        )
    return rearrange(pixels, "b t (h p) (w q) c -> b t h w (c p q)", p=patch, q=patch)


def unpatchify(patches: jax.Array, patch: int) -> jax.Array:
    """Inverse of `patchify`."""
    return rearrange(patches, "b t h w (c p q) -> b t (h p) (w q) c", p=patch, q=patch)


class _Trunk(nn.Module):
    """Position embedding, layer norm, transformer, layer norm: both halves of the tokenizer."""

    shape: TokenizerShape
    compute: Compute

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: FramePositions,
        past: KVCache | None,
        streaming: bool,
        real: jax.Array | None,
        sizes: jax.Array | None,
    ) -> tuple[jax.Array, KVCache | None]:
        shape, dtype = self.shape, self.compute.dtype
        rows, columns = x.shape[2:4]
        if ":" in shape.positions:
            own = OwnPositions(shape.positions, dtype, name="positions")
            x = own(x, positions.number, positions.added)
        else:
            table = (shape.spatial_window,) * 2 if shape.positions == "window" else shape.grid
            embedded = PositionEmbedding(
                shape.positions, table, shape.frames, dtype, name="positions"
            )
            x = embedded(x, positions, sizes)
        windows, grid, regions = shape.windows(rows, columns), (rows, columns), None
        if windows is not None:
            x, grid, regions = windows.fill(x), windows.padded, windows.regions(sizes)
        elif sizes is not None:
            real_ = real_tokens(sizes, np.arange(rows), np.arange(columns))
            regions = rearrange(jnp.where(real_, 0, PADDING), "b h w -> b (h w)")
        x = rearrange(x, "b t h w d -> b t (h w) d")
        x = layer_norm(dtype, name="norm_pre")(x)
        turned = None
        if shape.positions == "rotary":
            turned = rotation(positions, grid, shape.width // shape.heads)
        x, present = Transformer(
            shape.layers,
            shape.heads,
            shape.mlp_ratio,
            shape.visibility,
            self.compute,
            windows,
            name="transformer",
        )(x, turned, past, streaming, real, regions)
        x = layer_norm(dtype, name="norm_post")(x)
        x = rearrange(x, "b t (h w) d -> b t h w d", h=grid[0])
        return x[:, :, :rows, :columns], present


class Encoder(nn.Module):
    """Pixels to features, ``[b, t, height, width, 3]`` to ``[b, t, row, column, width]``."""

    shape: TokenizerShape
    compute: Compute

    @nn.compact
    def __call__(
        self,
        pixels: jax.Array,
        positions: FramePositions,
        past: KVCache | None = None,
        streaming: bool = False,
        real: jax.Array | None = None,
        sizes: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Encodes pixels in [-1, 1]; see `Transformer` for the rest."""
        x = patchify(pixels.astype(self.compute.dtype), self.shape.patch_size)
        x = nn.Dense(
            self.shape.width,
            use_bias=False,
            dtype=self.compute.dtype,
            dot_general=cpu.dot_general,
            kernel_init=kernel(None, "embed"),
            name="patch_embed",
        )(x)
        trunk = _Trunk(self.shape, self.compute, name="trunk")
        return trunk(x, positions, past, streaming, real, sizes)


class Decoder(nn.Module):
    """Features to pixels, ``[b, t, row, column, width]`` to ``[b, t, height, width, 3]``."""

    shape: TokenizerShape
    compute: Compute

    @nn.compact
    def __call__(
        self,
        features: jax.Array,
        positions: FramePositions,
        past: KVCache | None = None,
        streaming: bool = False,
        real: jax.Array | None = None,
        sizes: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Decodes to float32 pixels around [-1, 1], not clamped; as `Encoder`."""
        x = features.astype(self.compute.dtype)
        trunk = _Trunk(self.shape, self.compute, name="trunk")
        x, present = trunk(x, positions, past, streaming, real, sizes)
        if self.shape.head_hidden:
            x = nn.Dense(
                self.shape.head_hidden,
                dtype=self.compute.dtype,
                dot_general=cpu.dot_general,
                kernel_init=kernel("embed", "mlp"),
                bias_init=bias("mlp"),
                name="head_hidden",
            )(x)
            x = jnp.tanh(x)
        x = nn.Dense(
            CHANNELS * self.shape.patch_size**2,
            dtype=self.compute.dtype,
            dot_general=cpu.dot_general,
            kernel_init=kernel("mlp", None),
            bias_init=bias(None),
            name="head_out",
        )(x)
        pixels = unpatchify(x.astype(jnp.float32), self.shape.patch_size)
        if self.shape.head_channels:
            inside = None
            if sizes is not None:
                patch, (height, width) = self.shape.patch_size, pixels.shape[2:4]
                inside = real_tokens(sizes * patch, np.arange(height), np.arange(width))
            pixels += PixelConvolutions(
                self.shape.head_channels, self.compute.dtype, name="head_convolutions"
            )(pixels, inside)
        return pixels, present


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
            self.shape.width,
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
        bottom and on the right. Padding changes nothing of what is real: with spatial windows
        to the bit on CPUs, without them up to the order of sums. None: there is none.

        Raises:
          UserError: a clip is longer than the positions allow.
        """
        quantized = self.encode(pixels, real, sizes)
        return TokenizerOutput(self.decode_quantized(quantized.quantized, real, sizes), quantized)

    def encode(
        self, pixels: jax.Array, real: jax.Array | None = None, sizes: jax.Array | None = None
    ) -> Quantized:
        """Tokens of pixels: ``.bits`` is uint8 ``[batch, time, row, column, L]``.

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
          weights: of the frames in the quantizer's losses, ``[batch, time]``; None: all alike.
          kept: int32 ``[batch]``, bits of a token that the decoder gets; None: all.
          flipped: 0/1 ``[batch, time, row, column, L]``, bits that it gets wrong; None: none.
        """
        return self.quantizer.encode(latents, weights, kept=kept, flipped=flipped)

    def latents(
        self, pixels: jax.Array, real: jax.Array | None = None, sizes: jax.Array | None = None
    ) -> jax.Array:
        """The float32 latents ``[batch, time, row, column, channel]`` that are quantized."""
        check_array("pixels", pixels, "batch", "time", "height", "width", 3)
        patch = self.shape.patch_size
        grid = pixels.shape[2] // patch, pixels.shape[3] // patch
        positions = self.shape.frame_positions(pixels.shape[1], grid=grid)
        features, _ = self.encoder(pixels, positions, real=real, sizes=sizes)
        return self.to_latent(features.astype(jnp.float32))

    def decode_quantized(
        self, quantized: jax.Array, real: jax.Array | None = None, sizes: jax.Array | None = None
    ) -> jax.Array:
        """Pixels, not clamped, of quantized latents ``[batch, time, row, column, channel]``."""
        _, time, rows, columns, _ = quantized.shape
        positions = self.shape.frame_positions(time, grid=(rows, columns))
        return self.decoder(self.from_latent(quantized), positions, real=real, sizes=sizes)[0]

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
          pixels: ``[batch, time, height, width, 3]`` in [-1, 1].
          positions: of these frames, from `TokenizerShape.frame_positions`.
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
        """Pixels in [-1, 1] of the next frames of a stream; as `encode_next`."""
        features = self.from_latent(self._codes(bits))
        pixels, present = self.decoder(features, positions, past, streaming=True, sizes=sizes)
        return jnp.clip(pixels, -1.0, 1.0), present

    def _codes(self, bits: jax.Array) -> jax.Array:
        """The quantizer's codes of tokens or their first bits."""
        check_array("bits", bits, "batch", "time", "row", "column", "L", kind="integers")
        return self.quantizer.decode(bits)
