"""The two transformers of a tokenizer: pixels to features, and features to pixels."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from bsq_jax.core import cpu
from bsq_jax.core.regions import real_pixels, real_tokens
from bsq_jax.models.attention.self_attention import KVCache
from bsq_jax.models.attention.windows import PADDING
from bsq_jax.models.initializers import bias, kernel
from bsq_jax.models.own_positions import OwnPositions
from bsq_jax.models.patches import CHANNELS, patchify, unpatchify, whole_groups
from bsq_jax.models.pixel_convolutions import PixelConvolutions
from bsq_jax.models.positions import FramePositions, PositionEmbedding, rotation
from bsq_jax.models.tokenizer_shape import TokenizerShape
from bsq_jax.models.transformer import Compute, Transformer, layer_norm


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
            embedded = PositionEmbedding(
                shape.positions,
                shape.table,
                shape.token_frames(shape.frames),
                dtype,
                name="positions",
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
    """Pixels to features, ``[b, t, height, width, 3]`` to ``[b, t, row, column, width]``.

    The frames begin a clip or stream, then they are 1 + k x `TokenizerShape.patch_time`, or go on
    with it, then k x `patch_time`; the features have 1 + k or k.
    """

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
        shape = self.shape.half("encoder")
        x = whole_groups(pixels.astype(self.compute.dtype), shape.patch_time)
        x = patchify(x, shape.patch, shape.patch_time)
        x = nn.Dense(
            shape.width,
            use_bias=False,
            dtype=self.compute.dtype,
            dot_general=cpu.dot_general,
            kernel_init=kernel(None, "embed"),
            name="patch_embed",
        )(x)
        trunk = _Trunk(shape, self.compute, name="trunk")
        return trunk(x, positions, past, streaming, real, sizes)


class Decoder(nn.Module):
    """Features to pixels, ``[b, t, row, column, width]`` to ``[b, t, height, width, 3]``.

    Every frame of features gives `TokenizerShape.patch_time` frames, of which those of a clip's
    first one but the last mean nothing.
    """

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
        shape = self.shape.half("decoder")
        x = features.astype(self.compute.dtype)
        trunk = _Trunk(shape, self.compute, name="trunk")
        x, present = trunk(x, positions, past, streaming, real, sizes)
        if shape.head_hidden:
            x = nn.Dense(
                shape.head_hidden,
                dtype=self.compute.dtype,
                dot_general=cpu.dot_general,
                kernel_init=kernel("embed", "mlp"),
                bias_init=bias("mlp"),
                name="head_hidden",
            )(x)
            x = jnp.tanh(x)
        x = nn.Dense(
            CHANNELS * shape.patch_time * math.prod(shape.patch),
            dtype=self.compute.dtype,
            dot_general=cpu.dot_general,
            kernel_init=kernel("mlp", None),
            bias_init=bias(None),
            name="head_out",
        )(x)
        pixels = unpatchify(x.astype(jnp.float32), shape.patch, shape.patch_time)
        if shape.head_channels:
            inside = None
            if sizes is not None:
                height, width = pixels.shape[2:4]
                inside = real_pixels(sizes, height, width, shape.patch)
            pixels += PixelConvolutions(
                shape.head_channels, self.compute.dtype, name="head_convolutions"
            )(pixels, inside)
        return pixels, present
