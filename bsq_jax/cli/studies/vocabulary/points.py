"""Which quantizers the study of vocabularies compares, and their settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from bsq_jax.cli.studies.settings import set_values, small_config, split_override
from bsq_jax.config import finalize
from bsq_jax.config.settings import QUANTIZER

LEECH_CODES = 196_560
MOST_CODES = 2**24  # that a learned codebook may have, see `bsq_jax.config.settings`
STAGES = 2  # of the residual quantizer


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


def fsq_levels(bits: int) -> tuple[int, ...]:
    """Levels of 2^bits codes: eight in each channel, and four or two where 3 does not divide."""
    fours = {0: 0, 1: 2, 2: 1}[bits % 3]
    if bits == 1:
        return (2,)
    return (8,) * ((bits - 2 * fours) // 3) + (4,) * fours


def _soft(name: str) -> Callable[[int], dict[str, Any]]:
    # No terms of their own, only the loss of the reconstruction: the study `entropy` is about them.
    weights = ("token_weight", "codebook_weight", "commitment_weight")
    return lambda bits: {"name": name, **dict.fromkeys(weights, 0.0)}


def _vq(**more: Any) -> Callable[[int], dict[str, Any]]:
    return lambda bits: {"name": "vq", "codes": 2**bits, **more}


# The settings of each kind by the bits of a token.
KINDS: Mapping[str, Callable[[int], dict[str, Any]]] = {
    "bsq": _soft("bsq"),
    "residual": lambda bits: {**_soft("bsq")(bits), "stages": STAGES},
    "lfq": _soft("lfq"),
    "fsq": lambda bits: {"name": "fsq", "levels": fsq_levels(bits)},
    "leech": lambda bits: {"name": "leech"},
    "vq": _vq(learning="gradient"),
    "vq_ema": _vq(learning="ema", restart=0.1),
}


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
      codes: a smaller codebook than the point's, to plan for.

    Raises:
      UserError: an override is wrong.
    """
    config = small_config(steps, point.seed)
    config.name = f"{point.kind}, {point.bits} bits, seed {point.seed}"
    config.loss.update(entropy=1.0, entropy_ramp_start=1.0)  # of learned codebooks
    config.optimizer.learning_rate = 2e-3
    config.data.update(
        source="photos",
        resize=400,
        scale=(1.0, 4.0),
        permute_channels=0.5,
        filter="bilinear",
        eval_resize=320,
        eval_crop="tiles",
        threads=1,
        cache_mb=512,
    )
    config.train.update(batch_size=16, log_every=max(1, min(50, steps // 4)))
    config.eval.update(batch_size=32, pictures=4)
    size = point.bits if codes is None else (codes - 1).bit_length()
    config.model.bits = size
    config.quantizer.update(KINDS[point.kind](size))
    set_values(config, [text for text in overrides if _concerns(config.quantizer.name, text)])
    return finalize(config)


def _concerns(name: str, override: str) -> bool:
    """Whether a quantizer has the setting; all have those that belong to no kind."""
    section, _, key = split_override(override)[0].partition(".")
    setting = QUANTIZER.get(key) if section == "quantizer" else None
    return setting is None or not setting.kinds or name in setting.kinds
