"""The processes of a run must read the same data and models: each takes its rows of one order."""

from __future__ import annotations

import os
from collections.abc import Iterable

import jax

from bsq_jax.core.errors import UserError
from bsq_jax.core.hub_address import hub_address
from bsq_jax.core.sharding import gather_strings
from bsq_jax.data.records import Source, fingerprint_of
from bsq_jax.training.export import identity
from bsq_jax.training.saved_models import SavedModel, origin_words


def check_same_data(sources: Iterable[Source]) -> None:
    """Compares over the processes which records each source has (a collective call).

    Args:
      sources: in the same order on all processes.

    Raises:
      UserError: a source differs; on all processes, because none can go on without the others.
    """
    mine = [
        f"{number} {source.name} ({len(source)} records, {fingerprint_of(source)})"
        for number, source in enumerate(sources)
    ]
    found = gather_strings(mine)
    if len(found) > len(mine):
        shown = "; ".join(text.partition(" ")[2] for text in found)
        raise UserError(
            f"the processes do not see the same data: {shown}: give all of them the same files, "
            "for example on storage that they share"
        )


def data_line(train: Source, val: Source) -> str:
    """How many records a run has, for the log."""
    place = "" if val.name == train.name else f" of {val.name}"
    return (
        f"data: {len(train):,d} records of {train.name} to train, {len(val):,d}{place} to validate"
    )


def check_same_model_read(saved: SavedModel, path: str | os.PathLike[str]) -> None:
    """Compares over the processes which weights each has read (a collective call).

    On the hub a branch can move between two downloads, and a process that cannot reach the hub
    takes what is in its cache.

    Args:
      saved: what this process has read.
      path: where from, for the message.

    Raises:
      UserError: the weights differ; on all processes.
    """
    if jax.process_count() == 1:
        return
    fingerprint = identity(saved.config, saved.weights).hex()
    found = gather_strings([f"{fingerprint} {origin_words(saved.origin, fingerprint[:16])}"])
    if len({text.partition(" ")[0] for text in found}) == 1:
        return
    address = hub_address(path)
    if address:
        advice = f"name a commit, {address._replace(revision='COMMIT')}"
    else:
        advice = "give all of them the same files"
    shown = "; ".join(text.partition(" ")[2] for text in found)
    raise UserError(f"{path}: the processes read different models ({shown}): {advice}")
