"""Layer norm whose result for a frame does not depend on how many frames follow it."""

from __future__ import annotations

import functools
from typing import Any

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
        scale = self.param("scale", self.scale_init, width)
        bias = self.param("bias", self.bias_init, width)
        out = _normalize(x.astype(jnp.float32), scale, bias, self.epsilon)
        return out.astype(self.dtype)


# Sums over channels are slow in XLA for CPUs, those of the gradient too.
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalize(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> jax.Array:
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> Any:
    mean = _channel_mean(x)
    centred = x - mean
    factor = jax.lax.rsqrt(_channel_mean(jnp.square(centred)) + epsilon)
    out = centred * (factor * _last(scale, x.ndim)) + _last(bias, x.ndim)
    return out, (x, mean, factor, scale)


def _backward(epsilon: float, residuals: Any, gradient: jax.Array) -> tuple[jax.Array, ...]:
    del epsilon
    x, mean, factor, scale = residuals
    normal = (x - mean) * factor
    scaled = gradient * _last(scale, x.ndim)
    centred = scaled - _channel_mean(scaled) - normal * _channel_mean(scaled * normal)
    return centred * factor, _row_sum(gradient * normal), _row_sum(gradient)


_normalize.defvjp(_forward, _backward)


def _channel_mean(x: jax.Array) -> jax.Array:
    """Mean over channels by a product with ones, ``[..., width]`` to ``[..., 1]``."""
    rows = x.reshape(-1, x.shape[-1])
    count = rows.shape[0]  # not `len`: it may be symbolic
    missing = -count % _VECTOR_ROWS
    if missing:
        rows = jnp.pad(rows, ((0, missing), (0, 0)))
    sums = rows @ jnp.ones((x.shape[-1], 1), x.dtype)
    return sums[:count].reshape(*x.shape[:-1], 1) / x.shape[-1]


def _last(vector: jax.Array, rank: int) -> jax.Array:
    return vector.reshape((1,) * (rank - 1) + vector.shape)


def _row_sum(x: jax.Array) -> jax.Array:
    """Sum over rows by a product with ones, ``[..., width]`` to ``[width]``."""
    rows = x.reshape(-1, x.shape[-1])
    return (jnp.ones((1, len(rows)), x.dtype) @ rows)[0]
