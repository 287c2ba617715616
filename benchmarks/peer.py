"""The other side of a comparison with PyTorch: a process that waits while ours runs.

It has an interpreter of its own, so that the threads of JAX and PyTorch share no process, and so
that PyTorch may be installed elsewhere than the JAX that is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax

from benchmarks.timing import Seconds
from benchmarks.work import MODES, Product, Work, modes

Timed = Callable[..., Seconds]  # takes how many calls to make in a row; 1 by default
REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


class PeerError(RuntimeError):
    """The peer could not do what it was asked for."""


class Peer:
    """A process that answers each line of JSON by one.

    Args:
      command: that starts it, in the repository's folder.

    Attributes:
      text: what it is, its release and threads or GPU.
      device: ``cpu`` or ``cuda``.

    Raises:
      PeerError: it does not start.
    """

    def __init__(self, command: Sequence[str]):
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._numbers = itertools.count()
        described = self.ask(do="describe")
        self.text: str = described["text"]
        self.device: str = described["device"]

    def ask(self, **command: Any) -> dict[str, Any]:
        """Its answer to a command.

        Raises:
          PeerError: it failed, or is gone.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # no line will come then
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(f"the PyTorch process ended ({self._process.wait()})")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    @contextmanager
    def work(self, work: Work) -> Iterator[dict[str, Timed]]:
        """Functions by mode that do the work there; what they need goes afterwards."""
        with self._made(do="work", work=dataclasses.asdict(work)) as number:
            yield {mode: functools.partial(self._run, number, mode) for mode in modes(work)}

    @contextmanager
    def product(self, product: Product, dtype: str) -> Iterator[Timed]:
        """A function that computes a matrix product there."""
        with self._made(do="product", product=dataclasses.asdict(product), dtype=dtype) as number:
            yield functools.partial(self._run, number, "product")

    @contextmanager
    def _made(self, **command: Any) -> Iterator[int]:
        number = next(self._numbers)
        self.ask(number=number, **command)
        try:
            yield number
        finally:
            self.ask(do="drop", number=number)

    def _run(self, number: int, mode: str, calls: int = 1) -> Seconds:
        return Seconds(self.ask(do="run", number=number, mode=mode, calls=calls)["seconds"])

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def add_python_flag(parser: argparse.ArgumentParser) -> None:
    """The flag of `start`."""
    parser.add_argument(
        "--torch-python",
        default=sys.executable,
        metavar="PATH",
        help="interpreter with PyTorch, to compare with (default: this one); '' for none",
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `start` and `benchmarks.compare`."""
    add_python_flag(parser)
    parser.add_argument(
        "--torch-modes",
        nargs="+",
        default=MODES,
        choices=MODES,
        help="compiling a training step takes minutes on a CPU",
    )


def torch_command(python: str) -> list[str]:
    """What starts a `Peer` with the PyTorch of an interpreter."""
    return [python, "-m", "benchmarks.torch_peer"]


@contextmanager
def start(python: str) -> Iterator[Peer | None]:
    """The PyTorch of an interpreter, as a process, while it is needed.

    Call it before JAX is asked for its devices: JAX must not take all memory of a GPU for itself.

    Args:
      python: the interpreter; one without PyTorch gives None, and so does the empty string.
    """
    peer: Peer | None = None
    why = "not asked for"
    if python:
        if shutil.which(python) is None:
            raise SystemExit(f"--torch-python {python}: there is no such program")
        code = "import importlib.util as u; print(u.find_spec('torch') is not None)"
        found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
        why = f"{python} has none: --torch-python names another interpreter"
        if found.stdout.strip() == "True":
            os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
            peer = Peer(torch_command(python))
            if peer.device == "cpu" and jax.default_backend() != "cpu":
                why = f"{peer.text}, sees no accelerator"
                peer.close()
                peer = None
    print(f"no comparison with PyTorch: {why}" if peer is None else f"beside {peer.text}")
    try:
        yield peer
    finally:
        if peer is not None:
            peer.close()
