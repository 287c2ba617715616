"""How close a reconstruction is to its original, and how well the codes are used."""

from bsq_jax.metrics.accumulators import (
    ClipMeans,
    CodeUsage,
    CodeUsageResult,
    MeanAccumulator,
)
from bsq_jax.metrics.bd_rate import bd_rate
from bsq_jax.metrics.feature_set import FeatureSet
from bsq_jax.metrics.frechet import Moments, frechet_distance
from bsq_jax.metrics.inception_score import InceptionScore
from bsq_jax.metrics.neighbours import precision_recall
from bsq_jax.metrics.pictures import (
    MS_SSIM_MIN_SIDE,
    MS_SSIM_WEIGHTS,
    PSNR_CAP,
    SSIM_MIN_SIDE,
    clip_psnr,
    measure,
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
    "ClipMeans",
    "CodeUsage",
    "CodeUsageResult",
    "FeatureSet",
    "InceptionScore",
    "MeanAccumulator",
    "Moments",
    "bd_rate",
    "clip_psnr",
    "frechet_distance",
    "measure",
    "ms_ssim",
    "patch_mean",
    "precision_recall",
    "psnr",
    "ssim",
]
