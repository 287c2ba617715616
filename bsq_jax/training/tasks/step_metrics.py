"""The metrics of a tokenizer's training step.

Micro-batches give means that add up; what is no mean, such as PSNR, is computed once from those of
the whole batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.core.clips import weighted_mean
from bsq_jax.quantizers import Quantized
from bsq_jax.quantizers.health import COUNTS, code_counts, health_of
from bsq_jax.quantizers.layout import TokenLayout

Metrics = dict[str, jax.Array]

ENTROPIES = ("token_entropy", "codebook_entropy")
"""Terms of the quantizer's loss that are entropies: in nats there, in bits wherever they show."""


def reconstruction_metrics(
    quantized: Quantized,
    layout: TokenLayout,
    pixels: jax.Array,
    fake: jax.Array,
    weights: jax.Array | None,
    of_tokens: jax.Array | None,
) -> Metrics:
    """Metrics of a micro-batch that no loss gives: all are means over its real frames.

    Args:
      quantized: the tokens.
      layout: of their bits.
      pixels: in [-1, 1], ``[batch, time, height, width, 3]``.
      fake: their reconstructions, not clamped.
      weights: of the frames, ``[batch, time]``; None: all count alike.
      of_tokens: likewise of the frames of tokens.

    Returns:
      The parts of the quantizer's loss, what `health_of` needs, and ``squared_error``.
    """
    error = jnp.square(pixels - jnp.clip(fake, -1.0, 1.0))
    return {
        **quantized.losses,
        **code_counts(quantized.bits, layout, of_tokens),
        "squared_error": weighted_mean(error, weights),
    }


def finish(metrics: Metrics, layout: TokenLayout, tokens: jax.Array | int, most: int) -> Metrics:
    """The metrics of a step.

    Args:
      metrics: means over the whole batch, those of `reconstruction_metrics` among them.
      layout: of the tokens' bits.
      tokens: of the real frames of the whole batch.
      most: tokens of all its frames.

    Returns:
      The same, with ``psnr`` (dB, of the batch as a whole; evaluation averages over pictures) in
      place of the squared error, the statistics of the tokens in place of their counts, and
      ``token_entropy`` and ``codebook_entropy`` in bits.
    """
    counts = {name: metrics[name] for name in COUNTS if name in metrics}
    error = jnp.maximum(metrics["squared_error"], 1e-10)
    rest = {k: v for k, v in metrics.items() if k not in (*counts, "squared_error")}
    entropies = {name: rest[name] / np.float32(np.log(2)) for name in ENTROPIES if name in rest}
    health = health_of(counts, layout, tokens, most)
    return {**rest, **entropies, **health, "psnr": 10.0 * jnp.log10(4.0 / error)}
