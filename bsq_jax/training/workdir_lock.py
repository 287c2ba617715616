"""One run at a time in a workdir."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import socket
from collections.abc import Iterator

import jax

from bsq_jax.core.errors import UserError

FILE = ".lock"


@contextlib.contextmanager
def held(workdir: pathlib.Path) -> Iterator[None]:
    """Inside, no other run of this machine trains in the workdir; process 0 alone sees to that.

    The lock goes with the process, however that ends. One that another machine holds on a shared
    disk is only warned of: it may outlive a machine that is gone, and a run must be able to go on
    elsewhere then. On a disk without locks there is none.

    Raises:
      UserError: another process of this machine trains there.
    """
    if jax.process_index():
        yield
        return
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # what cannot be written is told of where it is
            workdir.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((workdir / FILE).open("a+"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _refuse(workdir, (workdir / FILE).read_text())
            else:
                file.truncate(0)
                file.write(json.dumps({"host": socket.gethostname(), "process": os.getpid()}))
                file.flush()
        yield


def _refuse(workdir: pathlib.Path, text: str) -> None:
    """Says who holds the lock; raises if that is on this machine."""
    try:
        owner = json.loads(text)
        host, process = owner["host"], owner["process"]
    except (ValueError, TypeError, KeyError):
        host, process = socket.gethostname(), "unknown"
    if host == socket.gethostname():
        raise UserError(
            f"process {process} is training in {workdir} already: wait for it, stop it, or give "
            "another --workdir"
        )
    logging.getLogger(__name__).warning(
        "process %s on %s seems to be training in %s already: if it is, stop one of the two",
        *(process, host, workdir),
    )
