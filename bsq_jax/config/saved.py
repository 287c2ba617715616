"""Saved configs: in exports, in workdirs and beside checkpoints, also those of older versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from bsq_jax.config.config import default_config
from bsq_jax.config.identity import meant_when_absent
from bsq_jax.config.settings import declared
from bsq_jax.config.values import flatten, put
from bsq_jax.core.errors import UserError

# Values that are no longer offered, and what computes the same: by_frame is what the Python API
# makes of blocked attention by itself.
_REPLACED = {("model.attention", "by_frame"): "blocked"}


def from_json(saved: Mapping[str, Any], origin: str) -> ConfigDict:
    """A config from what `to_json` gave, checked key by key against the declared types.

    Keys that are not there, because they did not exist yet, are what their absence meant then
    (`meant_when_absent`); others take their defaults.

    Raises:
      UserError: keys of another version of this package, or values of another type.
    """
    if not isinstance(saved, Mapping):
        raise UserError(f"{origin} does not hold a config: was it edited?")
    config, settings = default_config(), declared()
    for key, value in {**meant_when_absent(), **dict(flatten(saved))}.items():
        if key not in settings:
            raise UserError(f"{origin} has the unknown config key {key}: was it edited?")
        try:
            value = _REPLACED.get((key, value), value) if isinstance(value, str) else value
            allowed = settings[key]
            put(
                config,
                key,
                value,
                optional=allowed.optional,
                any_length=allowed.any_length,
            )
        except TypeError as error:
            raise UserError(
                f"{origin} has {value!r} for {key}, which must be {error}: was it edited?"
            ) from None
    return config
