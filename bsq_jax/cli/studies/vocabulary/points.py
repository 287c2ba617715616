"""Which models the study of vocabularies compares, and their settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from bsq_jax.cli.studies.kinds import KINDS, LEECH_CODES, STAGES, concerns
from bsq_jax.cli.studies.settings import photographs_config, set_values
from bsq_jax.config import finalize

MOST_CODES = 2**24  # that a learned codebook may have, see `bsq_jax.config.settings`


class Point(NamedTuple):
    """One training.

    Attributes:
      kind: one of `KINDS`.
      bits: of a token.
      seed: of parameters, data order and augmentation.
    """

    kind: str
    bits: int
    seed: int

    @property
    def codes(self) -> int:
        """Size of the vocabulary."""
        return LEECH_CODES if self.kind == "leech" else 2**self.bits

    @property
    def learned(self) -> bool:
        """Whether there is a codebook, so that memory and time grow with the codes."""
        return self.kind.startswith("vq")


def points(kinds: Sequence[str], bits: Sequence[int], seeds: Sequence[int]) -> list[Point]:
    """The trainings, kind by kind; the lattice is one point, stages need an even number of bits."""
    found = []
    for kind in kinds:
        sizes = [math.ceil(math.log2(LEECH_CODES))] if kind == "leech" else sorted(set(bits))
        if kind == "residual":
            sizes = [size for size in sizes if size % STAGES == 0]
        found += [Point(kind, size, seed) for size in sizes for seed in seeds]
    return found


def point_config(
    point: Point, steps: int, overrides: Sequence[str], codes: int | None = None
) -> ConfigDict:
    """The config of a training.

    Args:
      point: which one.
      steps: training steps.
      overrides: settings, each ``KEY=VALUE``; one of the quantizer counts for the kinds that have
        it.
      codes: a smaller codebook than the point's, to plan for. None: the point's, or `MOST_CODES`
        if that is less.

    Raises:
      UserError: an override is wrong.
    """
    config = photographs_config(steps, point.seed)
    config.name = f"{point.kind}, {point.bits} bits, seed {point.seed}"
    if codes is None and point.learned:
        codes = min(point.codes, MOST_CODES)
    size = point.bits if codes is None else (codes - 1).bit_length()
    config.model.bits = size
    config.quantizer.update(KINDS[point.kind](size))
    set_values(config, [text for text in overrides if concerns(config.quantizer.name, text)])
    return finalize(config)
