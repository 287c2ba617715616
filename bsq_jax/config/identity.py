"""What a model's parameters depend on: its identity, and the part of it that fingerprints hash."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from bsq_jax.config.settings import MODEL, QUANTIZER, SECTIONS, declared
from bsq_jax.config.values import flatten, to_json

# Keys of `model` that change how the network computes, not which parameters it has.
COMPUTE_KEYS = tuple(key for key, setting in MODEL.items() if not setting.identity)

# The settings of identity of version 0.1, with its defaults. NEVER CHANGE IT when a default
# changes: fingerprints stand in .bsq files and token sets, and leave out the settings of the
# tokenizer that have these values; a config written before one of these settings existed meant
# them too. A setting that is added later declares `Setting.absent` instead.
VERSION_0_1: dict[str, Any] = {
    "task": "tokenizer",
    "model.image_size": [256, 256],
    "model.frames": 1,
    "model.patch_size": 8,
    "model.bits": 36,
    "model.width": 768,
    "model.layers": 12,
    "model.heads": 12,
    "model.mlp_ratio": 4.0,
    "model.head_hidden": 3072,
    "model.positions": "learned",
    "model.causality": "block_causal",
    "model.window": 0,
    "model.min_bits": 0,
    "quantizer.name": "bsq",
    "prior.width": 192,
    "prior.layers": 4,
    "prior.heads": 6,
    "prior.hidden": 96,
    "prior.window": 2,
    "prior.order": "raster",
    "masked_lm.group_size": 9,
    "masked_lm.frames": 1,
    "masked_lm.width": 768,
    "masked_lm.layers": 24,
    "masked_lm.heads": 8,
    "masked_lm.mlp_ratio": 4.0,
    "masked_lm.classes": 0,
    "discriminator.name": "stylegan",
    "discriminator.channel_base": 32768,
    "discriminator.channel_max": 512,
    "discriminator.width": 64,
    "discriminator.layers": 3,
}
# Fingerprints always held these, whatever their values.
_ALWAYS_HASHED = ("prior.", "masked_lm.")


def meant_when_absent() -> dict[str, Any]:
    """What a setting meant in files written before it existed, by dotted key."""
    later = {key: s.absent for key, s in declared().items() if s.absent is not None}
    return {**VERSION_0_1, **later}


def model_identity(config: ConfigDict) -> dict[str, Any]:
    """The part of a config that a checkpoint's parameters depend on, as plain containers."""
    names = ("model", "quantizer", *(() if config.task == "tokenizer" else (config.task,)))
    return {"task": config.task, **{name: _identity_of(config, name) for name in names}}


def run_identity(config: ConfigDict) -> dict[str, Any]:
    """The part of a config that a run's state depends on.

    This is also what the discriminator's parameters depend on, how codebooks learn, of which the
    state has moving averages, and the optimizer, which has its own.
    """
    found: dict[str, Any] = {"name": "none"}
    if config.task == "tokenizer" and config.loss.adversarial:
        found = _identity_of(config, "discriminator")
    model = model_identity(config)
    if config.task == "tokenizer" and config.quantizer.name in QUANTIZER["learning"].kinds:
        model["quantizer"]["learning"] = config.quantizer.learning
    # The arguments of one's own are no more than the other settings of an optimizer.
    optimizer = config.optimizer.name.partition("(")[0].strip()
    return {**model, "discriminator": found, "optimizer": {"name": optimizer}}


def fingerprint_settings(config: ConfigDict) -> dict[str, Any]:
    """The settings that a model's fingerprint hashes, by dotted key, as JSON has them.

    Left out is what has the value that it had before one could set it, or that of version 0.1. So
    neither a changed default nor an added setting changes the fingerprint of an existing model.
    """
    left_out = meant_when_absent()
    for key in VERSION_0_1:
        if key.startswith(_ALWAYS_HASHED):
            del left_out[key]
    return {
        key: value
        for key, value in flatten(model_identity(config))
        if key not in left_out or left_out[key] != value
    }


def _identity_of(config: ConfigDict, name: str) -> dict[str, Any]:
    """The settings of a section that parameters depend on."""
    values = to_json(config[name])
    kind = values.get("name")
    return {
        key: values[key]
        for key, setting in SECTIONS[name].items()
        if setting.identity and (not setting.kinds or kind in setting.kinds)
    }
