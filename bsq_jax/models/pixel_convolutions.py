"""Convolutions over whole frames, by which neighboring patches of a reconstruction meet."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from bsq_jax.models.initializers import bias, kernel


class PixelConvolutions(nn.Module):
    """What to add to the pixels of a linear head: two 3x3 convolutions with a GELU between them.

    A linear head decodes each patch by itself, which leaves edges between them. The second
    convolution starts at zero, so that a new network is the one without convolutions. Each frame is
    computed by itself; outside it the pixels are 0, middle gray. The GELU is the approximation by
    tanh, which is cheaper than the exact one on a CPU.

    Attributes:
      channels: between the two convolutions.
      dtype: dtype of the computation; parameters are float32.
    """

    channels: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, pixels: jax.Array, inside: jax.Array | None = None) -> jax.Array:
        """Maps float32 ``[batch, time, height, width, channel]`` to the same shape.

        Args:
          pixels: of the linear head.
          inside: booleans ``[batch, height, width]``: what is of the picture, where arrays are
            larger; None: all. What is returned outside is undefined.
        """
        x = pixels.reshape(-1, *pixels.shape[2:])
        if inside is not None:
            inside = jnp.repeat(inside, pixels.shape[1], axis=0)[..., None]
            x = jnp.where(inside, x, 0)
        x = self._convolution(self.channels, "hidden", kernel(*[None] * 4))(x)
        x = nn.gelu(x, approximate=True)
        if inside is not None:
            x = jnp.where(inside, x, 0)
        x = self._convolution(pixels.shape[-1], "out", bias(*[None] * 4))(x)
        return x.astype(pixels.dtype).reshape(pixels.shape)

    def _convolution(
        self, features: int, name: str, kernel_init: nn.initializers.Initializer
    ) -> nn.Conv:
        # Not `cpu.convolve`: at stride 1 and few channels XLA's own is faster on CPUs too.
        return nn.Conv(
            features,
            (3, 3),
            padding=1,
            dtype=self.dtype,
            kernel_init=kernel_init,
            bias_init=bias(None),
            name=name,
        )
