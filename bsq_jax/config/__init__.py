"""The configuration: every setting is stated once, in `bsq_jax.config.settings`.

A config file defines ``get_config(argument: str) -> ConfigDict``. It starts from `default_config`,
changes what its experiment needs and returns it. The command line picks a variant and overrides
single values::

    --config configs/tokenizer.py:imagenet256,bits=36 --config.train.batch_size=64

Configs are locked: an unknown key or a value of the wrong type is an error of one line.

=================  ============================================================================
``declaration``    what is stated about a setting: default, range, choices, identity
``settings``       all settings, and `default_config`
``config``         the object: a ConfigDict whose mistakes are lines for the user
``checks``         `finalize`: ranges, values that do not fit together, derived values
``parsing``        text to values: the command line, the argument of a config file
``arguments``      those of config files that choose a quantizer
``files``          running a config file; ``published`` finds those of the package by name
``own_parts``      what settings name of the user's own, and where it lies
``saved``          configs in JSON, also of older versions
``identity``       what parameters depend on, and the part of it that fingerprints hash
``values``         values by dotted keys
=================  ============================================================================
"""

from bsq_jax.config.arguments import QUANTIZER_ARGUMENTS, choose_quantizer
from bsq_jax.config.checks import LEARNING_RATE_PER_EXAMPLE, finalize
from bsq_jax.config.config import default_config
from bsq_jax.config.files import load_config_file
from bsq_jax.config.identity import COMPUTE_KEYS, fingerprint_settings, model_identity, run_identity
from bsq_jax.config.parsing import parse_argument, parse_overrides, set_overrides, set_value
from bsq_jax.config.quantizer import has_entropy_terms
from bsq_jax.config.saved import from_json
from bsq_jax.config.values import to_json

__all__ = [
    "COMPUTE_KEYS",
    "LEARNING_RATE_PER_EXAMPLE",
    "QUANTIZER_ARGUMENTS",
    "choose_quantizer",
    "default_config",
    "finalize",
    "fingerprint_settings",
    "from_json",
    "has_entropy_terms",
    "load_config_file",
    "model_identity",
    "parse_argument",
    "parse_overrides",
    "run_identity",
    "set_overrides",
    "set_value",
    "to_json",
]
