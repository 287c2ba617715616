"""What the settings of a quantizer fix, and which of them do not fit together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from bsq_jax.config.settings import QUANTIZER
from bsq_jax.core.own_parts import parse_own

BASE = "bsq_jax.quantizers.base:Quantizer"  # of the user's own ones
LEECH_BITS = 18  # 196,560 codes
_COMMITMENT = {"bsq": 0.0, "lfq": 0.25, "vq": 0.25}  # published


def stage_bits(quantizer: ConfigDict) -> int | None:
    """Bits of a token of one stage, where the quantizer's own settings fix them; None elsewhere."""
    match quantizer.name:
        case "fsq":
            return (math.prod(quantizer.levels) - 1).bit_length()
        case "vq":
            return (quantizer.codes - 1).bit_length()
        case "leech":
            return LEECH_BITS
    if ":" in quantizer.name:
        return parse_own("quantizer.name", quantizer.name).make_module(BASE).bits
    return None


def has_entropy_terms(config: ConfigDict) -> bool:
    """Whether the quantizer's loss has entropy terms, whose weight is that of ``config.loss``."""
    return config.quantizer.name in QUANTIZER["token_weight"].kinds


def fill_in(config: ConfigDict) -> None:
    """Sets what is left to the quantizer: the bits of a token where they are 0, its commitment."""
    quantizer = config.quantizer
    bits = stage_bits(quantizer)
    if config.model.bits == 0 and bits is not None:
        config.model.bits = bits * quantizer.stages
    if quantizer.whole_cells is None:
        quantizer.whole_cells = quantizer.name == "fsq" and quantizer.stages > 1
    if quantizer.commitment_weight is None:
        quantizer.commitment_weight = _COMMITMENT.get(quantizer.name)


def clashes(config: ConfigDict) -> Iterator[str]:
    """What does not fit together, in words; every setting is in its range already."""
    quantizer, bits = config.quantizer, config.model.bits
    name, stages, own = quantizer.name, quantizer.stages, stage_bits(quantizer)
    for key, setting in QUANTIZER.items():
        if not setting.kinds or name in setting.kinds:
            continue
        if quantizer[key] not in (setting.default, setting.absent):
            yield (
                f"quantizer.{key} is {_text(quantizer[key])}, which quantizer.name={name} does not "
                f"have ({' and '.join(setting.kinds)}): leave it at {_text(setting.default)}"
            )
    if own is None and bits < 1:
        yield f"model.bits is {bits}: quantizer.name={name} needs to know how many bits a token has"
    elif bits % stages:
        yield (
            f"model.bits {bits} does not divide into quantizer.stages {stages}: "
            f"{_choices(own, bits, stages)}"
        )
    elif own is not None and bits != own * stages:
        yield (
            f"model.bits is {bits}, but the tokens of quantizer.name={name}"
            f"{_source(quantizer)} have {own * stages}: set model.bits={own * stages}, or 0"
        )
    elif name in QUANTIZER["group_size"].kinds:
        most = min(bits // stages, 16)
        if quantizer.group_size > most:
            each = "a stage" if stages > 1 else "a token"
            yield (
                f"quantizer.group_size is {quantizer.group_size}: choose 1 to {most} for "
                f"{bits // stages} bits {each}"
            )


def _choices(own: int | None, bits: int, stages: int) -> str:
    """The bits to set in place of those that do not divide."""
    if own is not None:
        return f"set model.bits={own * stages}, or 0"
    less = bits - bits % stages
    return f"set model.bits={less or stages}" + (f" or {less + stages}" if less else "")


def _source(quantizer: ConfigDict) -> str:
    """The settings that fix the bits."""
    key = {"fsq": "levels", "vq": "codes"}.get(quantizer.name)
    fixed = [f"quantizer.{key}={_text(quantizer[key])}"] if key else []
    if quantizer.stages > 1:
        fixed.append(f"quantizer.stages={quantizer.stages}")
    return f" with {' and '.join(fixed)}" if fixed else ""


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
