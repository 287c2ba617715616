"""Configs as JSON, in exports and beside checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from bsq_jax.config.settings import OPTIONAL, default_config
from bsq_jax.config.values import flatten, put
from bsq_jax.core.errors import UserError

# What keys that a saved config does not have yet meant then, where that is not today's default.
_ABSENT = {"loss.perceptual": 0.0, "loss.adversarial": 0.0}


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The config as plain containers that JSON can hold."""
    return json.loads(json.dumps(config.to_dict()))


def from_json(saved: Mapping[str, Any], origin: str) -> ConfigDict:
    """A config from what `to_json` gave, checked key by key against the defaults.

    Keys that are not there take their defaults; losses that an older version did not have are off.

    Raises:
      UserError: keys of another version of this package, or values of another type.
    """
    config = default_config()
    if not isinstance(saved, Mapping):
        raise UserError(f"{origin} does not hold a config: was it edited?")
    known = dict(flatten(config))
    for key, value in {**_ABSENT, **dict(flatten(saved))}.items():
        if key not in known:
            raise UserError(f"{origin} has the unknown config key {key}: was it edited?")
        try:
            put(config, key, value, OPTIONAL)
        except TypeError as error:
            raise UserError(
                f"{origin} has {value!r} for {key}, which must be {error}: was it edited?"
            ) from None
    return config
