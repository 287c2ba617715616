"""The starter model: a tokenizer of photographs and its prior that come with the package.

They are an export in the folder ``bsq_jax/starter``, made by configs/starter.py; docs/starter.md is
its card.
"""

from __future__ import annotations

import pathlib

import bsq_jax
from bsq_jax.core.errors import UserError

NAME = "starter"


def starter_folder() -> pathlib.Path:
    """The export that is taken where no model is named.

    Raises:
      UserError: this installation does not have it.
    """
    folder = pathlib.Path(bsq_jax.__file__).parent / NAME
    if not (folder / "config.json").is_file():
        raise UserError(
            f"the starter model is missing from this installation ({folder}): name a model, or "
            "install bsq_jax again"
        )
    return folder
