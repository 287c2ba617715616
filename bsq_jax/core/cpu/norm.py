"""Layer norm whose result for a frame does not depend on how many frames follow it."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from bsq_jax.core.target import platform

_VECTOR_ROWS = 16  # rows that fill the vector registers


class LayerNorm(nn.LayerNorm):
    """Flax's layer norm over the last axis, with a scale and a bias; statistics in float32.

    XLA for CPUs sums the mean over channels in one order for long clips and in another for short
    ones, so that a frame would depend on how many follow it, and a stream would not give the bits
    of its clip. A product with ones does not do that. GPUs and TPUs run `flax.linen.LayerNorm`,
    without the fast variance (mean of squares less square of the mean), which cancels.

    Of Flax's options `epsilon`, `dtype`, `scale_init` and `bias_init` may be set.
    """

    use_fast_variance: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Maps ``[..., width]`` to the same shape in the module's dtype; takes no mask."""
        if mask is not None:
            raise ValueError("a masked layer norm is not supported: call it without mask")
        if platform() != "cpu":
            return super().__call__(x)
        width = x.shape[-1:]
        centred = x.astype(jnp.float32)
        centred = centred - _channel_mean(centred)
        variance = _channel_mean(jnp.square(centred))
        scale = self.param("scale", self.scale_init, width)
        bias = self.param("bias", self.bias_init, width)
        factor = jax.lax.rsqrt(variance + self.epsilon) * _last(scale, x.ndim)
        return (centred * factor + _last(bias, x.ndim)).astype(self.dtype)


def _channel_mean(x: jax.Array) -> jax.Array:
    """Mean over channels by a product with ones, ``[..., width]`` to ``[..., 1]``."""
    rows = x.reshape(-1, x.shape[-1])
    missing = -len(rows) % _VECTOR_ROWS
    if missing:
        rows = jnp.pad(rows, ((0, missing), (0, 0)))
    sums = rows @ jnp.ones((x.shape[-1], 1), x.dtype)
    return sums[: len(rows) - missing].reshape(*x.shape[:-1], 1) / x.shape[-1]


def _last(vector: jax.Array, rank: int) -> jax.Array:
    return vector.reshape((1,) * (rank - 1) + vector.shape)
