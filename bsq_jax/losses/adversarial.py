"""Losses of generator and discriminator, and the regularisers of the discriminator.

Logits are float32 ``[batch, samples, ...]``: a sample is a frame or a clip, the axes after it are
those of patches. A loss is the mean over all of them, or the weighted mean where samples have
weights, float32 ``[batch, samples]``, zero for those that are padding. Inside one jitted program
over a sharded batch that is the mean over the GLOBAL batch. Other shapes and dtypes are an
`AssertionError` when a loss is traced.
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from bsq_jax.core.clips import weighted_mean, with_axes
from bsq_jax.core.errors import UserError

KINDS = ("non_saturating", "hinge")


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise UserError(f"adversarial loss '{kind}': it must be one of {', '.join(KINDS)}")


def _check_logits(weights: jax.Array | None, *logits: jax.Array) -> None:
    chex.assert_type(logits, float)
    chex.assert_equal_shape(logits)
    if logits[0].ndim < 2:
        raise AssertionError(f"logits of shape {logits[0].shape} have no axis of samples")
    if weights is not None:
        chex.assert_shape(weights, logits[0].shape[:2])
        chex.assert_type(weights, float)


def generator_loss(kind: str, fake: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """The generator's loss.

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
    _check_logits(weights, fake)
    if kind == "hinge":
        return -weighted_mean(fake, weights)
    return weighted_mean(jax.nn.softplus(-fake), weights)


def discriminator_loss(
    kind: str, real: jax.Array, fake: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """The discriminator's loss: the mean of its losses on originals and on reconstructions.

    Args:
      kind: ``non_saturating``, softplus(-D) on originals and softplus(D) on reconstructions, or
        ``hinge``, max(0, 1 - D) and max(0, 1 + D).
      real: logits of originals.
      fake: logits of reconstructions.
      weights: of the samples, of both kinds alike; None: all count alike.

    Returns:
      A scalar; the half in front of the sum is that of the published code.

    Raises:
      UserError: an unknown kind.
    """
    _check_kind(kind)
    _check_logits(weights, real, fake)
    if kind == "hinge":
        each = jax.nn.relu(1.0 - real) + jax.nn.relu(1.0 + fake)
    else:
        each = jax.nn.softplus(-real) + jax.nn.softplus(fake)
    return 0.5 * weighted_mean(each, weights)


def r1_penalty(
    logits: Callable[[jax.Array], jax.Array], pixels: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """Squared gradient of the logits at originals (Mescheder et al. 2018, R1).

    Differentiating it with respect to the discriminator's parameters takes a second-order gradient,
    which JAX gives.

    Args:
      logits: maps pixels to logits ``[batch, samples, ...]``: a sample is a frame for
        discriminators of frames, a clip for those of clips.
      pixels: originals, float ``[batch, time, height, width, channel]``.
      weights: of the samples, 1 for those that count and 0 for the others; None: all count.

    Returns:
      The mean over samples of the squared norm of d (sum of logits) / d pixels, a scalar. The
      caller multiplies by gamma / 2. Only samples that count are in the sum, and only gradients at
      their own pixels: what statistics over the batch send to padding is left out.
    """
    outputs, pull = jax.vjp(logits, pixels)
    _check_logits(weights, outputs)
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
      real: logits of originals.
      fake: logits of reconstructions.
      anchors: float32 ``[2]``: averaged logits of originals and of reconstructions.
      weights: of the samples; None: all count alike.

    Returns:
      A scalar, unweighted.
    """
    _check_logits(weights, real, fake)
    chex.assert_shape(anchors, (2,))
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
    chex.assert_equal_shape((reconstruction, adversarial))
    chex.assert_type((reconstruction, adversarial), float)
    norms = [_norm(jnp.ravel(g).astype(jnp.float32)) for g in (reconstruction, adversarial)]
    return jnp.clip(norms[0] / (norms[1] + 1e-4), 0.0, 1e4)


def _norm(vector: jax.Array) -> jax.Array:
    """Euclidean norm of a float32 vector whose squares may be out of float32's range."""
    # A power of two near the largest value, so that dividing by it rounds nothing.
    exponent = jnp.clip(jnp.frexp(jnp.max(jnp.abs(vector)))[1], -100, 126)
    scale = jnp.ldexp(jnp.float32(1), exponent)
    return jnp.linalg.norm(vector / scale) * scale
