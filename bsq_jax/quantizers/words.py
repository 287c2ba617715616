"""Tokens as words: groups of a token's bits, each read as a number from a vocabulary of its own.

A word of as many bits as a stage has is the number of a code, so its vocabulary is the codebook.
Where a stage is several words, its first word takes only the values that occur in codes, and a
later one must be small where all words before it are those of the last code.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bsq_jax.quantizers.bits import MAX_INDEX, from_group_indices, group_sizes, to_group_indices
from bsq_jax.quantizers.layout import TokenLayout


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """How the tokens of a quantizer are read as words.

    Attributes:
      layout: of a token's bits.
      group_size: bits of a word. The last word of a token has what is left; words of tokens of
        several stages are in one stage each, so that the size divides the bits of a stage.

    Raises:
      ValueError: the words are not in one stage each.
    """

    layout: TokenLayout
    group_size: int

    def __post_init__(self) -> None:
        if self.layout.stages > 1 and self.layout.bits % self.group_size:
            raise ValueError(
                f"words of {self.group_size} bits are not in one stage of {self.layout.bits} each"
            )

    @property
    def _sizes(self) -> tuple[int, ...]:
        """Bits of each word of a stage."""
        return group_sizes(self.layout.bits, self.group_size, most=MAX_INDEX)

    @property
    def _last(self) -> tuple[int, ...]:
        """The words of a stage's last code."""
        words, left = [], self.layout.bits
        for size in self._sizes:
            left -= size
            words.append((self.layout.codes - 1 >> left) % 2**size)
        return tuple(words)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many values each word of a token has."""
        first = self._last[0] + 1
        return (first, *(2**size for size in self._sizes[1:])) * self.layout.stages

    def read(self, bits: jax.Array) -> jax.Array:
        """The words of tokens: 0/1 ``[..., L]`` to int32 ``[..., word]``."""
        return to_group_indices(bits, self.group_size)

    def write(self, words: jax.Array) -> jax.Array:
        """Inverse of `read`: integers ``[..., word]`` to uint8 0/1 ``[..., L]``."""
        return from_group_indices(words, self.layout.length, self.group_size)

    def most(self, words: jax.Array, place: int) -> jax.Array | None:
        """The largest value that a word can have in a code.

        Args:
          words: integers ``[..., word]``: those before `place` as they are, those behind it as they
            are or, where they are not known yet, 0. There is a code that has them.
          place: which word, from 0.

        Returns:
          int32 ``[...]``; None if it can have all its values.
        """
        in_stage = len(self.counts) // self.layout.stages
        first = place - place % in_stage
        if self.layout.full or (place == first and in_stage == 1):
            return None
        last = np.array(self._last, np.int32)
        more = jnp.zeros(words.shape[:-1], jnp.bool_)  # what follows is more than in the last code
        for other in reversed(range(place + 1, first + in_stage)):
            word, bound = words[..., other], last[other - first]
            more = (word > bound) | ((word == bound) & more)
        before = last[: place - first].reshape((1,) * (words.ndim - 1) + (-1,))
        tight = jnp.all(words[..., first:place] == before, axis=-1)
        return jnp.where(tight, last[place - first] - more, self.counts[place] - 1)
