"""How many layers of a stack a CPU computes without a loop."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

from bsq_jax.core.target import platform

# More would take minutes to compile; the loop goes over groups of so many.
_MOST = 12

_LOOP: contextvars.ContextVar[bool] = contextvars.ContextVar("loop", default=False)


@contextlib.contextmanager
def layers_in_a_loop() -> Iterator[None]:
    """Traces a stack as a loop on CPUs too, where these stand for GPUs or TPUs."""
    token = _LOOP.set(True)
    try:
        yield
    finally:
        _LOOP.reset(token)


def unrolled_layers(layers: int) -> int:
    """Layers in one iteration of the scan over a stack, the argument ``unroll`` of a scan.

    On CPUs a loop copies the weights of a layer out of the stack, its gradients into another, and
    what the backward pass needs in and out of a third; without a loop only the gradients are
    copied. GPUs and TPUs have the bandwidth, and there a loop saves compile time. See also
    `layers_in_a_loop`.
    """
    return min(layers, _MOST) if platform() == "cpu" and not _LOOP.get() else 1


def end_of_layer(x: jax.Array) -> jax.Array:
    """The output of a layer, rounded to its dtype as it is at the end of an iteration of a loop.

    Without a loop XLA would leave out a rounding to bfloat16 between two layers or not, by what it
    fuses, and a stream would no longer give the bits of its clip.
    """
    return jax.lax.optimization_barrier(x) if platform() == "cpu" else x
