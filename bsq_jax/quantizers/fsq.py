"""Finite scalar quantization (arXiv 2309.15505): every channel is rounded to a few levels."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.quantizers import radix
from bsq_jax.quantizers.base import Quantizer

_MARGIN = 1e-3  # the outer levels are a little inside of what the tanh reaches


class FiniteScalarQuantizer(Quantizer):
    """Bounds each channel with a tanh and rounds it to one of its levels.

    Has no parameters, no codebook and no loss. A token is the number whose digits are the levels'
    numbers, the first channel's most significant.

    Levels lie at ``k / floor(n / 2)``: k from ``-(n - 1) / 2`` to ``(n - 1) / 2`` for an odd number
    n of levels, from ``-n / 2`` to ``n / 2 - 1`` for an even one, as published, so that 0 is one of
    them. Centered ones are symmetric for an even n too, k is then ``-(n - 1) / 2`` and so on.
    Two levels are always centered: as published the step between them is where the tanh is flat, at
    -3.8, and the gradient vanishes.

    Attributes:
      levels: of each channel, 2 to 2^16.
      centered: whether levels are symmetric, which residual stages need, see `step`.
      whole_cells: whether latents go on to the end of the outer levels' cells, half a distance of
        levels further: what the outer levels leave for later stages then lies on both sides of
        them. Else they end at the outer levels, as published.
    """

    levels: tuple[int, ...]
    centered: bool = False
    whole_cells: bool = False

    @property
    def bits(self) -> int:
        """ceil(log2(product of the levels))."""
        return radix.length(self.levels)

    @property
    def channels(self) -> int:
        """One for each entry of the levels."""
        return len(self.levels)

    @property
    def codes(self) -> int:
        """The product of the levels."""
        return math.prod(self.levels)

    @property
    def step(self) -> jax.Array:
        """1 / n of each channel, so that stages nest.

        What a stage leaves of a channel is in a cell as wide as the distance of two levels, and
        centered levels of the next one, n times as near to each other, divide it into n equal
        cells: R stages are a uniform quantizer of n^R levels. (Levels that are not symmetric would
        leave half of a small cell over at one end.)
        """
        return jnp.asarray(1 / self._count, jnp.float32)

    @property
    def scalar_levels(self) -> int:
        """The levels of a channel, where all channels have equally many."""
        return self.levels[0] if len(set(self.levels)) == 1 else 0

    @property
    def outer_level(self) -> float:
        """Of centered levels; others have no middle."""
        return float(self._lowest[0] / self._width[0])

    def level(self, points: jax.Array) -> jax.Array:
        """Unscaled, from the lowest level on."""
        return points * self._like(self._width, points) + self._like(self._lowest, points)

    def project(self, latents: jax.Array) -> jax.Array:
        """The tanh, shifted so that 0 becomes 0, scaled to the outer levels or their cells."""
        half = self._count / 2 if self.whole_cells else (self._count - 1) * (1 + _MARGIN) / 2
        shift = np.arctanh(self._offset / half)
        bounded = jnp.tanh(latents + self._like(shift, latents)) * self._like(half, latents)
        return (bounded - self._like(self._offset, latents)) / self._like(self._width, latents)

    def nearest(self, points: jax.Array) -> jax.Array:
        """Rounds, to even where two levels are equally near."""
        place = self.level(points)
        # A point that is not a number has a level too, of which `quantized` is not made.
        level = jnp.nan_to_num(jnp.round(place))
        level = jnp.clip(level, 0, self._like(self._count - 1, points))
        return radix.to_bits(level.astype(jnp.int32), self.levels)

    def decode(self, bits: jax.Array) -> jax.Array:
        """The levels."""
        level = radix.to_digits(bits, self.levels).astype(jnp.float32)
        return (level - self._like(self._lowest, level)) / self._like(self._width, level)

    @property
    def _count(self) -> np.ndarray:
        """Levels of each channel, as floats."""
        return np.asarray(self.levels, np.float64)

    @property
    def _width(self) -> np.ndarray:
        """One over the distance of two levels."""
        return self._count // 2

    @property
    def _offset(self) -> np.ndarray:
        """How far the middle of the levels is below 0, in distances of levels."""
        shifted = (self._count % 2 == 0) & (self._count > 2) & (not self.centered)
        return np.where(shifted, 0.5, 0.0)

    @property
    def _lowest(self) -> np.ndarray:
        """How far the lowest level is below 0, in distances of levels."""
        return (self._count - 1) / 2 + self._offset

    @staticmethod
    def _like(values: np.ndarray, array: jax.Array) -> jax.Array:
        """float32 values of the channels, with the axes of an array ``[..., channels]``."""
        return jnp.asarray(values, jnp.float32).reshape((1,) * (array.ndim - 1) + (-1,))
