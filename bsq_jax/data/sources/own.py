"""Data sources of the user's own, which ``config.data.source`` names."""

import importlib.util
from typing import Any

import numpy as np

from bsq_jax.core.errors import UserError
from bsq_jax.core.own_parts import parse_own
from bsq_jax.data.records import BrokenRecord, Record, Source


def make_own_source(spec: str, split: str, *, unknown: str) -> Source:
    """What a function or class gives for the split; see docs/extending/data_source.md.

    Args:
      spec: ``module:attribute`` or ``module:attribute(key=value)``.
      split: 'train' or 'val', its first argument.
      unknown: what to say if there is no such module: it may be a built-in source misspelled.

    Raises:
      UserError: there is no such module or attribute, or what it gives is no `Source`.
    """
    part = parse_own("data.source", spec)
    top = part.module.split(".")[0]
    if importlib.util.find_spec(top) is None:
        raise UserError(
            f"{unknown}; for one of your own there must be a module {top}: give the folder it "
            "lies in as --config.extensions=FOLDER, or put it on PYTHONPATH"
        )
    source: Source = part.make(split)
    missing = [
        name for name in ("__len__", "__getitem__", "name", "videos") if not hasattr(source, name)
    ]
    if missing:
        raise part.error(
            f"what it gives has no {' and no '.join(missing)}: a source has a length, records by "
            "number, a name and whether they are videos"
        )
    with part.one_line():
        problem = _problem_of_first(source)
    if problem:
        raise part.error(problem)
    return source


def _problem_of_first(source: Source) -> str:
    """What is wrong with the kind of the first record, in words; empty if nothing is."""
    try:
        record: Any = source[0] if len(source) else None
    except (BrokenRecord, OSError):
        return ""
    if record is None:
        return ""
    if not isinstance(record, Record):
        return (
            f"record 0 is of type {type(record).__name__}: it must be a bsq_jax.data.records.Record"
        )
    pixels = record.content
    if isinstance(pixels, np.ndarray) and (
        pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3
    ):
        return (
            f"record 0 has pixels {pixels.dtype} {list(pixels.shape)}: they must be uint8 "
            "[height, width, 3]"
        )
    return ""
