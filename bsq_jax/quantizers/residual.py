"""Residual quantization: several stages of one quantizer, each on what those before it left.

The code of a token is the sum of its stages' codes, so a token decodes from its first stages too.
With binary spherical quantization the stages nest: the points are projected to the sphere once, and
the corners of each stage are half as large as those of the stage before. Together they are a
uniform mid-rise quantizer of ``2^stages`` levels on each coordinate of the sphere.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bsq_jax.quantizers.base import Penalty, Quantized, Quantizer, flip, straight_through
from bsq_jax.quantizers.layout import TokenLayout


class _Stage(NamedTuple):
    """What one stage makes of points: those it sees, its bits, its codes before scaling."""

    points: jax.Array
    bits: jax.Array
    codes: jax.Array


class ResidualQuantizer(Quantizer):
    """Stages of a quantizer, the codes of each `step` times as large as those of the one before.

    The latents are projected once. Stages with learned codebooks have one each, the parameters
    ``stage0``, ``stage1``, ...; all others have the same codes but for the scale. The bits of a
    token are those of its stages, the first stage first.

    Attributes:
      stage: the quantizer.
      stages: how many, R.
    """

    stage: Quantizer
    stages: int

    def setup(self) -> None:
        """Makes the stages that have parameters."""
        if self.stage.learned:
            names = (f"stage{k}" for k in range(self.stages))
            self.made = [self.stage.clone(name=name, parent=self) for name in names]

    @property
    def _stages(self) -> list[Quantizer]:
        return self.made if self.stage.learned else [self.stage] * self.stages

    @property
    def bits(self) -> int:
        """Those of all stages, L."""
        return self.stages * self.stage.bits

    @property
    def channels(self) -> int:
        """Those of a stage."""
        return self.stage.channels

    @property
    def codes(self) -> int:
        """One for each choice of a code in every stage."""
        return int(self.stage.codes**self.stages)

    @property
    def layout(self) -> TokenLayout:
        """Stages whose bits name codes one by one."""
        return TokenLayout(self.stages, self.stage.bits, self.stage.codes)

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Whole stages."""
        return tuple(self.stage.bits * (k + 1) for k in range(self.stages))

    @property
    def learned(self) -> int:
        """One for each stage, if they are learned."""
        return self.stages * self.stage.learned

    @property
    def scalar_levels(self) -> int:
        """Those of all stages together, which nest."""
        return int(self.stage.scalar_levels**self.stages)

    @property
    def outer_level(self) -> float:
        """The sum of those of the stages."""
        return float(self.stage.outer_level * sum(self._ratio**k for k in range(self.stages)))

    @property
    def _ratio(self) -> float:
        """How much smaller the codes of a stage with levels are than those of the one before."""
        return 1 / self.stage.scalar_levels

    def level(self, points: jax.Array) -> jax.Array:
        """Among the levels of all stages together."""
        return (points / self.outer_level + 1) / 2 * (self.scalar_levels - 1)

    def project(self, latents: jax.Array) -> jax.Array:
        """As the first stage does."""
        return self._stages[0].project(latents)

    def nearest(self, points: jax.Array) -> jax.Array:
        """The bits of the stages, each nearest to what those before it left."""
        return jnp.concatenate([each.bits for each in self._quantize(points)], axis=-1)

    def decode(self, bits: jax.Array) -> jax.Array:
        """The sum of the codes of all stages whose bits are given."""
        parts = jnp.split(bits, bits.shape[-1] // self.stage.bits, axis=-1)
        return self._sum([s.decode(part) for s, part in zip(self._stages, parts, strict=False)])

    def encode_points(
        self,
        points: jax.Array,
        weights: jax.Array | None = None,
        *,
        kept: jax.Array | None = None,
        flipped: jax.Array | None = None,
    ) -> Quantized:
        """As `Quantizer.encode_points`; a stage sees what the flipped bits of those before left.

        So later stages correct wrong bits of earlier ones (as in Infinity, arXiv 2412.04431). Bits
        and losses are those without flips.
        """
        stages = self._quantize(points)
        losses, loss = self._penalties(stages, weights)
        decoded = stages if flipped is None else self._quantize(points, flipped)
        codes = self._sum([each.codes for each in decoded], kept)
        quantized = straight_through(points, codes, self.slope)
        bits = jnp.concatenate([each.bits for each in stages], axis=-1)
        seen = tuple(each.points for each in stages) if self.learned else ()
        levels = self.level(points) if self.scalar_levels else None
        return Quantized(quantized, bits, losses, loss, seen, levels)

    def _scale(self, stage: int, axes: int) -> float | jax.Array:
        """What the codes of a stage are multiplied by: a number, or one for each channel."""
        if not stage:
            return 1.0
        scale = self.stage.step**stage
        if isinstance(scale, float | int):
            return scale
        return scale.reshape((1,) * (axes - 1) + scale.shape)

    def _quantize(self, points: jax.Array, flipped: jax.Array | None = None) -> list[_Stage]:
        """What each stage makes of points, with some of its bits flipped before the next sees it.

        The points of every stage have the gradient of those of the first, over the stage's scale.
        """
        found: list[_Stage] = []
        for k, stage in enumerate(self._stages):
            scale = self._scale(k, points.ndim)
            seen = points / scale
            bits = stage.nearest(seen)
            if flipped is not None:
                own = slice(k * self.stage.bits, (k + 1) * self.stage.bits)
                bits = flip(stage, bits, flipped[..., own])
            codes = stage.decode(bits)
            found.append(_Stage(seen, bits, codes))
            points = points - jax.lax.stop_gradient(codes) * scale
        return found

    def _penalties(self, stages: list[_Stage], weights: jax.Array | None) -> Penalty:
        """The sums of the losses of all stages."""
        pairs = zip(self._stages, stages, strict=True)
        each = [stage.penalty(made.points, made.codes, weights) for stage, made in pairs]
        total: Penalty = jax.tree.map(lambda *terms: sum(terms[1:], terms[0]), *each)
        return total

    def _sum(self, codes: list[jax.Array], kept: jax.Array | None = None) -> jax.Array:
        """The sum of the codes of the first stages, of those alone whose bits are kept if given."""
        total = codes[0]
        for k, code in enumerate(codes[1:], start=1):
            code = code * self._scale(k, code.ndim)
            if kept is not None:
                there = kept >= self.stage.bits * (k + 1)
                code = jnp.where(there.reshape(-1, *(1,) * (code.ndim - 1)), code, 0.0)
            total = total + code
        return total
