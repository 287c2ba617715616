"""The settings that parameters depend on."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from bsq_jax.config.saved import to_json

# Keys of `model` that change how the network computes, not which parameters it has.
COMPUTE_KEYS = ("dtype", "remat", "attention")
# Keys of `prior` and `masked_lm` that their parameters do not depend on.
_NOT_IN_PARAMETERS = ("tokenizer", "label_dropout", "label_smoothing", "schedule", "mask_unit")
# Keys of `discriminator` that the parameters of each kind depend on.
_DISCRIMINATOR_KEYS = {
    "stylegan": ("channel_base", "channel_max"),
    "stylegan3d": ("width",),
    "patchgan": ("width", "layers"),
}


def model_identity(config: ConfigDict) -> dict[str, Any]:
    """The part of a config that a checkpoint's parameters depend on, as plain containers."""
    model = {k: v for k, v in to_json(config)["model"].items() if k not in COMPUTE_KEYS}
    identity = {"task": config.task, "model": model, "quantizer": {"name": config.quantizer.name}}
    if config.task != "tokenizer":
        section = to_json(config)[config.task]
        for key in _NOT_IN_PARAMETERS:
            section.pop(key, None)
        identity[config.task] = section
    return identity


def run_identity(config: ConfigDict) -> dict[str, Any]:
    """The part of a config that a run's state depends on: both players' parameters."""
    adversarial = config.task == "tokenizer" and config.loss.adversarial
    name = config.discriminator.name if adversarial else "none"
    sizes = {key: config.discriminator[key] for key in _DISCRIMINATOR_KEYS.get(name, ())}
    return {**model_identity(config), "discriminator": {"name": name, **sizes}}
