"""Settings of the evaluation from the config."""

from __future__ import annotations

from ml_collections import ConfigDict

from bsq_jax.evaluation.metric import NetworkSettings
from bsq_jax.evaluation.report import Wanted


def make_network_settings(config: ConfigDict) -> NetworkSettings:
    """Which metrics of frozen networks ``config.eval`` asks for."""
    settings = config.eval
    return NetworkSettings(
        lpips=settings.lpips,
        frechet=settings.frechet,
        inception=settings.inception,
        neighbours=settings.neighbours,
        neighbours_examples=settings.neighbours_examples,
    )


def make_wanted(config: ConfigDict) -> Wanted:
    """What ``config.eval`` says that an evaluation with pictures draws."""
    return Wanted(pictures=config.eval.pictures, videos=config.eval.videos)
