"""The small network that goes through the bits of a token, on the device and on the host.

Bits are predicted one after the other from the token's context and the bits before (neural
autoregressive distribution estimator: Larochelle and Murray, 2011). They are written as signs: -1,
1, and 0 where a token keeps fewer bits than there are. A bit that must be 0, because no code has
these bits and then a 1, has the lowest logit whatever the network says: so patterns that name no
code take no probability from those that do.
"""

from __future__ import annotations

from collections.abc import Callable
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
    product,
    shift,
)
from bsq_jax.models.prior.shape import PriorShape
from bsq_jax.quantizers.layout import TokenLayout

LOGIT = 64  # a logit of 1 nat is the whole number 64
LARGEST_LOGIT = 11 * LOGIT  # what 16 bits of probability can tell
_EXACT_PRODUCTS = 2**SUM_BITS // LARGEST**2  # whose float32 sum is exact, and half a step


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
      parameters: the whole numbers of ``earlier`` and ``later``, ``[bit, hidden]``, and of
        ``logit_bias``, ``[bit]``.
      layout: of a token's bits.

    Returns:
      Whole numbers, `LOGIT` a nat, ``[..., bit]``.
    """
    earlier, later, bias = parameters
    # The sum over the bits before as a product: of each bit with what it adds to those behind it.
    behind = jnp.triu(jnp.ones((len(earlier), len(earlier)), jnp.float32), 1)
    adds = behind[..., None] * earlier[:, None]  # [bit, later bit, hidden]
    sums = product(signs, adds.reshape(len(adds), -1)).reshape(*signs.shape, -1)
    hidden = jnp.clip(contexts[..., None, :] + sums, 0, LARGEST)
    products = hidden * expanded(later, hidden)
    logits = _sum_shifted(products, logit_shift(contexts.shape[-1]))
    logits += expanded(bias, logits)
    logits = jnp.clip(logits, -LARGEST_LOGIT, LARGEST_LOGIT)
    bits = signs > 0
    for place in layout.limited:
        zero = layout.must_be_zero(bits, place)
        chosen = jnp.where(zero, -LARGEST_LOGIT, logits[..., place])
        logits = logits.at[..., place].set(chosen)
    return logits


class TokenBits:
    """Goes through the bits of tokens on the host, where the decoder is; as `bit_logits`.

    Whole numbers in float32, whose products are fast, or in float64 where sums may pass 2^24.
    """

    def __init__(self, shape: PriorShape, params: Any):
        """Takes the parameters of a prior."""
        self.drop, self.layout = logit_shift(shape.hidden), shape.layout
        self._type: Any = np.float32 if shape.hidden <= _EXACT_PRODUCTS else np.float64

        def integers(name: str) -> np.ndarray:
            scaled = np.clip(np.asarray(params[name], np.float32) * UNIT, -LARGEST, LARGEST)
            return np.round(scaled).astype(self._type)

        earlier, self._later = integers("earlier"), integers("later")
        self._adds = np.stack([-earlier, earlier], axis=1)  # [bit, 0 or 1, hidden]
        self._scale = self._type(2.0**-self.drop)
        # With the half that rounds, and so that the lowest logit becomes 0.
        self._add = integers("logit_bias") + self._type(LARGEST_LOGIT + 0.5)
        self._limited = frozenset(shape.layout.limited)

    def decode(
        self, contexts: np.ndarray, kept: int, read: Callable[[np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """All bits of tokens, the first bit of all tokens first.

        Args:
          contexts: ``[..., hidden]``.
          kept: how many bits of a token there are.
          read: gives bits 0 or 1 ``[token]`` for logits above the lowest, ``LARGEST_LOGIT +
            logit``, whole numbers of the same shape.

        Returns:
          uint8 ``[..., kept]``.
        """
        sums = contexts.reshape(-1, contexts.shape[-1]).astype(self._type)
        hidden, change = np.empty_like(sums), np.empty_like(sums)
        found = np.zeros((kept, len(sums)), np.uint8)
        for bit in range(kept):
            np.maximum(sums, 0, out=hidden)
            np.minimum(hidden, LARGEST, out=hidden)
            made = hidden @ self._later[bit]
            made *= self._scale
            made += self._add[bit]
            np.maximum(made, 0, out=made)
            np.minimum(made, 2 * LARGEST_LOGIT, out=made)
            logits = made.astype(np.intp)  # none is negative: rounded down
            if bit in self._limited:
                logits[self.layout.must_be_zero(found.T, bit)] = 0
            values = read(logits)
            found[bit] = values
            self._adds[bit].take(values, axis=0, out=change, mode="clip")
            sums += change
        return np.ascontiguousarray(found.T).reshape(*contexts.shape[:-1], kept)


def _sum_shifted(products: jax.Array, bits: int) -> jax.Array:
    """The sum over the last axis of products of two numbers of 8 bits, shifted; float32."""
    each = _EXACT_PRODUCTS
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
