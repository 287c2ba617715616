"""Entropies of the soft assignment of a token to the corners of the hypercube (paper, section 3.2).

The soft assignment factorises: bit d is one with probability sigmoid(logit_d). Both terms of the
entropy penalty follow from the L logits of a token, without ever touching 2^L codes.

Tokens may be weighted. The axes of the weights are the first of the tokens' axes, so that frames
can be weighted as a whole. Weights are not negative and not all zero; zero leaves tokens out.
"""

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.core.array_checks import check_array
from bsq_jax.core.clips import weighted_mean, with_axes
from bsq_jax.quantizers.bits import group_sizes


def _check(logits: jax.Array, weights: jax.Array | None) -> None:
    check_array("logits", logits, "L", leading=True)
    if weights is not None and weights.shape != logits.shape[: weights.ndim]:
        raise ValueError(
            f"weights {list(weights.shape)} are not of the first axes of logits "
            f"{list(logits.shape)}"
        )


def soft_logits(
    points: jax.Array, inv_temperature: float = 1.0, slope: float | None = None
) -> jax.Array:
    """Logits of the bits of the soft assignment, ``4 u inv_temperature / slope``.

    Args:
      points: ``[..., L]``.
      inv_temperature: sharpness; the paper's tau is twice this.
      slope: one over the size of a corner's coordinates; None: sqrt(L), those in the unit sphere.
    """
    slope = np.sqrt(points.shape[-1]) if slope is None else slope
    return points * (np.float32(4.0 * inv_temperature) / np.float32(slope))


def binary_entropy(logits: jax.Array) -> jax.Array:
    """Entropy in nats of independent bits given their logits, elementwise, exact at any size.

    ``H = softplus(l) - l sigmoid(l)``, which is even in l; written in -|l| so that nothing cancels.
    """
    a = jnp.abs(logits)
    decay = jnp.exp(-a)
    return jnp.log1p(decay) + a * decay / (1.0 + decay)


def token_entropy(logits: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Mean over tokens of a token's entropy in nats: ``E_u[H(q(.|u))]``, exact in O(L).

    Args:
      logits: ``[..., L]``.
      weights: of the tokens; None: all count alike.
    """
    _check(logits, weights)
    return weighted_mean(jnp.sum(binary_entropy(logits), axis=-1), weights)


def token_shares(shape: tuple[int, ...], weights: jax.Array) -> jax.Array:
    """The share of each token in a weighted mean: ``[token]``, sums to one.

    Args:
      shape: axes of the tokens.
      weights: see the top of this module.
    """
    weights = with_axes(weights.astype(jnp.float32), len(shape))
    every = jnp.broadcast_to(weights, shape).reshape(-1)
    return every / jnp.sum(every)


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


def _mean_distribution(groups: jax.Array, shares: jax.Array | None) -> jax.Array:
    """Mean over tokens: logits ``[token, group, bit]`` to ``[group, 2^bits]``."""
    half = groups.shape[-1] // 2
    high, low = _code_probabilities(groups[..., :half]), _code_probabilities(groups[..., half:])
    if shares is not None:
        high = high * shares[:, None, None]
    joint = jnp.einsum("ngi,ngj->gij", high, low, precision=jax.lax.Precision.HIGHEST)
    joint = joint.reshape(groups.shape[1], -1)
    return joint / groups.shape[0] if shares is None else joint


def group_distributions(
    logits: jax.Array, group_size: int, weights: jax.Array | None = None
) -> list[jax.Array]:
    """Average over tokens of the soft assignment, for each group of channels.

    The average over tokens of an outer product is a matrix product over tokens, so a group of g
    bits costs two small distributions of 2^(g/2) a token and one product: the 2^g-way
    distribution of a single token never exists.

    Args:
      logits: ``[..., L]``; all leading axes are tokens.
      group_size: bits a group, g.
      weights: of the tokens; None: all count alike.

    Returns:
      ``[group, 2^g]`` of the groups of equal size and, where g does not divide L, ``[1, 2^rest]``
      of the last one. Rows sum to one.
    """
    _check(logits, weights)
    flat = logits.reshape(-1, logits.shape[-1])
    sizes = group_sizes(logits.shape[-1], group_size)
    equal = sum(size == group_size for size in sizes)
    split = equal * group_size
    shares = None if weights is None else token_shares(logits.shape[:-1], weights)
    averages = [_mean_distribution(flat[:, :split].reshape(-1, equal, group_size), shares)]
    if equal < len(sizes):
        averages.append(_mean_distribution(flat[:, None, split:], shares))
    return averages


def _entr(p: jax.Array) -> jax.Array:
    """``-p log p``; the bound keeps the gradient finite where a probability has become zero."""
    return jax.scipy.special.entr(jnp.maximum(p, np.finfo(np.float32).tiny))


def codebook_entropy(
    logits: jax.Array, group_size: int = 1, weights: jax.Array | None = None
) -> jax.Array:
    """Entropy in nats of the average soft assignment, groups of channels taken as independent.

    ``H(E_u[q])`` summed over groups: exact when the group is the whole token, an upper bound
    otherwise. Inside a jitted program whose batch is sharded the average runs over the GLOBAL
    batch.

    Args:
      logits: ``[..., L]``.
      group_size: bits a group; 1 costs O(L).
      weights: of the tokens; None: all count alike.
    """
    _check(logits, weights)
    if group_size == 1:
        ones = jax.nn.sigmoid(logits.reshape(-1, logits.shape[-1]))
        if weights is None:
            average = jnp.mean(ones, axis=0)
        else:
            average = jnp.sum(ones * token_shares(logits.shape[:-1], weights)[:, None], axis=0)
        return jnp.sum(_entr(average) + _entr(1 - average))
    groups = group_distributions(logits, group_size, weights)
    return sum((jnp.sum(_entr(p)) for p in groups), start=jnp.float32(0))
