"""Codebook usage and entropies of the codes and bits of a batch of tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.core.clips import with_axes
from bsq_jax.quantizers.bits import to_index
from bsq_jax.quantizers.entropy import token_shares
from bsq_jax.quantizers.layout import TokenLayout
from bsq_jax.quantizers.words import Vocabulary

WATCHED_GROUP = 8
WATCHED_CODES = 2**16  # the most codes of a stage that are counted one by one

COUNTS = ("bit_mean", "codes_seen", "code_shares")
"""What `code_counts` gives."""


def code_counts(
    bits: jax.Array, layout: TokenLayout, weights: jax.Array | None = None
) -> dict[str, jax.Array]:
    """Counts of the tokens of one (global) batch that `health_of` needs, in a form that adds up.

    Args:
      bits: 0/1 ``[..., L]``.
      layout: of the tokens.
      weights: of the tokens, see `bsq_jax.quantizers.entropy`; None: all count alike.

    Returns:
      ``bit_mean`` float32 ``[L]``; ``codes_seen`` float32 ``[group, code]``, positive for the codes
      of groups of 8 bits that occur; and ``code_shares`` float32 ``[stage, code]``, the share of
      the tokens that has each code, unless a stage has more than 2^16 codes. Those of a large batch
      are a mean, weighted as the tokens are, of those of its parts.
    """
    tokens = bits.reshape(-1, bits.shape[-1])
    ones = tokens.astype(jnp.float32)
    if weights is None:
        mean, counted = jnp.mean(ones, axis=0), jnp.ones(len(tokens), jnp.bool_)
    else:
        shares = token_shares(bits.shape[:-1], weights)
        mean = jnp.minimum(jnp.sum(ones * shares[:, None], axis=0), 1.0)  # rounding may pass 1
        counted = shares > 0
    watched = _watched(layout)
    whole = tokens.reshape(len(tokens), watched.layout.stages, -1)[..., : watched.layout.bits]
    words = watched.read(whole.reshape(len(tokens), -1))
    seen = jnp.zeros((words.shape[1], 2**watched.group_size), jnp.bool_)
    seen = seen.at[jnp.arange(words.shape[1])[None, :], words].max(counted[:, None])
    counts = {"bit_mean": mean, "codes_seen": seen.astype(jnp.float32)}
    if layout.codes <= WATCHED_CODES:
        counts["code_shares"] = _code_shares(bits, layout, weights)
    return counts


def _watched(layout: TokenLayout) -> Vocabulary:
    """The groups whose usage is watched, of tokens without the bits that they leave out.

    Groups of a quantizer all of whose patterns name codes run through its stages.
    """
    if layout.full:
        layout = TokenLayout(1, layout.length, 2**layout.length)
    size = min(WATCHED_GROUP, layout.bits)
    rest = layout.bits % size
    codes = (layout.codes - 1 >> rest) + 1
    return Vocabulary(TokenLayout(layout.stages, layout.bits - rest, codes), size)


def _code_shares(bits: jax.Array, layout: TokenLayout, weights: jax.Array | None) -> jax.Array:
    """The share of the tokens that each code of each stage has, ``[stage, code]``."""
    weights = jnp.ones((), jnp.float32) if weights is None else weights.astype(jnp.float32)
    every = jnp.broadcast_to(with_axes(weights, bits.ndim - 1), bits.shape[:-1]).reshape(-1, 1)
    index = to_index(bits.reshape(len(every), layout.stages, layout.bits))
    # Sums of ones are exact, so that the shares do not depend on the order of the tokens.
    sums = jnp.zeros((layout.stages, layout.codes), jnp.float32)
    sums = sums.at[jnp.arange(layout.stages)[None, :], index].add(every)
    return sums / jnp.sum(every)


def health_of(
    counts: dict[str, jax.Array], layout: TokenLayout, tokens: jax.Array | int, most: int
) -> dict[str, jax.Array]:
    """Statistics of tokens.

    Args:
      counts: of `code_counts`.
      layout: of the tokens.
      tokens: how many were counted.
      most: how many could have been: those that were left out as well.

    Returns:
      ``bit_mean`` ``[L]``, the share of ones of each bit; ``bit_entropy`` and ``bit_entropy_min``,
      mean and smallest entropy of a bit, 0 (dead) to 1 (fair coin); ``group_usage``, the codebook
      usage of groups of 8 bits: near 1 in a healthy model once a batch has some thousand tokens,
      and a few per cent after a collapse.

      Of quantizers with at most 2^16 codes a stage also ``usage``, the codes that occur over the
      most that could, ``min(codes, tokens)``; ``perplexity``, exp of the entropy of the codes, at
      most as many, both means over stages; and, unless a stage has more codes than `most`,
      ``codes_dead``, the number of codes that no token has, in all stages together.
    """
    mean = jnp.minimum(counts["bit_mean"], 1.0)  # rounding may pass 1, also that of a sum of parts
    entropy = (jax.scipy.special.entr(mean) + jax.scipy.special.entr(1 - mean)) / np.float32(
        np.log(2)
    )
    seen = jnp.sum((counts["codes_seen"] > 0).astype(jnp.float32))
    health = {
        "bit_mean": mean,
        "bit_entropy": jnp.mean(entropy),
        "bit_entropy_min": jnp.min(entropy),
        "group_usage": seen / sum(_watched(layout).counts),
    }
    if layout.codes > WATCHED_CODES:
        return health
    shares = counts["code_shares"]
    used = jnp.sum((shares > 0).astype(jnp.float32))
    health |= {
        "usage": used / layout.stages / jnp.minimum(layout.codes, tokens).astype(jnp.float32),
        "perplexity": jnp.mean(jnp.exp(jnp.sum(jax.scipy.special.entr(shares), axis=1))),
    }
    if layout.codes <= most:
        health["codes_dead"] = shares.size - used
    return health
