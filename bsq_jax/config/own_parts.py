"""Settings that name parts of the user's own, and the folders that their modules lie in.

A part is written ``module:attribute(key=value)``, see `bsq_jax.core.own_parts`.
"""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Iterator

from ml_collections import ConfigDict

from bsq_jax.config.config import default_config
from bsq_jax.core.own_parts import OwnPart, is_own, parse_own, parse_weighted

# Names of built-in parts have no colon.
NAMES = (("quantizer", "name"), ("model", "positions"), ("optimizer", "name"))
SOURCES = ("source", "val_source", "image_source")
# These have a colon too, such as ``tfds:mnist``.
BUILT_IN_SOURCES = ("folder", "clips", "tfds", "array_record", "parquet", "webdataset", "tokens")
LISTS = (("loss", "terms"), ("eval", "metrics"))


def own_parts(config: ConfigDict) -> Iterator[OwnPart]:
    """The parts that a config names, but for its data sources.

    Raises:
      UserError: one is not written as it must be.
    """
    for section, name in NAMES:
        if ":" in config[section][name]:
            yield parse_own(f"{section}.{name}", config[section][name])
    for term in config.loss.terms:
        yield parse_weighted("loss.terms", term)[1]
    for metric in config.eval.metrics:
        yield parse_own("eval.metrics", metric)


def use_extensions(config: ConfigDict) -> None:
    """Makes the modules in ``config.extensions`` importable, or empties it if none is named.

    Raises:
      UserError: a part is not written as it must be.
    """
    folders = extension_folders(config.extensions)
    named = list(own_parts(config))
    for key in SOURCES:
        if _is_code(config.data[key]) and is_own(config.data[key]):
            named.append(parse_own(f"data.{key}", config.data[key]))
    config.extensions = os.pathsep.join(folders) if named else ""
    if named:
        make_importable(*folders)


def leave_out_own_code(config: ConfigDict) -> list[str]:
    """Takes from a config of others what would have code called that its makers chose.

    Quantizer and positions stay, which the model cannot do without: of a module that the user has
    made importable, and only a class that is a quantizer or a Flax module, or a function that is
    marked as positions.

    Args:
      config: changed in place: losses, metrics and data sources of their own, their optimizer, and
        the folders of modules.

    Returns:
      What was taken, as ``key=value``.
    """
    defaults, taken = default_config(), []
    for section, key in (*LISTS, ("optimizer", "name"), *(("data", key) for key in SOURCES)):
        value = config[section][key]
        texts = value if isinstance(value, tuple) else (value,)
        if not any(map(_is_code, texts)):
            continue
        taken.append(f"{section}.{key}={', '.join(texts)}")
        config[section][key] = "" if section == "data" else defaults[section][key]
    config.extensions = ""
    return taken


def extension_folders(text: str) -> list[str]:
    """The folders that ``config.extensions`` names, absolute."""
    parts = filter(None, (part.strip() for part in text.split(os.pathsep)))
    return [str(pathlib.Path(part).expanduser().absolute()) for part in parts]


def join_extensions(first: str, *others: str) -> str:
    """The folders of several configs, each once; of `others` those that are still there."""
    folders = extension_folders(first)
    for text in others:
        folders += [folder for folder in extension_folders(text) if os.path.isdir(folder)]
    return os.pathsep.join(dict.fromkeys(folders))


def make_importable(*folders: str) -> None:
    """Puts folders first among those that modules are imported from, as a script's folder is."""
    for folder in reversed(folders):
        if sys.path[:1] != [folder]:
            sys.path[:] = [folder, *(other for other in sys.path if other != folder)]


def _is_code(text: str) -> bool:
    """Whether a text may name code: built-in sources of this form name data."""
    scheme, colon, _ = text.partition(":")
    return bool(colon) and scheme not in BUILT_IN_SOURCES
