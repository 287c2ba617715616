"""What every quantizer is: latents to bits and back, whatever its codes are.

A token is L bits. A quantizer is a Flax module that says how many (`bits`), how many channels its
latents have (`channels`), how many patterns of the bits name a code (`codes`), and from which
numbers of first bits a token can be decoded (`prefixes`). Networks, tasks, priors, files and the
converter use these and `encode`, `decode` and `names_code`, and know no formula of a quantizer.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bsq_jax.core.array_checks import check_array
from bsq_jax.core.clips import real_frames
from bsq_jax.quantizers.layout import TokenLayout


class Quantized(NamedTuple):
    """What a quantizer makes of latents.

    Attributes:
      quantized: float32 ``[..., channels]``, what the decoder is given; carries gradients to the
        latents.
      bits: uint8 0/1 ``[..., L]``, the token.
      losses: unweighted terms of the quantizer's loss, scalars.
      loss: their weighted sum, the scalar that training adds.
      points: float32 ``[..., channels]``, what each stage of a quantizer with learned codebooks
        compared with its codebook; empty for all others.
      levels: float32 ``[..., channels]``, the places of the points on a scale on which the levels
        of a channel are 0, 1, 2, ..., see `Quantizer.scalar_levels`; carries gradients to the
        latents. None for quantizers that have no such levels.
    """

    quantized: jax.Array
    bits: jax.Array
    losses: dict[str, jax.Array]
    loss: jax.Array
    points: tuple[jax.Array, ...] = ()
    levels: jax.Array | None = None


Penalty = tuple[dict[str, jax.Array], jax.Array]
"""Unweighted terms of a quantizer's loss, and their weighted sum."""


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def straight_through(points: jax.Array, codes: jax.Array, slope: float = 1.0) -> jax.Array:
    """The codes, with the derivative of ``points / slope`` (straight-through estimator).

    A point that is not a number makes its code not a number, so that the fault is noticed.
    """
    return jnp.where(jnp.isnan(points), points, codes)


