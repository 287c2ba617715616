"""Quantizers: latents to tokens of bits and back, one interface for all (`base.Quantizer`)."""

from bsq_jax.quantizers.base import Quantized, Quantizer
from bsq_jax.quantizers.bsq import BinarySphericalQuantizer
from bsq_jax.quantizers.factory import make_quantizer
from bsq_jax.quantizers.fsq import FiniteScalarQuantizer
from bsq_jax.quantizers.leech import LeechQuantizer
from bsq_jax.quantizers.lfq import LookupFreeQuantizer
from bsq_jax.quantizers.residual import ResidualQuantizer
from bsq_jax.quantizers.vq import VectorQuantizer

__all__ = [
    "BinarySphericalQuantizer",
    "FiniteScalarQuantizer",
    "LeechQuantizer",
    "LookupFreeQuantizer",
    "Quantized",
    "Quantizer",
    "ResidualQuantizer",
    "VectorQuantizer",
    "make_quantizer",
]
