"""The kind of device that a program is traced for.

A few operations are written differently for CPUs, or for some GPUs. Usually the program runs where
it is traced; only `bsq_jax.cli.plan` compiles for machines that are elsewhere.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bsq_jax.core import jax_private

Capability = tuple[int, int]


class _Described(NamedTuple):
    platform: str
    capability: Capability | None
    cudnn: int


_DESCRIBED: contextvars.ContextVar[_Described | None] = contextvars.ContextVar(
    "described", default=None
)


def platform() -> str:
    """``cpu``, ``gpu`` or ``tpu``."""
    target = _DESCRIBED.get()
    return target.platform if target else jax.default_backend()


def cuda_capability() -> Capability | None:
    """Compute capability of the NVIDIA GPUs, such as (9, 0); None on every other device.

    Of several kinds of GPU the lowest, over all processes, so that all trace the same program.
    """
    target = _DESCRIBED.get()
    if target:
        return target.capability
    if jax.default_backend() != "gpu":
        return None
    found = []
    for device in jax.devices():
        # GPUs of AMD say "gfx942" and the like.
        major, _, minor = str(getattr(device, "compute_capability", "")).partition(".")
        if not (major.isdecimal() and minor.isdecimal()):
            return None
        found.append((int(major), int(minor)))
    return min(found)


def cudnn_version() -> int:
    """Version of cuDNN as it writes it, such as 91100 for 9.11; 0 where there is none."""
    target = _DESCRIBED.get()
    return target.cudnn if target else jax_private.cudnn_version()


@contextlib.contextmanager
def described(
    name: str | None, capability: Capability | None = None, cudnn: int = 0
) -> Iterator[None]:
    """Traces for another kind of device than this process has.

    Args:
      name: ``cpu``, ``gpu`` or ``tpu``; None for the devices that the process has.
      capability: of an NVIDIA GPU.
      cudnn: version of its cuDNN, see `cudnn_version`.
    """
    token = _DESCRIBED.set(_Described(name, capability, cudnn) if name else None)
    asked: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if capability is not None and cudnn:
        asked = jax_private.described_cudnn(capability, cudnn)
    try:
        with asked:
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
