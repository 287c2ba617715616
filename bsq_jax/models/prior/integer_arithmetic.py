"""Arithmetic that gives the same on every machine, for networks whose output steers a decoder.

A decoder of entropy-coded bits must see the very probabilities that the encoder saw. Floating-point
sums depend on their order, and so on the release of a compiler, the hardware and the batch. Here
every number is a whole number of at most 24 bits held in float32, so that no operation ever rounds:

* operands of matrix products have at most 8 bits, which bfloat16 and TF32 units hold too, and
  sums stay below 2^24;
* rounding is written out (`shift`, `divide`), and what is not polynomial is made of integer
  operations (`powers`).

For training each of these has the gradient of what it stands for (straight through).
Integer networks for this purpose: Balle et al., ICLR 2019.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

LARGEST = 127  # of an operand of a matrix product
SUM_BITS = 24  # whole numbers up to 2^24 are exact in float32, and so are their sums up to there
UNIT = 64  # a parameter of 1.0 is the whole number 64
STEPS = 16  # scores in this many steps an octave: 16 more doubles a weight of attention
MEAN = 32  # mean magnitude of what `normalize` returns
RESIDUAL = 2**15 - 1  # largest magnitude in the residual stream
TOP = 128  # largest weight of attention
# Largest sum of magnitudes that `normalize` divides by: twice this must not pass 2^31.
LARGEST_TOTAL = 2**30


@jax.custom_jvp
def exactly(value: jax.Array, smooth: jax.Array) -> jax.Array:
    """`value`, with the derivative of `smooth`."""
    del smooth
    return value


@exactly.defjvp
def _exactly_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return primals[0], tangents[1]


def whole(parameter: jax.Array, limit: int = LARGEST) -> jax.Array:
    """The whole number that a trained parameter stands for, within ``[-limit, limit]``."""
    scaled = jnp.clip(parameter * UNIT, -limit, limit)
    return exactly(jnp.round(scaled), scaled)


def expanded(x: jax.Array, y: jax.Array) -> jax.Array:
    """The array with axes of size 1 before its own, as many axes in all as `y` has."""
    return x.reshape((1,) * (y.ndim - x.ndim) + x.shape)


def weight_limit(inputs: int) -> int:
    """Largest magnitude of weights of so many inputs within ``[-127, 127]``, for exact sums."""
    return min(LARGEST, 2**SUM_BITS // (LARGEST * inputs))


def weights(parameter: jax.Array) -> jax.Array:
    """A matrix ``[input, output]`` in whole numbers small enough that its products stay exact."""
    return whole(parameter, weight_limit(parameter.shape[0]))


def shift(x: jax.Array, bits: int) -> jax.Array:
    """``x / 2^bits``, rounded to the nearest, halves up."""
    scaled = x * np.float32(2.0**-bits)
    return exactly(jnp.floor(scaled + np.float32(0.5)), scaled)


def product(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x @ y`` of whole numbers of at most 8 bits, whose sums stay below 2^24; float32."""
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)


def divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Quotient rounded down, of int32 with positive denominators and quotients below 2^22.

    A float division may be off by one either way, depending on the machine; the remainder tells.
    """
    ratio = numerator.astype(jnp.float32) / denominator.astype(jnp.float32)
    return _corrected(jnp.floor(ratio).astype(jnp.int32), numerator, denominator)


def _corrected(quotient: jax.Array, numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """The quotient rounded down, from one that may be off by one either way."""
    rest = numerator - quotient * denominator
    return quotient + (rest >= denominator).astype(jnp.int32) - (rest < 0).astype(jnp.int32)


def normalize(x: jax.Array) -> jax.Array:
    """Scales vectors to a mean magnitude of `MEAN`, within ``[-127, 127]``.

    The mean magnitude takes the place of the root mean square, whose squares would not fit.

    Args:
      x: whole numbers below 2^24, ``[..., width]``, whose magnitudes sum to `LARGEST_TOTAL` at
        most; see `bsq_jax.models.prior.bounds`.
    """
    factor = MEAN * x.shape[-1]
    fixed = jax.lax.stop_gradient(x)
    integer = fixed.astype(jnp.int32)
    total = jnp.maximum(jnp.sum(jnp.abs(integer), axis=-1, keepdims=True), x.shape[-1])
    # The numerator may need more than 32 bits. It is then known modulo 2^32, and so is the
    # remainder, which itself lies in [-total, 2 total) and therefore comes out right. The quotient
    # is at most `factor`, so that the float estimate is off by one at most.
    ratio = fixed * np.float32(factor) / total.astype(jnp.float32)
    quotient = jnp.floor(ratio + np.float32(0.5)).astype(jnp.int32)
    value = _corrected(quotient, integer * factor + total // 2, total).astype(jnp.float32)
    length = jnp.maximum(jnp.sum(jnp.abs(x), axis=-1, keepdims=True), x.shape[-1])
    return jnp.clip(exactly(value, x * factor / length), -LARGEST, LARGEST)


def powers(scores: jax.Array, lower: int = 0, axis: int = -1) -> jax.Array:
    """Weights of attention: about ``128 * 2^((score - highest score) / 16)``, whole numbers.

    Between powers of two they run along straight lines; what is below 1 is 0.

    Args:
      scores: whole numbers, ``[..., key]``.
      lower: the weights are divided by ``2^lower``, see `lowering`.
      axis: of the keys.
    """
    highest = jax.lax.stop_gradient(jnp.max(scores, axis=axis, keepdims=True))
    below = jnp.minimum((highest - jax.lax.stop_gradient(scores)), 31 * STEPS).astype(jnp.int32)
    octaves, rest = below >> 4, below & 15
    value = jax.lax.shift_right_logical((2 * STEPS - rest) << 2, octaves + lower)
    smooth = TOP * 2.0**-lower * jnp.exp2((scores - highest) / STEPS)
    return exactly(value.astype(jnp.float32), smooth)


def lowering(keys: int) -> int:
    """Bits that weights of attention must give up for sums over so many keys to stay exact."""
    room = 2**SUM_BITS // (TOP * LARGEST)
    return max(0, (-(-keys // room) - 1).bit_length())


def average(shares: jax.Array, values: jax.Array) -> jax.Array:
    """Weighted mean of values, rounded to the nearest.

    Args:
      shares: of `powers`, ``[..., query, key]``, one of them positive.
      values: whole numbers within ``[-127, 127]``, ``[..., key, channel]``.
    """
    return quotient(product(shares, values), jnp.sum(shares, axis=-1, keepdims=True))


def quotient(mixed: jax.Array, total: jax.Array) -> jax.Array:
    """A weighted sum of values over the sum of the weights, rounded to the nearest; float32.

    Args:
      mixed: whole numbers, ``[..., channel]``, whose quotients are within ``[-127, 127]``.
      total: of the weights, positive, ``[..., 1]``.
    """
    top, bottom = (jax.lax.stop_gradient(x).astype(jnp.int32) for x in (mixed, total))
    value = divide(2 * top + bottom, 2 * bottom).astype(jnp.float32)
    return exactly(value, mixed / total)
