"""The config files that come with the package: where they are, and finding one by its name."""

from __future__ import annotations

import difflib
import pathlib

import bsq_jax
from bsq_jax.config.values import nearest
from bsq_jax.core.errors import UserError


def published_folder() -> pathlib.Path:
    """The folder of the published configs: inside an installed package, beside it in a clone."""
    package = pathlib.Path(bsq_jax.__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def published_names() -> list[str]:
    """Names of the published configs, such as ``quickstart``."""
    files = published_folder().glob("*.py")
    return sorted(path.stem for path in files if path.stem != "__init__")


def find_config_file(text: str) -> pathlib.Path:
    """The config file that is meant by a name (``quickstart``) or a path (``mine/config.py``).

    Raises:
      UserError: no such file; the nearest is named.
    """
    path = pathlib.Path(text)
    if path.name == text and not path.suffix:
        found = published_folder() / f"{text}.py"
        if not found.is_file():
            names = published_names()
            raise UserError(
                f"config {text!r} does not exist{nearest(text, names)} "
                f"(there are: {', '.join(names)}; or give the path of a .py file)"
            )
        return found
    if not path.is_file():
        others = {other.stem: other for other in sorted(path.parent.glob("*.py"))}
        close = difflib.get_close_matches(path.stem, others, n=1)
        hint = f": did you mean {others[close[0]]}?" if close else ""
        if not hint and path.stem in published_names():
            hint = f": for the config that comes with the package write --config {path.stem}"
        raise UserError(f"config file {path} does not exist{hint}")
    if path.suffix != ".py":
        raise UserError(f"config file {path} is not a Python file: give one that ends in .py")
    return path
