"""The settings of a study's models: a small network that learns in a minute, and overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from bsq_jax.config import default_config, set_value
from bsq_jax.core.errors import UserError


def small_config(steps: int, seed: int) -> ConfigDict:
    """A tokenizer of 64x64 pictures whose loss is the mean squared error, to be changed further."""
    config = default_config()
    config.seed = seed
    config.model.update(
        image_size=(64, 64), bits=18, width=128, layers=2, heads=2, head_hidden=0, dtype="float32"
    )
    config.loss.update(l1=0.0, l2=1.0, entropy=0.0, perceptual=0.0, adversarial=0.0)
    config.optimizer.update(
        learning_rate=3e-3, warmup_steps=50, final=0.01, clip="global", ema=0.99
    )
    config.train.update(steps=steps, log_every=50, checkpoint_every=500)
    config.train.update(evaluate_every=0, picture_every=0)
    config.eval.update(frechet=False, neighbours=0)
    return config


def muon_config(steps: int, seed: int) -> ConfigDict:
    """`small_config` with what makes the quickstart learn in minutes, see its variant ``whole``."""
    config = small_config(steps, seed)
    config.quantizer.stages = 3
    config.model.head_channels = 16
    config.optimizer.update(name="muon", learning_rate=2e-3, muon_learning_rate=0.02)
    return config


def photographs_config(steps: int, seed: int) -> ConfigDict:
    """`small_config` on crops of the embedded photographs; the quantizer's loss has weight 1."""
    config = small_config(steps, seed)
    config.loss.update(entropy=1.0, entropy_ramp_start=1.0)
    config.optimizer.learning_rate = 2e-3
    config.data.update(
        source="photos",
        resize=400,
        scale=(1.0, 4.0),
        permute_channels=0.5,
        filter="bilinear",
        eval_resize=320,
        eval_crop="tiles",
        threads=1,
        cache_mb=512,
    )
    config.train.update(batch_size=16, log_every=max(1, min(50, steps // 4)))
    config.eval.update(batch_size=32, pictures=4)
    return config


def refuse(overrides: Sequence[str], chosen: Mapping[str, str]) -> None:
    """Refuses ``--set`` of what a study itself chooses.

    Args:
      overrides: each ``KEY=VALUE``.
      chosen: by such a key, what to do instead.

    Raises:
      UserError: there is one.
    """
    for override in overrides:
        key, _ = split_override(override)
        if key in chosen:
            raise UserError(f"--set {override}: the study chooses {key}, {chosen[key]}")


def set_values(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Changes settings as ``--set KEY=VALUE`` asks.

    Raises:
      UserError: an override is not written so, its key is unknown or its value of another type.
    """
    for override in overrides:
        key, value = split_override(override)
        set_value(config, key, value, "--set")


def split_override(override: str) -> tuple[str, str]:
    """``KEY=VALUE`` in two.

    Raises:
      UserError: there is no ``=``.
    """
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"--set {override}: write KEY=VALUE, such as train.batch_size=4")
    return key, text
