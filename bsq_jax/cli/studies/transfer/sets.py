"""The sets of pictures of the study of transfer: which there are, and how a flag names one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from bsq_jax.core.errors import UserError

# Files of scikit-image, none of them in the source ``photos``. Most are grey.
PACKAGED: Mapping[str, tuple[str, ...]] = {
    "text": ("page.png", "text.png"),
    "drawings": ("logo.png", "horse.png", "phantom.png"),
    "textures": ("brick.png", "grass.png", "gravel.png"),
    "grey": ("camera.png", "coins.png", "moon.png"),
    "microscopy": ("cell.png", "microaneurysms.png"),
}


class PictureSet(NamedTuple):
    """A set of pictures.

    Attributes:
      name: in the table, and of its folder in the workdir.
      source: what ``data.val_source`` takes.
    """

    name: str
    source: str


OWN_DATA = PictureSet("own data", "")
"""The validation pictures of the model's config."""


def parse_set(text: str) -> PictureSet:
    """The set that a word or ``NAME=SOURCE`` names.

    Raises:
      UserError: it is neither, or the name cannot be that of a folder.
    """
    if text in PACKAGED:
        return PictureSet(text, f"bsq_jax.cli.studies.transfer.packaged:pictures(kind={text!r})")
    name, equals, source = text.partition("=")
    if not equals or not source or not re.fullmatch(r"\w[\w .+-]*", name):
        words = ", ".join(PACKAGED)
        raise UserError(
            f"set {text!r}: write NAME=SOURCE, such as cats=folder:/pictures/cats, or a word of "
            f"{words}"
        )
    return PictureSet(name, source)
