"""The kind of device that a program is traced for.

A few operations are written differently for CPUs. Usually the program runs where it is traced; only
`bsq_jax.plan` compiles for machines that are elsewhere.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax
import jax.numpy as jnp

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


@contextlib.contextmanager
def full_precision(dtype: jnp.dtype | str) -> Iterator[None]:
    """Products of float32 matrices in float32, wherever they are traced for.

    GPUs by default round the factors to TF32 (10 bits), TPUs to bfloat16 (7 bits). On CPUs, and for
    other types, nothing changes.

    Args:
      dtype: of the computation.
    """
    if platform() == "cpu" or jnp.dtype(dtype) != jnp.float32:
        yield
        return
    with jax.default_matmul_precision("highest"):
        yield
