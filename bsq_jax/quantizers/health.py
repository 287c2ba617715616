"""Codebook usage and entropies of the bits of a batch of tokens."""

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.quantizers.bits import to_group_indices
from bsq_jax.quantizers.entropy import token_shares

WATCHED_GROUP = 8


def code_counts(bits: jax.Array, weights: jax.Array | None = None) -> dict[str, jax.Array]:
    """Counts of the tokens of one (global) batch that `health_of` needs, in a form that adds up.

    Args:
      bits: 0/1 ``[..., L]``.
      weights: of the tokens, see `bsq_jax.quantizers.entropy`; None: all count alike.

    Returns:
      ``bit_mean`` float32 ``[L]``, and ``codes_seen`` float32 ``[group, code]``, positive for the
      codes that occur. Those of a large batch are a mean, weighted as the tokens are, of those of
      its parts.
    """
    tokens = bits.reshape(-1, bits.shape[-1])
    ones = tokens.astype(jnp.float32)
    if weights is None:
        mean, counted = jnp.mean(ones, axis=0), jnp.ones(len(tokens), jnp.bool_)
    else:
        shares = token_shares(bits.shape[:-1], weights)
        mean = jnp.minimum(jnp.sum(ones * shares[:, None], axis=0), 1.0)  # rounding may pass 1
        counted = shares > 0
    size = min(WATCHED_GROUP, tokens.shape[-1])
    whole = tokens[:, : tokens.shape[-1] // size * size]
    indices = to_group_indices(whole, size)
    seen = jnp.zeros((indices.shape[1], 2**size), jnp.bool_)
    seen = seen.at[jnp.arange(indices.shape[1])[None, :], indices].max(counted[:, None])
    return {"bit_mean": mean, "codes_seen": seen.astype(jnp.float32)}


def health_of(counts: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Statistics of tokens.

    Args:
      counts: of `code_counts`.

    Returns:
      ``bit_mean`` ``[L]``, the share of ones of each bit; ``bit_entropy`` and ``bit_entropy_min``,
      mean and smallest entropy of a bit, 0 (dead) to 1 (fair coin); ``group_usage``, the codebook
      usage of groups of 8 bits, averaged over groups: near 1 in a healthy model once a batch has
      some thousand tokens, and a few per cent after a collapse.
    """
    mean = jnp.minimum(counts["bit_mean"], 1.0)  # rounding may pass 1, also that of a sum of parts
    entropy = (jax.scipy.special.entr(mean) + jax.scipy.special.entr(1 - mean)) / np.float32(
        np.log(2)
    )
    return {
        "bit_mean": mean,
        "bit_entropy": jnp.mean(entropy),
        "bit_entropy_min": jnp.min(entropy),
        "group_usage": jnp.mean((counts["codes_seen"] > 0).astype(jnp.float32)),
    }
