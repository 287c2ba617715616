"""Convolutions over whole frames, by which neighboring patches of a reconstruction meet."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from bsq_jax.core import cpu
from bsq_jax.models.initializers import bias, kernel


class PixelConvolutions(nn.Module):
    """What to add to the pixels of a linear head: two 3x3 convolutions, an exact GELU between them.

    A linear head decodes each patch by itself, which leaves edges between them. The second
    convolution starts at zero, so that a new network is the one without convolutions. Each frame is
    computed by itself; outside it the pixels are 0, middle gray.

    Attributes:
      channels: between the two convolutions.
      dtype: dtype of the computation; parameters are float32.
    """

    channels: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Maps float32 ``[batch, time, height, width, channel]`` to the same shape."""
        x = pixels.reshape(-1, *pixels.shape[2:])
        x = _Convolution(self.channels, kernel(*[None] * 4), self.dtype, name="hidden")(x)
        x = nn.gelu(x, approximate=False)
        x = _Convolution(pixels.shape[-1], bias(*[None] * 4), self.dtype, name="out")(x)
        return x.astype(pixels.dtype).reshape(pixels.shape)


class _Convolution(nn.Module):
    """A 3x3 convolution of ``[batch, height, width, channel]`` that keeps height and width."""

    features: int
    kernel_init: nn.initializers.Initializer
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        weights = self.param("kernel", self.kernel_init, (3, 3, x.shape[-1], self.features))
        offset = self.param("bias", bias(None), (self.features,))
        x = cpu.convolve(x.astype(self.dtype), weights.astype(self.dtype), padding=1)
        return x + offset.astype(self.dtype).reshape(1, 1, 1, -1)
