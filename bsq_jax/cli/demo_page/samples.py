"""The photographs that come with scikit-image and scikit-learn, by name."""

from __future__ import annotations

import functools
import io

from PIL import Image

from bsq_jax.core.errors import UserError
from bsq_jax.data.sources.embedded import photos

_THUMBNAIL = (144, 96)  # most pixels across and down


@functools.cache
def sample_names() -> tuple[str, ...]:
    """Names of the photographs, those that models are validated on first; none without packages."""
    return tuple(_samples())


def sample(name: str) -> bytes:
    """The file of a photograph.

    Raises:
      UserError: there is none of this name.
    """
    try:
        split, index = _samples()[name]
    except KeyError:
        raise UserError(f"there is no photograph {name}") from None
    content = photos(split)[index].content
    assert isinstance(content, bytes)
    return content


@functools.cache
def thumbnail(name: str) -> bytes:
    """A photograph made small, as a JPEG file.

    Raises:
      UserError: there is none of this name.
    """
    with Image.open(io.BytesIO(sample(name))) as opened:
        small = opened.convert("RGB")
    small.thumbnail(_THUMBNAIL)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return file.getvalue()


@functools.cache
def _samples() -> dict[str, tuple[str, int]]:
    """Split and place in it of each photograph."""
    found = {}
    for split in ("val", "train"):
        try:
            source = photos(split)
        except UserError:  # a package came without its pictures
            continue
        for index in range(len(source)):
            found[source[index].id.rpartition("/")[2]] = (split, index)
    return found
