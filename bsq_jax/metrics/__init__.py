"""How close a reconstruction is to its original, and how well the codes are used."""

from bsq_jax.metrics.accumulators import CodeUsage, CodeUsageResult, MeanAccumulator
from bsq_jax.metrics.pictures import (
    MS_SSIM_MIN_SIDE,
    MS_SSIM_WEIGHTS,
    PSNR_CAP,
    SSIM_MIN_SIDE,
    ms_ssim,
    patch_mean,
    psnr,
    ssim,
)

__all__ = [
    "MS_SSIM_MIN_SIDE",
    "MS_SSIM_WEIGHTS",
    "PSNR_CAP",
    "SSIM_MIN_SIDE",
    "CodeUsage",
    "CodeUsageResult",
    "MeanAccumulator",
    "ms_ssim",
    "patch_mean",
    "psnr",
    "ssim",
]
