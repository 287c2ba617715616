"""Quantizers from a config."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from bsq_jax.core.errors import UserError
from bsq_jax.quantizers.base import Quantizer
from bsq_jax.quantizers.bsq import BinarySphericalQuantizer
from bsq_jax.quantizers.fsq import FiniteScalarQuantizer
from bsq_jax.quantizers.leech import LeechQuantizer
from bsq_jax.quantizers.lfq import LookupFreeQuantizer
from bsq_jax.quantizers.residual import ResidualQuantizer
from bsq_jax.quantizers.signs import SignQuantizer
from bsq_jax.quantizers.vq import VectorQuantizer

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def _signs(kind: type[SignQuantizer], settings: ConfigDict, bits: int) -> Quantizer:
    return kind(
        length=bits,
        group_size=settings.group_size,
        inv_temperature=settings.inv_temperature,
        token_weight=settings.token_weight,
        codebook_weight=settings.codebook_weight,
        commitment_weight=settings.commitment_weight,
    )


def _fsq(settings: ConfigDict, bits: int) -> Quantizer:
    del bits  # follow from the levels
    return FiniteScalarQuantizer(tuple(settings.levels), centered=settings.stages > 1)


def _vq(settings: ConfigDict, bits: int) -> Quantizer:
    del bits  # follow from the number of codes
    return VectorQuantizer(
        size=settings.codes,
        width=settings.channels,
        cosine=settings.cosine,
        averaged=settings.learning == "ema",
        commitment_weight=settings.commitment_weight,
    )


# One stage of each kind, of ``config.quantizer`` and the bits that a stage of a token has.
KINDS: dict[str, Callable[[ConfigDict, int], Quantizer]] = {
    "bsq": partial(_signs, BinarySphericalQuantizer),
    "lfq": partial(_signs, LookupFreeQuantizer),
    "fsq": _fsq,
    "leech": lambda settings, bits: LeechQuantizer(),
    "vq": _vq,
}


def make_quantizer(config: ConfigDict) -> Quantizer:
    """The quantizer that ``config.quantizer`` describes, of tokens of ``config.model.bits``.

    Raises:
      UserError: an unknown name.
    """
    settings = config.quantizer
    if settings.name not in KINDS:
        raise UserError(
            f"config.quantizer.name is '{settings.name}': the quantizers are: {', '.join(KINDS)}"
        )
    stage = KINDS[settings.name](settings, config.model.bits // settings.stages)
    return stage if settings.stages == 1 else ResidualQuantizer(stage, settings.stages)
