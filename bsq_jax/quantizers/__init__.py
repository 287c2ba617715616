"""Quantizers: ``(latents) -> Quantized``, one interface for all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bsq_jax.core.errors import UserError
from bsq_jax.quantizers.bsq import BinarySphericalQuantizer, Quantized

if TYPE_CHECKING:
    from ml_collections import ConfigDict

__all__ = ["BinarySphericalQuantizer", "Quantized", "make_quantizer"]


def make_quantizer(config: ConfigDict) -> BinarySphericalQuantizer:
    """The quantizer that ``config.quantizer`` describes.

    Raises:
      UserError: an unknown name.
    """
    if config.name != "bsq":
        raise UserError(f"config.quantizer.name is '{config.name}': the quantizers are: bsq")
    return BinarySphericalQuantizer(
        group_size=config.group_size,
        inv_temperature=config.inv_temperature,
        token_weight=config.token_weight,
        codebook_weight=config.codebook_weight,
        commitment_weight=config.commitment_weight,
    )
