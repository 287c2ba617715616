"""A quantizer to -1, 0 and 1."""

import jax.numpy as jnp

from bsq_jax.quantizers.base import Quantizer
from bsq_jax.quantizers.radix import to_bits, to_digits


class Ternary(Quantizer):
    """Rounds each channel to -1, 0 or 1; a token is the number with these digits in base 3.

    Attributes:
      digits: channels of a token.
    """

    digits: int = 11

    @property
    def bits(self):
        """Bits of a token: as many as its largest number has."""
        return (self.codes - 1).bit_length()

    @property
    def channels(self):
        """Channels of the latents."""
        return self.digits

    @property
    def codes(self):
        """How many patterns of the bits name a code: the others, up to 2^bits, never occur."""
        return 3**self.digits

    @property
    def step(self):
        """What codes are multiplied by in each further stage, if there are any."""
        return 1 / 3

    def project(self, latents):
        """Float32 latents to points near the codes, both ``[..., channels]``."""
        return 1.5 * jnp.tanh(latents)

    def nearest(self, points):
        """The bits, uint8 0/1 ``[..., L]``, of the codes nearest to points ``[..., channels]``."""
        digits = jnp.clip(jnp.round(jnp.nan_to_num(points)), -1, 1) + 1
        return to_bits(digits.astype(jnp.int32), (3,) * self.digits)

    def decode(self, bits):
        """The codes ``[..., channels]`` of bits ``[..., L]``, which the decoder is given."""
        return to_digits(bits, (3,) * self.digits).astype(jnp.float32) - 1
