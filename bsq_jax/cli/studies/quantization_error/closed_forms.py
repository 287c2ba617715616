"""What is known of the error |u - q|^2 of a point u of the unit sphere S^(L-1) and its code q."""

from __future__ import annotations

import math

import numpy as np

LIMIT = 2 - 2 * math.sqrt(2 / math.pi)  # of `bsq_mean` for many channels, 0.404


def bsq_largest(channels: int) -> float:
    """The largest error of BSQ, that of a point on an axis: ``2 - 2 / sqrt(L)``."""
    return 2 - 2 / math.sqrt(channels)


def bsq_mean(channels: int) -> float:
    """The mean error of BSQ over the uniform distribution on the sphere.

    ``2 - 2 E|u|_1 / sqrt(L)`` with ``E|u|_1 = L Gamma(L/2) / (sqrt(pi) Gamma((L+1)/2))``.
    """
    gammas = math.lgamma(channels / 2) - math.lgamma((channels + 1) / 2)
    absolute = channels * math.exp(gammas) / math.sqrt(math.pi)
    return 2 - 2 * absolute / math.sqrt(channels)


def least_mean(channels: int, log2_codes: float) -> float:
    """A lower bound of the mean error of any K unit codes over the uniform distribution.

    No part of the sphere with the K-th of its area has a larger mean inner product with a code
    than the cap around it, and by concavity no division into unequal parts has a larger mean one
    than K such caps. For many channels and R bits a channel, codes of any length, the least error
    tends to Shannon's ``2^(-2R)`` for a Gaussian source of power 1 (Cover and Thomas, Elements of
    Information Theory, theorem 10.3.2); unit codes have ``2 - 2 sqrt(1 - 2^(-2R))``.

    Args:
      channels: L, 2 or more.
      log2_codes: log2 of K.
    """
    # The area of a cap of angle t is the integral of sin^(L-2); that of cos sin^(L-2) is known.
    angle = np.linspace(0, math.pi, 200_001)
    density = np.sin(angle) ** (channels - 2)
    area = np.cumsum((density[1:] + density[:-1]) / 2) * angle[1]
    with np.errstate(divide="ignore"):  # near the pole areas are too small for floats
        bits = np.log2(area[-1]) - np.log2(area)
    cap = float(np.interp(-log2_codes, -bits, angle[1:]))
    covered = float(np.interp(cap, angle[1:], area))
    return 2 - 2 * math.sin(cap) ** (channels - 1) / (channels - 1) / covered
