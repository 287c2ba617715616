"""The kind of device that a program is traced for.

A few operations are written differently for CPUs. Usually the program runs where it is traced; only
`bsq_jax.plan` compiles for machines that are elsewhere.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_DESCRIBED: contextvars.ContextVar[str | None] = contextvars.ContextVar("described", default=None)


def platform() -> str:
    """``cpu``, ``gpu`` or ``tpu``."""
    return _DESCRIBED.get() or jax.default_backend()


@contextlib.contextmanager
def described(name: str | None) -> Iterator[None]:
    """Traces for another kind of device than this process has; None for the one it has."""
    token = _DESCRIBED.set(name)
    try:
        yield
    finally:
        _DESCRIBED.reset(token)
