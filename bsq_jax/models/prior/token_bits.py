"""The small network that goes through the bits of a token, on the device and on the host.

Bits are predicted one after the other from the token's context and the bits before (neural
autoregressive distribution estimator: Larochelle and Murray, 2011). They are written as signs: -1,
1, and 0 where a token keeps fewer bits than there are. A bit that must be 0, because no code has
these bits and then a 1, has the lowest logit whatever the network says: so patterns that name no
code take no probability from those that do.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.models.prior.bounds import logit_shift
from bsq_jax.models.prior.integer_arithmetic import (
    LARGEST,
    SUM_BITS,
    UNIT,
    exactly,
    expanded,
    shift,
    whole,
)
from bsq_jax.models.prior.shape import PriorShape
from bsq_jax.quantizers.layout import TokenLayout

LOGIT = 64  # a logit of 1 nat is the whole number 64
LARGEST_LOGIT = 11 * LOGIT  # what 16 bits of probability can tell


def bit_logits(
    contexts: jax.Array,
    signs: jax.Array,
    parameters: tuple[jax.Array, jax.Array, jax.Array],
    layout: TokenLayout,
) -> jax.Array:
    """Logits of all bits of tokens, each bit seeing the ones before.

    Args:
      contexts: whole numbers, ``[..., hidden]``.
      signs: ``[..., bit]``.
      parameters: ``earlier`` and ``later``, ``[bit, hidden]``, and ``logit_bias``, ``[bit]``.
      layout: of a token's bits.

    Returns:
      Whole numbers, `LOGIT` a nat, ``[..., bit]``.
    """
    earlier, later, bias = map(whole, parameters)
    signs = signs[..., None]
    steps = signs * expanded(earlier, signs)  # [..., bit, hidden]
    sums = jnp.cumsum(steps, axis=-2) - steps
    hidden = jnp.clip(contexts[..., None, :] + sums, 0, LARGEST)
    products = hidden * expanded(later, hidden)
    logits = _sum_shifted(products, logit_shift(contexts.shape[-1]))
    logits += expanded(bias, logits)
    logits = jnp.clip(logits, -LARGEST_LOGIT, LARGEST_LOGIT)
    bits = signs[..., 0] > 0
    for place in layout.limited:
        zero = layout.must_be_zero(bits, place)
        chosen = jnp.where(zero, -LARGEST_LOGIT, logits[..., place])
        logits = logits.at[..., place].set(chosen)
    return logits


class TokenBits:
    """Goes through the bits of tokens on the host, where the decoder is; as `bit_logits`."""

    def __init__(self, shape: PriorShape, params: Any):
        """Takes the parameters of a prior."""

        def integers(name: str) -> np.ndarray:
            scaled = np.clip(np.asarray(params[name], np.float32) * UNIT, -LARGEST, LARGEST)
            return np.round(scaled).astype(np.int32)

        self.earlier, self.later = integers("earlier"), integers("later")
        self.bias = integers("logit_bias")
        self.drop, self.layout = logit_shift(shape.hidden), shape.layout
        self.limited = frozenset(shape.layout.limited)

    def logits(self, sums: np.ndarray, bits: np.ndarray, bit: int) -> np.ndarray:
        """Logits of one bit.

        Args:
          sums: int32 ``[..., hidden]``.
          bits: 0/1 ``[..., L]`` or less, of which those before `bit` count.
          bit: which one.

        Returns:
          int32 ``[...]``, `LOGIT` a nat.
        """
        hidden = np.clip(sums, 0, LARGEST)
        made = hidden @ self.later[bit]
        made = ((2 * made + (1 << self.drop)) >> (self.drop + 1)) + self.bias[bit]
        made = np.clip(made, -LARGEST_LOGIT, LARGEST_LOGIT)
        if bit in self.limited:
            made[self.layout.must_be_zero(bits, bit)] = -LARGEST_LOGIT
        return made

    def after(self, sums: np.ndarray, bit: int, values: np.ndarray) -> np.ndarray:
        """Sums once a bit is known, 0 or 1 ``[...]``."""
        return sums + (2 * values.astype(np.int32) - 1)[..., None] * self.earlier[bit]


def _sum_shifted(products: jax.Array, bits: int) -> jax.Array:
    """The sum over the last axis of products of two numbers of 8 bits, shifted; float32."""
    each = 2**SUM_BITS // LARGEST**2  # products of which a float32 sum is exact, and half a step
    if products.shape[-1] <= each:
        return shift(jnp.sum(products, axis=-1), bits)
    parts = [
        jnp.sum(products[..., first : first + each], axis=-1)
        for first in range(0, products.shape[-1], each)
    ]
    whole_ = sum(jax.lax.stop_gradient(part).astype(jnp.int32) for part in parts)
    value = (2 * jnp.asarray(whole_) + (1 << bits)) >> (bits + 1)
    return exactly(value.astype(jnp.float32), jnp.asarray(sum(parts)) * np.float32(2.0**-bits))


def cross_entropy(logits: jax.Array, signs: jax.Array) -> jax.Array:
    """Bits that each sign costs, 0 where there is none; shapes ``[...]``."""
    nats = jax.nn.softplus(-signs * logits / LOGIT)
    return jnp.where(signs != 0, nats / np.float32(np.log(2)), 0.0)
