"""Leaves of a pytree by name, and where two trees part."""

from typing import Any

import jax
import numpy as np


def leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by the names on the way to them, as in ``params/encoder/kernel``.

    Fields of a class, keys of a dict and numbers of a list read alike, so that a tree and its
    saved form have the same names.
    """

    def word(key: Any) -> str:
        return str(next(getattr(key, a) for a in ("key", "name", "idx") if hasattr(key, a)))

    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(word(key) for key in path): leaf for path, leaf in flat}


def first_difference(saved: Any, wanted: Any) -> str | None:
    """Compares names, shapes and types of two trees.

    Args:
      saved: pytree whose leaves have ``shape`` and ``dtype``: what there is.
      wanted: the same: what is asked for.

    Returns:
      The first difference in words, in which ``saved`` is "it"; None where there is none.
    """
    there, here = leaves(saved), leaves(wanted)
    for name, leaf in here.items():
        if name not in there:
            return f"it has no {name!r}"
        ours = f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
        theirs = f"{np.dtype(there[name].dtype).name}{list(there[name].shape)}"
        if ours != theirs:
            return f"{name!r} is {theirs} there and {ours} here"
    extra = next((name for name in there if name not in here), None)
    return None if extra is None else f"it has {extra!r}, which is not wanted here"
