"""A data source of the kinds of pictures that come inside scikit-image."""

from __future__ import annotations

from bsq_jax.cli.studies.transfer.sets import PACKAGED
from bsq_jax.data.records import Source
from bsq_jax.data.sources.embedded import packaged_file
from bsq_jax.data.sources.folders import FileSource


def pictures(split: str, kind: str) -> Source:
    """All pictures of a kind, in either split: they are for validation alone.

    Args:
      split: ``train`` or ``val``.
      kind: one of `PACKAGED`.

    Raises:
      UserError: a file is not in the installed package.
    """
    paths = [packaged_file("skimage", f"data/{name}", kind) for name in PACKAGED[kind]]
    return FileSource(f"{kind}/{split}", [(path.name, str(path)) for path in paths])
