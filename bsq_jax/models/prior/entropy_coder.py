"""Arithmetic coding of bits whose probabilities are whole numbers.

A logit is a whole number, `LOGIT` a nat (`bsq_jax.models.prior.token_bits`), and a table turns it
into a probability of so many in 2^16. The table is computed in decimal arithmetic, whose results
are fixed by a standard, so that it is the same on every machine. The coder itself is constriction's
range coder, which takes probabilities as float64: those of so many in 2^16 are exact.
"""

from __future__ import annotations

import decimal
import functools

import constriction
import numpy as np

from bsq_jax.models.prior.token_bits import LARGEST_LOGIT, LOGIT

_PRECISION = 2**16
_BITS = constriction.stream.model.Bernoulli(perfect=False)


@functools.cache
def probabilities() -> np.ndarray:
    """Probability of a one for each logit from ``-LARGEST_LOGIT`` to ``LARGEST_LOGIT``, float64."""
    with decimal.localcontext(prec=30, rounding=decimal.ROUND_HALF_EVEN):
        one = decimal.Decimal(1)
        table = [
            int((_PRECISION / (one + (-decimal.Decimal(logit) / LOGIT).exp())).to_integral_value())
            for logit in range(-LARGEST_LOGIT, LARGEST_LOGIT + 1)
        ]
    return np.clip(table, 1, _PRECISION - 1) / np.float64(_PRECISION)


def chance_of_one(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits, float64 of the same shape."""
    return probabilities()[np.asarray(logits, np.int32) + LARGEST_LOGIT]


class Encoder:
    """Collects bits, and gives the bytes that stand for them."""

    def __init__(self) -> None:
        """Begins with no bits."""
        self._coder = constriction.stream.queue.RangeEncoder()

    def write(self, bits: np.ndarray, logits: np.ndarray) -> None:
        """Adds bits 0/1 in the order of memory; logits are of the same shape."""
        chances = np.ascontiguousarray(chance_of_one(logits).ravel())
        self._coder.encode(np.ascontiguousarray(bits.ravel(), np.int32), _BITS, chances)

    def size(self) -> int:
        """Bytes so far, about."""
        return self._coder.num_words() * 4

    def result(self) -> bytes:
        """All bytes: 32-bit words, little-endian."""
        return self._coder.get_compressed().astype("<u4").tobytes()


class Decoder:
    """Gives back the bits that an `Encoder` was given, if it is shown the same logits."""

    def __init__(self, data: bytes):
        """Begins at the first bit.

        Args:
          data: of `Encoder.result`; whole words.
        """
        words = np.frombuffer(data, "<u4").astype(np.uint32)
        self._coder = constriction.stream.queue.RangeDecoder(words)

    def read(self, logits: np.ndarray) -> np.ndarray:
        """The next bits, uint8 of the shape of the logits.

        Bytes that no `Encoder` made give some bits or an ``AssertionError``.
        """
        bits = self.read_levels(np.ravel(np.asarray(logits, np.int32)) + LARGEST_LOGIT)
        return np.asarray(bits, np.uint8).reshape(logits.shape)

    def read_levels(self, levels: np.ndarray) -> np.ndarray:
        """As `read`, int32 ``[bit]``, of ``LARGEST_LOGIT + logit``, whole numbers ``[bit]``."""
        return np.asarray(self._coder.decode(_BITS, probabilities().take(levels)))
