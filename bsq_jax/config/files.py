"""Running a config file: its path or the name of a published config, and its argument."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import traceback
import types

from ml_collections import ConfigDict

from bsq_jax.config.config import SettingError, UnknownSettingError
from bsq_jax.config.own_parts import extension_folders, make_importable
from bsq_jax.config.published import find_config_file, published_folder
from bsq_jax.config.suggestions import did_you_mean
from bsq_jax.core.errors import UserError


def load_config_file(spec: str) -> ConfigDict:
    """Runs ``get_config`` of ``file.py:argument``, or of ``name:argument``: a published config.

    The folder of a file that does not come with the package is importable from then on, and is
    added to ``config.extensions``; `finalize` leaves it there if a setting names a module in it.

    Raises:
      UserError: no such file, not Python, no ``get_config`` in it, or a mistake in it.
    """
    text, _, argument = spec.partition(":")
    return _run(find_config_file(text), argument)


def variants_of(name: str) -> tuple[str, ...]:
    """The variants of a published config, each an argument of it."""
    return tuple(getattr(_module_of(find_config_file(name)), "VARIANTS", ("",)))


def _module_of(path: pathlib.Path) -> types.ModuleType:
    module_spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def _run(path: pathlib.Path, argument: str) -> ConfigDict:
    folder = path.absolute().parent
    own = folder.resolve() != published_folder().resolve()
    if own:
        make_importable(str(folder))
    try:
        module = _module_of(path)
        if not hasattr(module, "get_config"):
            raise UserError(f"config file {path} defines no get_config(argument)")
        config = module.get_config(argument)
    except Exception as error:
        if isinstance(error, UserError) and not isinstance(error, SettingError):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        lines = [str(f.lineno) for f in frames if f.filename == str(path)]
        where = f", line {lines[-1]}" if lines else ""
        raise UserError(f"config file {path}{where}: {_reason(error)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config of config file {path} must return a ConfigDict")
    if own and "extensions" in config:
        folders = dict.fromkeys([str(folder), *extension_folders(config.extensions)])
        config.extensions = os.pathsep.join(folders)
    return config


def _reason(error: Exception) -> str:
    """The error in a line; of a key that a config does not have, what was probably meant."""
    if isinstance(error, UnknownSettingError):
        return f"{error.key} does not exist{did_you_mean(error.key)}"
    if isinstance(error, SettingError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, KeyError | AttributeError) and "ml_collections" in frames[-1].filename:
        # ml_collections says the whole config, or the key alone.
        text = str(error)
        key = re.search(r'Key "(\w+)" does not exist', text) or re.match(r"\W*(\w+)", text)
        if key:
            return f"{key[1]} does not exist{did_you_mean(key[1])}"
    return " ".join(f"{type(error).__name__}: {error}".split())
