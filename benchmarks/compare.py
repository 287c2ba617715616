"""Ours beside PyTorch and beside the limit of the matrix products, in one run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks import limit
from benchmarks.peer import Peer, PeerError
from benchmarks.timing import in_turn, repeated, sustained
from benchmarks.work import MODES, Work


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Seconds of the same work.

    Attributes:
      work: what was computed.
      ours: seconds by the name that they were given.
      peer: seconds by mode; empty where there is no PyTorch.
      limit: of the products.
    """

    work: Work
    ours: dict[str, float]
    peer: dict[str, float]
    limit: limit.Limit

    def columns(self, name: str, count: int, unit: str) -> dict[str, Any]:
        """Cells of a table: speed, PyTorch's, their ratio, the limit, and the shares of it.

        Args:
          name: of one of ours.
          count: of units in the work.
          unit: what is counted, such as ``images``.
        """
        ours, bound = self.ours[name], self.limit.seconds()
        cells: dict[str, Any] = {f"{unit}/s": count / ours}
        cells |= {f"PyTorch {mode}": count / took for mode, took in self.peer.items()}
        fastest = min(self.peer.values(), default=None)
        if fastest is not None:
            cells["times PyTorch's fastest"] = fastest / ours
        cells |= {"limit": count / bound, "share of limit": bound / ours}
        if fastest is not None:
            cells["PyTorch's share"] = bound / fastest
        return cells | {f"GFLOP/s {side}": self.limit.gflops(side) for side in self.limit.sides}


def compare(
    ours: Mapping[str, Callable[[], Any]],
    work: Work,
    peer: Peer | None,
    runs: int,
    modes: Sequence[str] = MODES,
    spell: float = 0.0,
) -> Comparison:
    """Times ours, PyTorch's and the products.

    Args:
      ours: functions that do the work.
      work: what they compute.
      peer: does it too; None: there is no PyTorch.
      runs: rounds, of which the median counts.
      modes: of the peer.
      spell: seconds that a timing takes at least, of several calls in a row; 0: one call.
    """
    with ExitStack() as stack:
        theirs = {}
        if peer is not None:
            for mode, call in stack.enter_context(peer.work(work)).items():
                if mode not in modes:
                    continue
                try:
                    call()  # compiles
                except PeerError as error:
                    print(f"PyTorch {mode} left out: {error}", flush=True)
                else:
                    theirs[mode] = call
        functions: dict[Any, Callable[[], Any]] = {**theirs}
        functions |= {("ours", name): run for name, run in ours.items()}
        if spell:
            many = {("ours", name): repeated(run) for name, run in ours.items()} | theirs
            functions = {key: sustained(run, spell) for key, run in many.items()}
        took = in_turn(functions, runs)
    bound = limit.measure(work, peer, runs)
    return Comparison(
        work,
        {name: took["ours", name] for name in ours},
        {mode: took[mode] for mode in theirs},
        bound,
    )
