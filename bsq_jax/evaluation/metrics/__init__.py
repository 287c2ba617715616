"""Metrics as functions and accumulators of arrays: image quality, feature distances, code usage."""

from bsq_jax.evaluation.metrics.accumulators import (
    ClipMeans,
    CodeUsage,
    CodeUsageResult,
    MeanAccumulator,
)
from bsq_jax.evaluation.metrics.bd_rate import bd_rate
from bsq_jax.evaluation.metrics.feature_statistics import LOGITS, FeatureStatistics
from bsq_jax.evaluation.metrics.frechet import Moments, frechet_distance
from bsq_jax.evaluation.metrics.image_quality import (
    MS_SSIM_MIN_SIDE,
    MS_SSIM_WEIGHTS,
    PSNR_CAP,
    SSIM_MIN_SIDE,
    clip_psnr,
    ms_ssim,
    patch_mean,
    psnr,
    ssim,
)
from bsq_jax.evaluation.metrics.inception_score import InceptionScore
from bsq_jax.evaluation.metrics.neighbours import precision_recall

__all__ = [
    "LOGITS",
    "MS_SSIM_MIN_SIDE",
    "MS_SSIM_WEIGHTS",
    "PSNR_CAP",
    "SSIM_MIN_SIDE",
    "ClipMeans",
    "CodeUsage",
    "CodeUsageResult",
    "FeatureStatistics",
    "InceptionScore",
    "MeanAccumulator",
    "Moments",
    "bd_rate",
    "clip_psnr",
    "frechet_distance",
    "ms_ssim",
    "patch_mean",
    "precision_recall",
    "psnr",
    "ssim",
]
