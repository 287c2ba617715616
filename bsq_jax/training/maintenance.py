"""Turns the notice that a cloud machine is about to be taken away into SIGTERM, in time to save.

Google Compute Engine tells a machine in its metadata that it is preempted, or that maintenance will
stop it: the keys ``preempted`` and ``maintenance-event`` of
https://cloud.google.com/compute/docs/metadata/predefined-metadata-keys. A notice becomes the
SIGTERM that a scheduler would send, so that there is one way to stop.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import urllib.request
from collections.abc import Iterator

import jax

_KEYS = {"preempted": ("TRUE",), "maintenance-event": ("TERMINATE_ON_HOST_MAINTENANCE",)}
_TIMEOUT = 2.0  # seconds for an answer


@contextlib.contextmanager
def watched(every: float = 5.0) -> Iterator[None]:
    """While it is entered, a notice sends SIGTERM to this process, once.

    It watches on TPU machines, and wherever GCE_METADATA_HOST names a metadata server.

    Args:
      every: seconds between two looks.
    """
    host = os.environ.get("GCE_METADATA_HOST")
    if host is None and jax.devices()[0].platform != "tpu":
        yield
        return
    over = threading.Event()
    root = f"http://{host or 'metadata.google.internal'}/computeMetadata/v1/instance"
    thread = threading.Thread(target=_watch, args=(root, every, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


def _watch(root: str, every: float, over: threading.Event) -> None:
    while not over.is_set():
        for key, notices in _KEYS.items():
            answer = _ask(f"{root}/{key}")
            if answer in notices and not over.is_set():
                print(f"notice of this machine: {key} {answer}", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGTERM)
                return
        over.wait(every)


def _ask(url: str) -> str:
    """What the metadata server says; nothing where it does not answer, as on other clouds."""
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
        return answer.read().decode(errors="replace").strip()
    return ""
