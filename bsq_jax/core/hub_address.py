"""Addresses of models on the Hugging Face hub: ``hf://OWNER/NAME[@REVISION][/FOLDER]``."""

from __future__ import annotations

import os
import re
import urllib.parse
from typing import NamedTuple

from bsq_jax.core.errors import UserError

HUB_SCHEME = "hf:/"  # what `pathlib` makes of hf://
_NAME = r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?"
_REPOSITORY = re.compile(rf"{_NAME}/{_NAME}", re.ASCII)
_ADDRESS = re.compile(r"hf:/{1,2}([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?")
_NAME_LENGTH = 96  # of the part after OWNER/, in characters
_NOT_IN_PARTS = re.compile(r"[\\:\x00-\x1f\x7f]")  # of a folder or a revision


class HubAddress(NamedTuple):
    """A model on the hub.

    Attributes:
      repository: ``OWNER/NAME``.
      revision: a branch, a tag or a commit; empty: the repository's main branch.
      folder: of the model in the repository; empty: its root.
    """

    repository: str
    revision: str = ""
    folder: str = ""

    def __str__(self) -> str:
        revision = f"@{urllib.parse.quote(self.revision, safe='')}" if self.revision else ""
        return f"hf://{self.repository}{revision}" + (f"/{self.folder}" if self.folder else "")

    @property
    def name(self) -> str:
        """What the model is called."""
        return (self.folder or self.repository).rpartition("/")[2]


def hub_address(path: str | os.PathLike[str]) -> HubAddress | None:
    """The address that is meant by a path; None where it is a path on this machine.

    Args:
      path: what the user gave. A ``/`` in a revision is written ``%2F``.

    Raises:
      UserError: it begins like an address of the hub and is none.
    """
    text = os.fspath(path)
    if not text.startswith(HUB_SCHEME):
        return None
    found = _ADDRESS.fullmatch(text)
    repository, revision, folder = found.groups(default="") if found else ("", "", "")
    parts = folder.rstrip("/").split("/") if folder.rstrip("/") else []
    revision = urllib.parse.unquote(revision)
    inside = [*parts, *(revision.split("/") if revision else [])]
    whole = all(part.strip(".") and not _NOT_IN_PARTS.search(part) for part in inside)
    if not (whole and is_repository(repository)):
        raise UserError(
            f"{text} is no address of a model: write hf://OWNER/NAME, hf://OWNER/NAME@REVISION, or "
            "hf://OWNER/NAME/FOLDER"
        )
    return HubAddress(repository, revision, "/".join(parts))


def is_repository(text: str) -> bool:
    """Whether a text is ``OWNER/NAME``, as the hub names repositories."""
    if not _REPOSITORY.fullmatch(text) or "--" in text or ".." in text:
        return False
    return len(text.partition("/")[2]) <= _NAME_LENGTH and not text.endswith(".git")
