"""Losses of the two players, and what keeps the discriminator in check.

Logits are float32 ``[batch, samples, ...]``; a loss is the mean over all of them, or the weighted
mean where samples have weights ``[batch, samples]``, zero for those that are padding. Inside one
jitted program over a sharded batch that is the mean over the GLOBAL batch.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bsq_jax.core.clips import weighted_mean, with_axes
from bsq_jax.core.errors import UserError

KINDS = ("non_saturating", "hinge")


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise UserError(f"adversarial loss '{kind}': it must be one of {', '.join(KINDS)}")


def generator_loss(kind: str, fake: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """What the generator minimises.

    Args:
      kind: ``non_saturating``, mean softplus(-D) (Goodfellow et al. 2014; the published runs), or
        ``hinge``, mean(-D) (Lim and Ye 2017).
      fake: logits of reconstructions.
      weights: of the samples; None: all count alike.

    Returns:
      A scalar.

    Raises:
      UserError: an unknown kind.
    """
    _check_kind(kind)
    if kind == "hinge":
        return -weighted_mean(fake, weights)
    return weighted_mean(jax.nn.softplus(-fake), weights)


def discriminator_loss(
    kind: str, real: jax.Array, fake: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """What the discriminator minimises: the mean of its losses on real pictures and on fake ones.

    Args:
      kind: ``non_saturating``, softplus(-D) on real and softplus(D) on fake ones, or ``hinge``,
        max(0, 1 - D) and max(0, 1 + D).
      real: logits of real pictures.
      fake: logits of reconstructions.
      weights: of the samples, of both kinds alike; None: all count alike.

    Returns:
      A scalar; the half in front of the sum is that of the published code.

    Raises:
      UserError: an unknown kind.
    """
    _check_kind(kind)
    if kind == "hinge":
        each = jax.nn.relu(1.0 - real) + jax.nn.relu(1.0 + fake)
    else:
        each = jax.nn.softplus(-real) + jax.nn.softplus(fake)
    return 0.5 * weighted_mean(each, weights)


def r1_penalty(
    logits: Callable[[jax.Array], jax.Array], pixels: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """Squared gradient of the logits at real pictures (Mescheder et al. 2018, R1).

    Differentiating it with respect to the discriminator's parameters takes a second-order gradient,
    which JAX gives.

    Args:
      logits: maps pixels to logits ``[batch, samples, ...]``: a sample is a frame for
        discriminators of frames, a clip for those of clips.
      pixels: real pictures ``[batch, time, height, width, channel]``.
      weights: of the samples, 1 for those that count and 0 for the others; None: all count.

    Returns:
      The mean over samples of the squared norm of d (sum of logits) / d pixels, a scalar. The
      caller multiplies by gamma / 2. Only samples that count are in the sum, and only gradients at
      their own pixels: what statistics over the batch send to padding is left out.
    """
    outputs, pull = jax.vjp(logits, pixels)
    counted = jnp.ones(outputs.shape[:2], outputs.dtype) if weights is None else weights
    cotangent = with_axes(counted.astype(outputs.dtype), outputs.ndim)
    (gradient,) = pull(jnp.broadcast_to(cotangent, outputs.shape))
    squares = jnp.square(gradient.astype(jnp.float32))
    if weights is not None:
        squares *= with_axes(weights, squares.ndim)
    return jnp.sum(squares) / jnp.sum(counted)


def lecam(
    real: jax.Array, fake: jax.Array, anchors: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """LeCAM regulariser of the discriminator (Tseng et al. 2021, equation 4), for little data.

    Pulls the logits of each kind towards the averaged logits of the other, but only from outside.

    Args:
      real: logits of real pictures.
      fake: logits of reconstructions.
      anchors: float32 ``[2]``: averaged logits of real pictures and of reconstructions.
      weights: of the samples; None: all count alike.
    """
    above = jnp.square(jax.nn.relu(real - anchors[1]))
    below = jnp.square(jax.nn.relu(anchors[0] - fake))
    return weighted_mean(above + below, weights)


def adaptive_weight(reconstruction: jax.Array, adversarial: jax.Array) -> jax.Array:
    """Factor that brings the adversarial gradient to the size of the other one (VQGAN, equation 7).

    Args:
      reconstruction: gradient of reconstruction and perceptual loss with respect to the weights of
        the generator's last layer.
      adversarial: that of the adversarial loss.

    Returns:
      The ratio of the norms, at most 1e4; a scalar.
    """
    norms = [_norm(jnp.ravel(g).astype(jnp.float32)) for g in (reconstruction, adversarial)]
    return jnp.clip(norms[0] / (norms[1] + 1e-4), 0.0, 1e4)


def _norm(vector: jax.Array) -> jax.Array:
    """Euclidean norm of a float32 vector whose squares may be out of float32's range."""
    # A power of two near the largest value, so that dividing by it rounds nothing.
    exponent = jnp.clip(jnp.frexp(jnp.max(jnp.abs(vector)))[1], -100, 126)
    scale = jnp.ldexp(jnp.float32(1), exponent)
    return jnp.linalg.norm(vector / scale) * scale
