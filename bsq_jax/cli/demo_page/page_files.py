"""The files of the page, as they come with the package."""

from __future__ import annotations

import functools
import importlib.resources
from typing import NamedTuple

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FIRST = "index.html"


class PageFile(NamedTuple):
    """A file of the page.

    Attributes:
      kind: its media type.
      content: its bytes.
    """

    kind: str
    content: bytes


@functools.cache
def page_files() -> dict[str, PageFile]:
    """The files by their path in URLs; that of the page itself is ``/``.

    They are read once and by name alone, so that no path in a request can name another file.
    """
    found = {}
    for file in importlib.resources.files(__package__).joinpath("static").iterdir():
        kind = _TYPES.get(file.name[file.name.rfind(".") :])
        if kind is not None:
            path = "/" if file.name == _FIRST else f"/{file.name}"
            found[path] = PageFile(kind, file.read_bytes())
    return found
