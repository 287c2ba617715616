"""The processes of a run must read the same data: each takes its rows of one order of all."""

from __future__ import annotations

from collections.abc import Iterable

from bsq_jax.core.errors import UserError
from bsq_jax.core.sharding import gather_strings
from bsq_jax.data.records import Source, fingerprint_of


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
