"""Up to which sizes the integer network of a prior is exact, checked when its shape is made.

The network is exact while every sum fits into what holds it: 2^24 in float32, 2^31 in int32. Each
bound below is the worst case over all parameters and inputs, not what training arrives at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.models.prior.integer_arithmetic import (
    LARGEST,
    LARGEST_TOTAL,
    RESIDUAL,
    SUM_BITS,
    TOP,
    UNIT,
    weight_limit,
)

if TYPE_CHECKING:
    from bsq_jax.models.prior.shape import PriorShape

SCALE = 0.25  # standard deviation of fresh weights: 16 of 127 steps, room to grow by 8
_EXACT = 2**SUM_BITS


def shift_for(fan_in: int, size: float, wanted: float) -> int:
    """Bits to drop of sums of `fan_in` products of numbers of rms `size` with fresh weights."""
    return max(0, round(float(np.log2(size * UNIT * SCALE * np.sqrt(fan_in) / wanted))))


def out_shift(width: int) -> int:
    """Bits that the output of attention drops."""
    # A mean over some values is smaller than the values, hence 12 instead of 32.
    return shift_for(width, 12, 96)


def logit_shift(hidden: int) -> int:
    """Bits that the logit of a bit drops."""
    return shift_for(hidden, 23, 64)


def largest_residual(width: int) -> int:
    """Largest magnitude that `bsq_jax.models.prior.integer_arithmetic.normalize` is given.

    Behind the attention of a block: a residual within `RESIDUAL`, and a product of `width` values
    and weights that is not clipped after its shift.
    """
    product = LARGEST * weight_limit(width) * width
    return RESIDUAL + (product >> out_shift(width)) + 1


def _width_holds(width: int) -> bool:
    # `normalize` sums magnitudes in int32. At these widths `weight_limit` is at least 1 for the
    # 4 x width inputs of the MLP's second product, and x + product stays below 2^24.
    return width * largest_residual(width) <= LARGEST_TOTAL


def _channels_hold(channels: int) -> bool:
    return LARGEST**2 * channels <= _EXACT  # query times key, in float32


def _hidden_holds(hidden: int) -> bool:
    # The host computes (2 x sum + 2^shift) >> (shift + 1) in int32; the device adds up exact parts.
    return 2 * LARGEST**2 * hidden + 2 ** logit_shift(hidden) < 2**31


def _keys_hold(keys: int) -> bool:
    # Weights of attention give up `lowering` bits. The largest is TOP: with more than its 7 bits
    # given up it would be 0, and the sum of the weights, which is divided by, too.
    return -(-keys // (_EXACT // (TOP * LARGEST))) <= TOP


def _bits_hold(bits: int) -> bool:
    # 4 x (signs of this frame and the one before, and a place) in float32; the sums of the network
    # that goes through the bits are smaller.
    return 4 * LARGEST * (2 * bits + 1) <= _EXACT


def check_exact(shape: PriorShape) -> None:
    """Refuses sizes at which the integer network would not be exact.

    Args:
      shape: of a prior.

    Raises:
      UserError: the message names the key, its value and the most that is exact.
    """
    seen = "x".join(map(str, shape.distances)) if shape.any_size else str(shape.tokens)
    bounds: tuple[tuple[str, int, Callable[[int], bool]], ...] = (
        ("prior.width", shape.width, _width_holds),
        ("prior.width / prior.heads", shape.width // shape.heads, _channels_hold),
        ("prior.hidden", shape.hidden, _hidden_holds),
        (f"prior.window x {seen} tokens + 1", shape.keys, _keys_hold),
        ("model.bits", shape.bits, _bits_hold),
    )
    for key, value, holds in bounds:
        if not holds(value):
            most = next(smaller for smaller in range(value - 1, 0, -1) if holds(smaller))
            raise UserError(
                f"{key} is {value}: the whole numbers of a prior are exact up to {most} there, and "
                "what is not exact cannot be decoded elsewhere"
            )
