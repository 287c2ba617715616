"""How many layers of a stack a CPU computes without a loop."""

from __future__ import annotations

import jax

from bsq_jax.core.target import platform

# More would take minutes to compile; the loop goes over groups of so many.
_MOST = 12


def unrolled_layers(layers: int) -> int:
    """Layers in one iteration of the scan over a stack, the argument ``unroll`` of a scan.

    On CPUs a loop copies the weights of a layer out of the stack, its gradients into another, and
    what the backward pass needs in and out of a third; without a loop only the gradients are
    copied. GPUs and TPUs have the bandwidth, and there a loop saves compile time.
    """
    return min(layers, _MOST) if platform() == "cpu" else 1


def end_of_layer(x: jax.Array) -> jax.Array:
    """The output of a layer, rounded to its dtype as it is at the end of an iteration of a loop.

    Without a loop XLA would leave out a rounding to bfloat16 between two layers or not, by what it
    fuses, and a stream would no longer give the bits of its clip.
    """
    return jax.lax.optimization_barrier(x) if platform() == "cpu" else x
