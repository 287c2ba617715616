"""Layers with an equalised learning rate (Karras et al. 2018, section 4.1)."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from bsq_jax.core import cpu
from bsq_jax.models.initializers import bias

SLOPE = 0.2  # of the leaky ReLU, published


def leaky(x: jax.Array, gain: float = 1.0) -> jax.Array:
    """Leaky ReLU of slope 0.2, times `gain`."""
    return jnp.where(x >= 0, x * gain, x * (SLOPE * gain))


def at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of statistics and logits where the rest computes in `dtype`."""
    return jnp.promote_types(dtype, jnp.float32)


def normal(deviation: float, rank: int) -> nn.initializers.Initializer:
    """Normal values for a kernel of so many axes, of which the last is the outputs."""
    names = (None,) * (rank - 1) + ("embed",)
    return nn.with_logical_partitioning(nn.initializers.normal(deviation), names)


class EqualisedConv(nn.Module):
    """A convolution whose kernel is kept at unit variance and scaled by 1 / sqrt(inputs) when used.

    All kernels so have gradients of one size, which is what an equalised learning rate is.

    Attributes:
      features: output channels.
      window: taps along each axis of space; an empty one makes it a linear layer.
      stride: of every axis.
      padding: zeros on both ends of every axis.
      use_bias: whether a bias is added.
      gain: factor of the kernel.
      dtype: dtype of the computation; parameters are float32.
    """

    features: int
    window: tuple[int, ...] = ()
    stride: int = 1
    padding: int = 0
    use_bias: bool = True
    gain: float = 1.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[batch, *space, channel]`` to ``[batch, *space, features]``."""
        shape = (*self.window, x.shape[-1], self.features)
        kernel = self.param("kernel", normal(1.0, len(shape)), shape)
        kernel = (kernel * (self.gain / math.sqrt(math.prod(shape[:-1])))).astype(self.dtype)
        x = cpu.convolve(x.astype(self.dtype), kernel, self.stride, self.padding)
        if self.use_bias:
            offset = self.param("bias", bias("embed"), (self.features,)).astype(self.dtype)
            x = x + offset.reshape((1,) * (x.ndim - 1) + (-1,))
        return x
