"""Which patterns of a token's bits name a code, for all that draws, codes or checks tokens.

A token is one or several stages of equally many bits. The bits of a stage, read as a number with
the first bit most significant, name a code where that number is less than the number of codes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from bsq_jax.quantizers.bits import below


class TokenLayout(NamedTuple):
    """The patterns of a token's bits.

    Attributes:
      stages: of a token; 1 unless the quantizer is a residual one.
      bits: of a stage.
      codes: of a stage, more than half of the ``2^bits`` patterns.
    """

    stages: int
    bits: int
    codes: int

    @property
    def length(self) -> int:
        """Bits of a token, L."""
        return self.stages * self.bits

    @property
    def full(self) -> bool:
        """Whether all patterns name codes."""
        return self.codes == 2**self.bits

    @property
    def last(self) -> np.ndarray:
        """The bits of a stage's last code, uint8 ``[bits]``."""
        places = reversed(range(self.bits))
        return np.array([self.codes - 1 >> place & 1 for place in places], np.uint8)

    def names_code(self, bits: Any) -> Any:
        """Which tokens name a code.

        Args:
          bits: 0/1 ``[..., L]``, or of each token the bits of its first stages; in numpy or JAX.

        Returns:
          Booleans ``[...]`` of the same kind.
        """
        if self.full:
            return below(bits, 2 ** bits.shape[-1])
        stages = bits.reshape(*bits.shape[:-1], -1, self.bits)
        return below(stages, self.codes).all(axis=-1)

    @property
    def limited(self) -> tuple[int, ...]:
        """The places of a token's bits that must be 0 behind some earlier bits of their stage."""
        if self.full:
            return ()
        places = np.flatnonzero(self.last == 0)
        return tuple(int(stage * self.bits + p) for stage in range(self.stages) for p in places)

    def must_be_zero(self, bits: Any, place: int) -> Any:
        """Where only a 0 can follow: as far as the stage goes, it is that of the last code.

        Args:
          bits: 0/1 ``[..., L]``, or at least those before `place`; in numpy or JAX.
          place: one of `limited`.

        Returns:
          Booleans ``[...]`` of the same kind.
        """
        first = place // self.bits * self.bits
        last = self.last[: place - first].reshape((1,) * (bits.ndim - 1) + (-1,))
        return (bits[..., first:place] == last).all(axis=-1)
