"""The discriminator for patches of frames (Isola et al. 2017; as in VQGAN, Esser et al. 2021)."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from bsq_jax.core import cpu
from bsq_jax.core.errors import UserError
from bsq_jax.models.discriminators.layers import at_least_float32, leaky, normal
from bsq_jax.models.initializers import STDDEV, bias, scale

TAPS = 4  # of every window
MOST_WIDTHS = 8  # the most channels, in widths
GROUPS = 32  # of a group norm
EPSILON = 1e-5


def map_side(side: int, layers: int) -> int:
    """Logits along a side of so many pixels.

    Raises:
      UserError: too few pixels for this many strided layers.
    """
    left = side
    for _ in range(layers):
        left = (left + 2 - TAPS) // 2 + 1
    if left < 3:
        raise UserError(
            f"discriminator patchgan with {layers} layers needs frames of at least "
            f"{3 * 2**layers} pixels a side, not {side}: lower discriminator.layers, or leave "
            "smaller sizes out of data.sizes and model.image_size"
        )
    return left - 2  # two layers of stride 1 lose one each


class _Conv(nn.Module):
    """A 4x4 convolution with one zero around, its kernel normal with deviation 0.02."""

    features: int
    stride: int
    use_bias: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[batch, row, column, channel]`` to ``[batch, row, column, features]``."""
        shape = (TAPS, TAPS, x.shape[-1], self.features)
        kernel = self.param("kernel", normal(STDDEV, len(shape)), shape)
        x = cpu.convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, 1)
        if self.use_bias:
            offset = self.param("bias", bias("embed"), (self.features,)).astype(self.dtype)
            x = x + offset.reshape(1, 1, 1, -1)
        return x


class PatchGanDiscriminator(nn.Module):
    """A logit for each of the overlapping patches of a frame.

    The published networks normalise over the batch. That makes a logit depend on the other samples,
    so that the R1 penalty of a sample would be a penalty of the whole batch, and it needs running
    statistics and many samples a device. Group norm, in float32, looks at one frame alone.

    Attributes:
      width: channels of the first layer; doubled by each layer, up to eight times.
      layers: layers of stride 2.
      dtype: dtype of the convolutions; norms, logits and parameters are float32.
    """

    width: int
    layers: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Maps ``[batch, time, height, width, 3]`` in [-1, 1] to float32 logits.

        Returns:
          ``[batch, time, row, column]``.

        Raises:
          UserError: see `map_side`.
        """
        for side in pixels.shape[2:4]:
            map_side(side, self.layers)
        wide = at_least_float32(self.dtype)
        time = pixels.shape[1]
        common: dict[str, Any] = {"dtype": self.dtype}
        x = rearrange(pixels, "b t h w c -> (b t) h w c")
        x = leaky(_Conv(self.width, 2, True, name="conv0", **common)(x))
        for index in range(1, self.layers + 1):
            features = self.width * min(2**index, MOST_WIDTHS)
            stride = 2 if index < self.layers else 1
            x = _Conv(features, stride, False, name=f"conv{index}", **common)(x)
            x = nn.GroupNorm(
                num_groups=math.gcd(GROUPS, features),
                epsilon=EPSILON,
                dtype=wide,
                use_fast_variance=False,  # the fast one cancels when the mean is large
                scale_init=scale("embed"),
                bias_init=bias("embed"),
                name=f"norm{index}",
            )(x.astype(wide))
            x = leaky(x)
        x = _Conv(1, 1, True, wide, name="out")(x)
        return rearrange(x[..., 0], "(b t) h w -> b t h w", t=time)
