"""Quantizers from a config."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from bsq_jax.core.errors import UserError
from bsq_jax.core.own_parts import parse_own
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
    return FiniteScalarQuantizer(
        tuple(settings.levels),
        centered=settings.stages > 1,
        whole_cells=bool(settings.whole_cells),
    )


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


def _own(name: str, stages: int) -> Quantizer:
    """A quantizer of the user's own, see docs/extending/quantizer.md."""
    part = parse_own("quantizer.name", name)
    made: Quantizer = part.make_module(f"{Quantizer.__module__}:{Quantizer.__name__}")
    if stages > 1 and type(made).step is Quantizer.step:
        raise part.error(
            f"it has no `step`, which quantizer.stages={stages} needs: define it, or 1"
        )
    return made


def make_quantizer(config: ConfigDict) -> Quantizer:
    """The quantizer that ``config.quantizer`` describes, of tokens of ``config.model.bits``.

    Raises:
      UserError: an unknown name, or one of the user's own that cannot be made.
    """
    settings = config.quantizer
    if ":" in settings.name:
        stage = _own(settings.name, settings.stages)
    elif settings.name in KINDS:
        stage = KINDS[settings.name](settings, config.model.bits // settings.stages)
    else:
        raise UserError(
            f"config.quantizer.name is '{settings.name}': the quantizers are: {', '.join(KINDS)}"
        )
    return stage if settings.stages == 1 else ResidualQuantizer(stage, settings.stages)
