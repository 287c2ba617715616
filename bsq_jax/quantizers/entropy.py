"""Entropies of the soft assignment of a token to the corners of the hypercube (paper, section 3.2).

The soft assignment factorises: bit d is one with probability sigmoid(logit_d). Both terms of the
entropy penalty follow from the L logits of a token, without ever touching 2^L codes.
"""

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.quantizers.bits import group_sizes


def soft_logits(unit: jax.Array, inv_temperature: float = 1.0) -> jax.Array:
    """Logits of the bits of the soft assignment, ``4 u inv_temperature / sqrt(L)``.

    Args:
      unit: points on the unit sphere, ``[..., L]``.
      inv_temperature: sharpness; the paper's tau is twice this.
    """
    return unit * (4.0 * inv_temperature / np.sqrt(unit.shape[-1]).astype(np.float32))


def binary_entropy(logits: jax.Array) -> jax.Array:
    """Entropy in nats of independent bits given their logits, elementwise, exact at any size.

    ``H = softplus(l) - l sigmoid(l)``, which is even in l; written in -|l| so that nothing cancels.
    """
    a = jnp.abs(logits)
    decay = jnp.exp(-a)
    return jnp.log1p(decay) + a * decay / (1.0 + decay)


def token_entropy(logits: jax.Array) -> jax.Array:
    """Mean over tokens of a token's entropy in nats: ``E_u[H(q(.|u))]``, exact in O(L).

    Args:
      logits: ``[..., L]``.
    """
    return jnp.mean(jnp.sum(binary_entropy(logits), axis=-1))


def _code_probabilities(logits: jax.Array) -> jax.Array:
    """Joint distributions of independent bits: ``[..., bit]`` logits to ``[..., 2^bits]``.

    The first bit is the most significant one of the index. The log of a product of Bernoulli
    probabilities is linear in the code, so all codes come from two matrix products.
    """
    size = logits.shape[-1]
    codes = jnp.asarray((np.arange(2**size)[:, None] >> np.arange(size)[::-1]) & 1, jnp.float32)
    log_joint = jnp.einsum(
        "...b,cb->...c", jax.nn.log_sigmoid(logits), codes, precision=jax.lax.Precision.HIGHEST
    ) + jnp.einsum(
        "...b,cb->...c", jax.nn.log_sigmoid(-logits), 1 - codes, precision=jax.lax.Precision.HIGHEST
    )
    return jnp.exp(log_joint)


def _mean_distribution(groups: jax.Array) -> jax.Array:
    """Mean over tokens: logits ``[token, group, bit]`` to ``[group, 2^bits]``."""
    half = groups.shape[-1] // 2
    high, low = _code_probabilities(groups[..., :half]), _code_probabilities(groups[..., half:])
    joint = jnp.einsum("ngi,ngj->gij", high, low, precision=jax.lax.Precision.HIGHEST)
    return joint.reshape(groups.shape[1], -1) / groups.shape[0]


def group_distributions(logits: jax.Array, group_size: int) -> list[jax.Array]:
    """Average over tokens of the soft assignment, for each group of channels.

    The average over tokens of an outer product is a matrix product over tokens, so a group of g
    bits costs two small distributions of 2^(g/2) a token and one product: the 2^g-way
    distribution of a single token never exists.

    Args:
      logits: ``[..., L]``; all leading axes are tokens.
      group_size: bits a group, g.

    Returns:
      ``[group, 2^g]`` of the groups of equal size and, where g does not divide L, ``[1, 2^rest]``
      of the last one. Rows sum to one.
    """
    flat = logits.reshape(-1, logits.shape[-1])
    sizes = group_sizes(logits.shape[-1], group_size)
    equal = sum(size == group_size for size in sizes)
    split = equal * group_size
    averages = [_mean_distribution(flat[:, :split].reshape(-1, equal, group_size))]
    if equal < len(sizes):
        averages.append(_mean_distribution(flat[:, None, split:]))
    return averages


def _entr(p: jax.Array) -> jax.Array:
    """``-p log p``; the bound keeps the gradient finite where a probability has become zero."""
    return jax.scipy.special.entr(jnp.maximum(p, np.finfo(np.float32).tiny))


def codebook_entropy(logits: jax.Array, group_size: int = 1) -> jax.Array:
    """Entropy in nats of the average soft assignment, groups of channels taken as independent.

    ``H(E_u[q])`` summed over groups: exact when the group is the whole token, an upper bound
    otherwise. Inside a jitted program whose batch is sharded the average runs over the GLOBAL
    batch.

    Args:
      logits: ``[..., L]``.
      group_size: bits a group; 1 costs O(L).
    """
    if group_size == 1:
        average = jnp.mean(jax.nn.sigmoid(logits.reshape(-1, logits.shape[-1])), axis=0)
        return jnp.sum(_entr(average) + _entr(1 - average))
    groups = group_distributions(logits, group_size)
    return sum((jnp.sum(_entr(p)) for p in groups), start=jnp.float32(0))