@straight_through.defjvp
def _straight_through_jvp(
    slope: float, primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return straight_through(*primals, slope), tangents[0] / slope


class Quantizer(nn.Module):
    """The base of all quantizers: one stage, `project`, `nearest` and `decode` of a subclass.

    Everything is computed in float32 whatever precision the network runs in. A method that uses no
    parameters needs no `apply`.
    """

    # --- what a subclass says ---

    @property
    def bits(self) -> int:
        """Bits of a token, L."""
        raise NotImplementedError

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        raise NotImplementedError

    @property
    def codes(self) -> int:
        """How many patterns of the bits name a code: the first ones, read as numbers."""
        return 2**self.bits

    @property
    def prefixes(self) -> tuple[int, ...]:
        """The numbers of first bits that a token can be decoded from, increasing; the last is L."""
        return (self.bits,)

    @property
    def slope(self) -> float:
        """The derivative of the codes by the points is one over this, see `straight_through`."""
        return 1.0

    @property
    def step(self) -> float | jax.Array:
        """What the codes of a residual stage are multiplied by, to those of the stage before."""
        raise NotImplementedError

    def project(self, latents: jax.Array) -> jax.Array:
        """The points that codes are nearest to, of float32 latents; both ``[..., channels]``."""
        raise NotImplementedError

    def nearest(self, points: jax.Array) -> jax.Array:
        """The bits, uint8 ``[..., L]``, of the codes nearest to points ``[..., channels]``."""
        raise NotImplementedError

    def decode(self, bits: jax.Array) -> jax.Array:
        """What the decoder is given for tokens.

        Args:
          bits: 0/1 ``[..., L]`` that name codes, or as many first bits as one of `prefixes` says.

        Returns:
          float32 ``[..., channels]``.
        """
        raise NotImplementedError

    def keep(self, codes: jax.Array, kept: jax.Array) -> jax.Array:
        """Codes ``[batch, ..., channels]`` of which the first `kept` ``[batch]`` bits count."""
        raise ValueError(f"{type(self).__name__} decodes whole tokens alone")

    def penalty(self, points: jax.Array, codes: jax.Array, weights: jax.Array | None) -> Penalty:
        """The quantizer's loss; see `Quantized`.

        Args:
          points: of `project`.
          codes: of `decode`, those nearest to the points.
          weights: of the tokens, see `bsq_jax.quantizers.entropy`; None: all count alike.
        """
        return {}, jnp.float32(0)

    @property
    def learned(self) -> int:
        """How many learned codebooks there are; `Quantized.points` has as many."""
        return 0

    @property
    def scalar_levels(self) -> int:
        """Levels of each channel, where a token is a level of each one, chosen by itself; else 0.

        They lie at equal distances, see `level`.
        """
        return 0

    @property
    def outer_level(self) -> float:
        """The highest of the levels in the middle of which 0 lies, in units of the points."""
        raise NotImplementedError

    def level(self, points: jax.Array) -> jax.Array:
        """Where points lie among the levels, both ``[..., channels]``: at 0 on the lowest one.

        The nearest whole number is that of the chosen level, where there is such a level.
        """
        raise NotImplementedError

    # --- what follows from it ---

    def __call__(self, latents: jax.Array, weights: jax.Array | None = None) -> Quantized:
        """`encode`."""
        return self.encode(latents, weights)

    def encode(
        self,
        latents: jax.Array,
        weights: jax.Array | None = None,
        *,
        kept: jax.Array | None = None,
        flipped: jax.Array | None = None,
    ) -> Quantized:
        """Quantizes latents.

        Args:
          latents: ``[..., channels]`` of any float type.
          weights: of the tokens in the losses, see `bsq_jax.quantizers.entropy`; None: all alike.
          kept: int32 ``[batch]``, how many bits of its tokens the decoder gets of each example, one
            of `prefixes`; None: all.
          flipped: 0/1 ``[..., L]``, bits that the decoder gets wrong; None: none. Tokens that would
            then name no code stay right.

        Raises:
          ValueError: latents that are not floats or have another number of channels.
        """
        check_array("latents", latents, self.channels, leading=True)
        points = self.project(latents.astype(jnp.float32))
        return self.encode_points(points, weights, kept=kept, flipped=flipped)

    def encode_points(
        self,
        points: jax.Array,
        weights: jax.Array | None = None,
        *,
        kept: jax.Array | None = None,
        flipped: jax.Array | None = None,
    ) -> Quantized:
        """As `encode`, of what `project` gives."""
        bits = self.nearest(points)
        codes = self.decode(bits)
        losses, loss = self.penalty(points, codes, weights)
        if flipped is not None:
            codes = self.decode(flip(self, bits, flipped))
        quantized = straight_through(points, codes, self.slope)
        if kept is not None:
            quantized = self.keep(quantized, kept)
        levels = self.level(points) if self.scalar_levels else None
        return Quantized(quantized, bits, losses, loss, (points,) * self.learned, levels)

    @property
    def layout(self) -> TokenLayout:
        """Which patterns of the bits name codes; that of a residual quantizer has its stages."""
        return TokenLayout(1, self.bits, self.codes)

    def names_code(self, bits: jax.Array) -> jax.Array:
        """Which tokens, or first stages of tokens, name a code; see `TokenLayout.names_code`."""
        named: jax.Array = self.layout.names_code(bits)
        return named


def flip(quantizer: Quantizer, bits: jax.Array, flipped: jax.Array) -> jax.Array:
    """Tokens with some bits turned over; those that would name no code stay as they are.

    Args:
      quantizer: of the tokens.
      bits: uint8 0/1 ``[..., L]``.
      flipped: 0/1 ``[..., L]``, which bits.
    """
    turned = bits ^ flipped.astype(jnp.uint8)
    return jnp.where(quantizer.names_code(turned)[..., None], turned, bits)


def keep_first(values: jax.Array, kept: jax.Array) -> jax.Array:
    """Sets the last axis of ``[batch, ..., L]`` to zero behind the first `kept` ``[batch]``."""
    there = real_frames(kept, values.shape[-1])
    there = there.reshape(len(there), *(1,) * (values.ndim - 2), there.shape[-1])
    return jnp.where(there, values, 0.0)
