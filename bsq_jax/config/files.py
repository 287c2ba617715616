"""Running a config file: its path or the name of a published config, and its argument."""

from __future__ import annotations

import importlib.util
import traceback

from ml_collections import ConfigDict

from bsq_jax.config.published import find_config_file
from bsq_jax.core.errors import UserError


def load_config_file(spec: str) -> ConfigDict:
    """Runs ``get_config`` of ``file.py:argument``, or of ``name:argument``: a published config.

    Raises:
      UserError: no such file, not Python, no ``get_config`` in it, or a mistake in it.
    """
    text, _, argument = spec.partition(":")
    path = find_config_file(text)
    module_spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"config file {path} defines no get_config(argument)")
        config = module.get_config(argument)
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [str(f.lineno) for f in frames if f.filename == str(path)]
        where = f", line {lines[-1]}" if lines else ""
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"config file {path}{where}: {reason}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config of config file {path} must return a ConfigDict")
    return config
