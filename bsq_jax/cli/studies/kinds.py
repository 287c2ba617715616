"""The quantizers that studies compare, by a name and the bits of a token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bsq_jax.cli.studies.settings import split_override
from bsq_jax.config import default_config, finalize
from bsq_jax.config.settings import QUANTIZER
from bsq_jax.quantizers import Quantizer, make_quantizer

LEECH_CODES = 196_560
STAGES = 2  # of the residual quantizer


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


def quantizer_of(kind: str, bits: int, **settings: Any) -> Quantizer:
    """The quantizer of one of `KINDS` whose tokens have so many bits; `settings` are changes."""
    config = default_config()
    config.model.bits = bits
    config.quantizer.update({**KINDS[kind](bits), **settings})
    return make_quantizer(finalize(config))


def concerns(name: str, override: str) -> bool:
    """Whether a quantizer has the setting; all have those that belong to no kind."""
    section, _, key = split_override(override)[0].partition(".")
    setting = QUANTIZER.get(key) if section == "quantizer" else None
    return setting is None or not setting.kinds or name in setting.kinds
